//! Converts interfaces and routes to the agent's protocol.

use std::net::IpAddr;

use agent_proto::payload::{self, Interface, IpAddress};
use host::network::{Link, NetworkConfig, Route};

/// Adds the namespace's interfaces and routes to STARTPOD.
pub fn describe(found: &NetworkConfig, pod: &mut payload::Pod) {
    pod.interfaces.extend(found.links.iter().map(|link| interface(found, link)));
    let mut routes: Vec<_> = found.routes.iter().collect();
    // The route to a gateway must precede the routes through it.
    routes.sort_by_key(|route| route.gateway.is_some());
    pod.routes.extend(routes.into_iter().map(|it| route(found, it)));
}

pub fn interface(found: &NetworkConfig, link: &Link) -> Interface {
    let addresses = found.addresses.iter().filter(|it| it.link == link.index);
    let neighbours = found.neighbours.iter().filter(|it| it.link == link.index);
    Interface {
        mac_addr: mac_text(&link.mac),
        new_device_name: link.name.clone(),
        mtu: link.mtu,
        ip_addresses: addresses
            .map(|it| IpAddress {
                ip_address: it.address.to_string(),
                net_mask: it.bits.to_string(),
                no_prefix_route: it.no_prefix_route,
            })
            .collect(),
        neighbours: neighbours
            .map(|it| payload::Neighbour { ip_address: it.address.to_string(), mac_addr: mac_text(&it.mac) })
            .collect(),
        no_link_local: true,
        ..Interface::default()
    }
}

pub fn route(found: &NetworkConfig, route: &Route) -> payload::Route {
    let (address, bits) = route.destination;
    let text = |address: Option<IpAddr>| address.map(|it| it.to_string()).unwrap_or_default();
    let link = found.links.iter().find(|link| link.index == route.link);
    payload::Route {
        dest: format!("{address}/{bits}"),
        gateway: text(route.gateway),
        device: link.map(|link| link.name.clone()).unwrap_or_default(),
        on_link: route.on_link,
        source: text(route.source),
        metric: route.metric,
        mtu: route.mtu,
        removed: false,
    }
}

pub fn mac_text(mac: &[u8]) -> String {
    let bytes: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}
