//! What is left of a plan for an agent that speaks API 4244 alone.

use agent_proto::payload::{FsMap, Mount};
use serde_json::Value;

use super::Plan;
use crate::bundle::{Result, invalid};

/// What such an agent mounts in every container.
const OWN_MOUNTS: [&str; 5] = ["/proc", "/sys", "/dev", "/dev/pts", "/dev/shm"];

/// Takes out of `plan` what API 4244 has no words for, and returns what that was. Not one word of the extension is left:
/// hyperstart refuses a pod or container with a key that it does not know.
pub fn reduce(plan: &mut Plan) -> Result<Vec<String>> {
    plan.pod.share_type = String::new();
    plan.pod.accounting = false;
    let container = &mut plan.container;
    let mut left_out = Vec::new();
    if let Some(oci) = container.oci.take() {
        for mount in &oci.mounts {
            if mount.kind == "bind" {
                container.fsmap.push(bound(mount));
            } else if !OWN_MOUNTS.contains(&mount.destination.as_str()) {
                left_out.push(format!("the {} at {}", mount.kind, mount.destination));
            }
        }
        // The pod has the host name.
        left_out.extend(asked(&oci, &["mounts", "hostname"])?);
    }
    let process = &mut container.process;
    if let Some(oci) = process.oci.take() {
        left_out.extend(asked(&oci, &[])?);
    }
    if !std::mem::take(&mut process.rlimits).is_empty() {
        left_out.push("rlimits".to_owned());
    }
    // The terminal's size is told once it is there.
    (process.rows, process.columns) = (0, 0);
    Ok(left_out)
}

fn bound(mount: &Mount) -> FsMap {
    FsMap {
        source: mount.source.trim_start_matches('/').to_owned(),
        path: mount.destination.clone(),
        read_only: mount.flags & libc::MS_RDONLY != 0,
        docker_volume: false,
    }
}

/// Returns the names of what `extension` asks for, as the agent would be told it.
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
