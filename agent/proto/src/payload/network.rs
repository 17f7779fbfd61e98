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
}

object!(Interface, Ignored, {
    "device": device,
    "newDeviceName": new_device_name,
    "ipAddresses": ip_addresses,
    "mtu": mtu,
    "macAddr": mac_addr,
    "ipAddress": ip_address,
    "netMask": net_mask,
});

/// An address of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IpAddress {
    /// IPv4 or IPv6; with a leading `-` it is taken away.
    pub ip_address: String,
    /// A number of bits, for IPv4 also dotted.
    pub net_mask: String,
}

object!(IpAddress, Ignored, {
    "ipAddress": ip_address,
    "netMask": net_mask,
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
pub struct Route {
    /// `default`, `any`, `all`, an address, or a network as `address/bits`.
    pub dest: String,
    /// The next hop; none where it is empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gateway: String,
    /// The interface's name; the gateway's where it is empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub device: String,
}

object!(Route, Ignored, {
    "dest": dest,
    "gateway": gateway,
    "device": device,
});
