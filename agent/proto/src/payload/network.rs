//! The pod's network: interfaces, routes, and API 4244's port mapping.

use alloc::string::String;
use alloc::vec::Vec;

use serde::Serialize;

use super::object::object;

/// SETUPINTERFACE, DELETEINTERFACE, and one of STARTPOD's interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// The interface's name; may be empty where `mac_addr` says which one it is.
    pub device: String,
    /// What it is called from here on; as before where it is empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub new_device_name: String,
    /// Its addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_addresses: Vec<IpAddress>,
    /// Bytes of its largest packet; unchanged where it is 0.
    #[serde(skip_serializing_if = "super::is_zero_u32")]
    pub mtu: u32,
    /// The interface is the one with this hardware address, `aa:bb:cc:dd:ee:ff`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac_addr: String,
    /// Before `ip_addresses` there was one address here.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ip_address: String,
    /// The mask of `ip_address`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub net_mask: String,
    /// Extension: who is where on its link.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub neighbours: Vec<Neighbour>,
    /// Extension: it has no address beside these, not even the one that IPv6 makes for a link.
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
    /// IPv4 or IPv6; with a leading `-` it is taken away.
    pub ip_address: String,
    /// A number of bits, for IPv4 also dotted.
    pub net_mask: String,
    /// Extension: the address makes no route to its network.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub no_prefix_route: bool,
}

object!(IpAddress, Ignored, {
    "ipAddress": ip_address,
    "netMask": net_mask,
    "noPrefixRoute": no_prefix_route,
});

/// Extension: a neighbour that is known for good.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Neighbour {
    /// IPv4 or IPv6.
    pub ip_address: String,
    /// Its hardware address, `aa:bb:cc:dd:ee:ff`.
    pub mac_addr: String,
}

object!(Neighbour, Refused, {
    "ipAddress": ip_address,
    "macAddr": mac_addr,
});

/// RESOLVER: STARTPOD's `resolver`, while the pod runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Resolver {
    /// A loopback address at which name queries are taken for the host.
    pub address: String,
}

object!(Resolver, Refused, {
    "address": address,
});

/// SETUPROUTE.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Routes {
    /// The routes, in the order in which they are made.
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
    /// The next hop; none where it is empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gateway: String,
    /// The interface's name; the gateway's where it is empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub device: String,
    /// Extension: the gateway is on the interface's link, whatever its addresses say.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub on_link: bool,
    /// Extension: the address that packets come from.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Extension: lower ones win; the kernel's own where it is 0.
    #[serde(skip_serializing_if = "super::is_zero_u32")]
    pub metric: u32,
    /// Extension: bytes of the largest packet on this way; the interface's where it is 0.
    #[serde(skip_serializing_if = "super::is_zero_u32")]
    pub mtu: u32,
    /// Extension: it is taken away.
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
