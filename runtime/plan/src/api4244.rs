//! Reduces a plan to what an agent of API 4244 without the extension understands.

use std::mem::take;

use agent_proto::payload::{Container, FsMap, Mount, Pod};
use oci::error::{Result, invalid};
use serde_json::Value;

/// Destinations that such an agent mounts in every container.
const OWN_MOUNTS: [&str; 5] = ["/proc", "/sys", "/dev", "/dev/pts", "/dev/shm"];

/// Removes from `container` what API 4244 cannot express, and returns the names of what was removed. No key of the
/// extension remains, because hyperstart refuses a container with an unknown key.
pub fn reduce(container: &mut Container) -> Result<Vec<String>> {
    let mut left_out = Vec::new();
    if let Some(oci) = container.oci.take() {
        for mount in &oci.mounts {
            if mount.kind == "bind" {
                container.fsmap.push(bound(mount));
            } else if !OWN_MOUNTS.contains(&mount.destination.as_str()) {
                left_out.push(format!("the {} at {}", mount.kind, mount.destination));
            }
        }
        // The pod has the host name already.
        left_out.extend(asked(&oci, &["mounts", "hostname"])?);
    }
    let process = &mut container.process;
    if let Some(oci) = process.oci.take() {
        left_out.extend(asked(&oci, &[])?);
    }
    if !take(&mut process.rlimits).is_empty() {
        left_out.push("rlimits".to_owned());
    }
    // The link sends the size of the terminal once the process runs.
    (process.rows, process.columns) = (0, 0);
    Ok(left_out)
}

/// Removes from the pod's network what API 4244 cannot express, and returns the names of what was removed.
pub fn reduce_network(pod: &mut Pod) -> Vec<&'static str> {
    let mut left_out = Vec::new();
    let mut leave = |given: bool, name| {
        if given && !left_out.contains(&name) {
            left_out.push(name);
        }
    };
    for interface in &mut pod.interfaces {
        interface.no_link_local = false;
        leave(!take(&mut interface.neighbours).is_empty(), "neighbours");
        for address in &mut interface.ip_addresses {
            leave(take(&mut address.no_prefix_route), "addresses without a prefix route");
        }
    }
    for route in &mut pod.routes {
        leave(take(&mut route.on_link), "on-link gateways");
        leave(!take(&mut route.source).is_empty(), "routes' source addresses");
        leave(take(&mut route.metric) > 0, "routes' metrics");
        leave(take(&mut route.mtu) > 0, "routes' MTUs");
    }
    left_out
}

fn bound(mount: &Mount) -> FsMap {
    FsMap {
        source: mount.source.trim_start_matches('/').to_owned(),
        path: mount.destination.clone(),
        read_only: mount.flags & libc::MS_RDONLY != 0,
        docker_volume: false,
    }
}

/// Returns the keys of `extension` with content, as it is serialized for the agent, without those in `known`.
fn asked(extension: &impl serde::Serialize, known: &[&str]) -> Result<Vec<String>> {
    let value = serde_json::to_value(extension).map_err(|error| invalid("process", error.to_string()))?;
    let Value::Object(keys) = value else { return Ok(Vec::new()) };
    let nothing = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    };
    let asked = keys.into_iter().filter(|(name, value)| !known.contains(&name.as_str()) && !nothing(value));
    Ok(asked.map(|(name, _)| name).collect())
}

#[cfg(test)]
mod tests {
    use agent_proto::payload::{Interface, IpAddress, Neighbour, Route};

    use super::*;

    #[test]
    fn a_network_is_reduced_to_the_keys_of_api_4244() {
        let plain = Pod {
            interfaces: vec![Interface { ip_addresses: vec![IpAddress::default()], ..Interface::default() }],
            routes: vec![Route { dest: "default".into(), gateway: "10.0.0.1".into(), ..Route::default() }],
            ..Pod::default()
        };
        let mut pod = plain.clone();
        let interface = &mut pod.interfaces[0];
        interface.no_link_local = true;
        interface.neighbours.push(Neighbour::default());
        interface.ip_addresses[0].no_prefix_route = true;
        let route = &mut pod.routes[0];
        (route.on_link, route.source, route.metric, route.mtu) = (true, "10.0.0.2".into(), 7, 1300);
        let names = [
            "neighbours",
            "addresses without a prefix route",
            "on-link gateways",
            "routes' source addresses",
            "routes' metrics",
            "routes' MTUs",
        ];
        assert_eq!(reduce_network(&mut pod), names);
        assert_eq!(pod, plain);
        assert!(reduce_network(&mut pod).is_empty());
    }
}
