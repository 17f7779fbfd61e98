//! The pod's network: interfaces, routes, neighbours and the resolver.

use alloc::string::String;
use alloc::vec::Vec;

use serde::Serialize;

use super::object::object;

/// SETUPINTERFACE, DELETEINTERFACE, and one of STARTPOD's interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Name of the interface. May be empty if `mac_addr` identifies it.
    pub device: String,
    /// New name of the interface. Empty means unchanged.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub new_device_name: String,
    /// Addresses of the interface.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_addresses: Vec<IpAddress>,
    /// MTU in bytes. 0 means unchanged.
    #[serde(skip_serializing_if = "is_zero_u32")]
    pub mtu: u32,
    /// Hardware address that identifies the interface, `aa:bb:cc:dd:ee:ff`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac_addr: String,
    /// Single address, from the time before `ip_addresses`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ip_address: String,
    /// Netmask of `ip_address`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub net_mask: String,
    /// Extension: permanent neighbours on the interface's link.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub neighbours: Vec<Neighbour>,
    /// Extension: the interface gets only these addresses, not even an IPv6 link-local address.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub no_link_local: bool,
}

object!(Interface, Ignored, {
    "device": device,
    "newDeviceName": new_device_name,
    "ipAddresses": ip_addresses,
    "mtu": mtu,
    "macAddr": mac_addr,
    "ipAddress": ip_address,
    "netMask": net_mask,
    "neighbours": neighbours,
    "noLinkLocal": no_link_local,
});

/// An address of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IpAddress {
    /// IPv4 or IPv6 address. With a leading `-` the address is removed.
    pub ip_address: String,
    /// Prefix length, or for IPv4 also a netmask in dotted form.
    pub net_mask: String,
    /// Extension: the kernel adds no route to the address's network.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub no_prefix_route: bool,
}

object!(IpAddress, Ignored, {
    "ipAddress": ip_address,
    "netMask": net_mask,
    "noPrefixRoute": no_prefix_route,
});

/// Extension: a permanent neighbour.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Neighbour {
    /// IPv4 or IPv6 address.
    pub ip_address: String,
    /// Hardware address, `aa:bb:cc:dd:ee:ff`.
    pub mac_addr: String,
}

object!(Neighbour, Refused, {
    "ipAddress": ip_address,
    "macAddr": mac_addr,
});

/// RESOLVER: like STARTPOD's `resolver`, but while the pod runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Resolver {
    /// Loopback address at which the agent accepts name queries for the host.
    pub address: String,
}

object!(Resolver, Refused, {
    "address": address,
});

/// CONNECT. The agent connects to 127.0.0.1, and if nothing listens there to ::1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Connect {
    /// Name by which the end of the connection is reported, as that of a process of [`GUEST`](super::GUEST). It exits with 0 if
    /// both sides have closed the connection, and with another code if it was reset.
    pub name: String,
    /// TCP port.
    pub port: u16,
    /// Stream of the connection's data, in both directions.
    pub stream: u64,
}

object!(Connect, Refused, {
    "name": name,
    "port": port,
    "stream": stream,
});

/// SETUPROUTE.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Routes {
    /// Routes, in the order in which they are added.
    pub routes: Vec<Route>,
}

object!(Routes, Ignored, {
    "routes": routes,
});

/// One route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// `default`, `any`, `all`, an address, or a network as `address/bits`.
    pub dest: String,
    /// Address of the next hop. Empty if there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gateway: String,
    /// Name of the interface. Empty means the one that reaches the gateway.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub device: String,
    /// Extension: the gateway is on the interface's link, even if the interface's addresses do not include it.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub on_link: bool,
    /// Extension: source address of packets.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Extension: metric; the lowest one is preferred. 0 means the kernel's default.
    #[serde(skip_serializing_if = "is_zero_u32")]
    pub metric: u32,
    /// Extension: MTU of the route in bytes. 0 means the interface's MTU.
    #[serde(skip_serializing_if = "is_zero_u32")]
    pub mtu: u32,
    /// Extension: remove the route instead of adding it.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub removed: bool,
}

object!(Route, Ignored, {
    "dest": dest,
    "gateway": gateway,
    "device": device,
    "onLink": on_link,
    "source": source,
    "metric": metric,
    "mtu": mtu,
    "removed": removed,
});

fn is_zero_u32(value: &u32) -> bool {
    *value == 0
}
