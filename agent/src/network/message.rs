//! The messages of rtnetlink(7) that the agent sends, in the kernel's byte order.

use alloc::vec::Vec;
use core::net::IpAddr;

use super::address::Network;

/// Bytes of a message's header.
pub const HEADER: usize = 16;
/// Bytes of a link's fixed part.
pub const LINK: usize = 16;

/// Types of messages.
mod kind {
    pub(super) const DELETE_LINK: u16 = 17;
    pub(super) const GET_LINK: u16 = 18;
    pub(super) const SET_LINK: u16 = 19;
    pub(super) const NEW_ADDRESS: u16 = 20;
    pub(super) const DELETE_ADDRESS: u16 = 21;
    pub(super) const NEW_ROUTE: u16 = 24;
    pub(super) const DELETE_ROUTE: u16 = 25;
    pub(super) const NEW_NEIGHBOUR: u16 = 28;
}

/// Types of attributes.
pub mod attribute {
    /// A link's hardware address.
    pub const LINK_ADDRESS: u16 = 1;
    /// A link's name.
    pub const LINK_NAME: u16 = 3;
    pub(super) const LINK_MTU: u16 = 4;
    pub(super) const LINK_FAMILIES: u16 = 26;
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const ADDRESS_LOCAL: u16 = 2;
    pub(super) const ADDRESS_FLAGS: u16 = 8;
    pub(super) const ROUTE_DESTINATION: u16 = 1;
    pub(super) const ROUTE_DEVICE: u16 = 4;
    pub(super) const ROUTE_GATEWAY: u16 = 5;
    pub(super) const ROUTE_METRIC: u16 = 6;
    pub(super) const ROUTE_SOURCE: u16 = 7;
    pub(super) const ROUTE_METRICS: u16 = 8;
    pub(super) const ROUTE_METRICS_MTU: u16 = 2;
    pub(super) const NEIGHBOUR_ADDRESS: u16 = 1;
    pub(super) const NEIGHBOUR_LINK_ADDRESS: u16 = 2;
}

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
/// Make it, or put it in the place of the one that is there.
const PUT: u16 = 0x500;
/// IFF_UP.
const UP: u32 = 1;

/// Asks for every link.
pub fn all_links() -> Vec<u8> {
    finished(begun(kind::GET_LINK, REQUEST | DUMP, &link(0, 0, 0)))
}

/// Takes a link up or down.
pub fn link_state(index: u32, up: bool) -> Vec<u8> {
    finished(begun(kind::SET_LINK, REQUEST | ACK, &link(index, u32::from(up), UP)))
}

/// Renames a link.
pub fn link_name(index: u32, name: &str) -> Vec<u8> {
    let mut message = begun(kind::SET_LINK, REQUEST | ACK, &link(index, 0, 0));
    push(&mut message, attribute::LINK_NAME, &[name.as_bytes(), &[0]].concat());
    finished(message)
}

/// Sets a link's largest packet.
pub fn link_mtu(index: u32, mtu: u32) -> Vec<u8> {
    let mut message = begun(kind::SET_LINK, REQUEST | ACK, &link(index, 0, 0));
    push(&mut message, attribute::LINK_MTU, &mtu.to_ne_bytes());
    finished(message)
}

/// Deletes a link.
pub fn link_deletion(index: u32) -> Vec<u8> {
    finished(begun(kind::DELETE_LINK, REQUEST | ACK, &link(index, 0, 0)))
}

/// Has IPv6 make no address for a link by itself.
pub fn no_link_local(index: u32) -> Vec<u8> {
    // IFLA_INET6_ADDR_GEN_MODE with IN6_ADDR_GEN_MODE_NONE, inside AF_INET6.
    const NONE_OF_IPV6: [u8; 12] = [12, 0, AF_INET6, 0, 5, 0, 8, 0, 1, 0, 0, 0];
    let mut message = begun(kind::SET_LINK, REQUEST | ACK, &link(index, 0, 0));
    push(&mut message, attribute::LINK_FAMILIES, &NONE_OF_IPV6);
    finished(message)
}

/// Gives a link an address, or takes it away.
pub fn address(index: u32, address: &Network, no_prefix_route: bool, removed: bool) -> Vec<u8> {
    /// IFA_F_NODAD: the address is good at once; nobody else chose it.
    const NO_DETECTION: u8 = 2;
    /// IFA_F_NOPREFIXROUTE, which has no place in the fixed part.
    const NO_PREFIX_ROUTE: u32 = 0x200;
    let flags = if address.address.is_ipv6() { NO_DETECTION } else { 0 };
    let [a, b, c, d] = index.to_ne_bytes();
    let body = [family(address.address), address.bits, flags, 0, a, b, c, d];
    let (kind, how) = if removed { (kind::DELETE_ADDRESS, 0) } else { (kind::NEW_ADDRESS, PUT) };
    let mut message = begun(kind, REQUEST | ACK | how, &body);
    push_address(&mut message, attribute::ADDRESS_LOCAL, address.address);
    push_address(&mut message, attribute::ADDRESS, address.address);
    if no_prefix_route {
        let flags = NO_PREFIX_ROUTE | u32::from(flags);
        push(&mut message, attribute::ADDRESS_FLAGS, &flags.to_ne_bytes());
    }
    finished(message)
}

/// A route of the main table.
#[derive(Clone, Debug)]
pub struct Way {
    /// Where it leads.
    pub destination: Network,
    /// The next hop.
    pub gateway: Option<IpAddr>,
    /// The interface.
    pub device: Option<u32>,
    /// The next hop is on the link.
    pub on_link: bool,
    /// The address that packets come from.
    pub source: Option<IpAddr>,
    /// Lower ones win; 0: the kernel's own.
    pub metric: u32,
    /// Bytes of the largest packet; 0: the interface's.
    pub mtu: u32,
}

/// Makes a route in the main table, or takes it away.
pub fn route(way: &Way, removed: bool) -> Vec<u8> {
    const TABLE_MAIN: u8 = 254;
    const PROTOCOL_BOOT: u8 = 3;
    const SCOPE_UNIVERSE: u8 = 0;
    const SCOPE_LINK: u8 = 253;
    const UNICAST: u8 = 1;
    // RTNH_F_ONLINK.
    const ON_LINK: u8 = 4;
    let Way { destination, gateway, .. } = way;
    let scope = if gateway.is_some() || destination.address.is_ipv6() { SCOPE_UNIVERSE } else { SCOPE_LINK };
    let family = family(destination.address);
    let flags = if way.on_link { ON_LINK } else { 0 };
    let body = [family, destination.bits, 0, 0, TABLE_MAIN, PROTOCOL_BOOT, scope, UNICAST, flags, 0, 0, 0];
    let (kind, how) = if removed { (kind::DELETE_ROUTE, 0) } else { (kind::NEW_ROUTE, PUT) };
    let mut message = begun(kind, REQUEST | ACK | how, &body);
    if destination.bits > 0 {
        push_address(&mut message, attribute::ROUTE_DESTINATION, destination.address);
    }
    if let Some(gateway) = *gateway {
        push_address(&mut message, attribute::ROUTE_GATEWAY, gateway);
    }
    if let Some(device) = way.device {
        push(&mut message, attribute::ROUTE_DEVICE, &device.to_ne_bytes());
    }
    if let Some(source) = way.source {
        push_address(&mut message, attribute::ROUTE_SOURCE, source);
    }
    if way.metric > 0 {
        push(&mut message, attribute::ROUTE_METRIC, &way.metric.to_ne_bytes());
    }
    if way.mtu > 0 {
        let mut metrics = Vec::new();
        push(&mut metrics, attribute::ROUTE_METRICS_MTU, &way.mtu.to_ne_bytes());
        push(&mut message, attribute::ROUTE_METRICS, &metrics);
    }
    finished(message)
}

/// Makes a neighbour known for good.
pub fn neighbour(index: u32, address: IpAddr, link_address: &[u8]) -> Vec<u8> {
    const PERMANENT: u8 = 0x80;
    let [a, b, c, d] = index.to_ne_bytes();
    let body = [family(address), 0, 0, 0, a, b, c, d, PERMANENT, 0, 0, 0];
    let mut message = begun(kind::NEW_NEIGHBOUR, REQUEST | ACK | PUT, &body);
    push_address(&mut message, attribute::NEIGHBOUR_ADDRESS, address);
    push(&mut message, attribute::NEIGHBOUR_LINK_ADDRESS, link_address);
    finished(message)
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// ifinfomsg.
fn link(index: u32, flags: u32, change: u32) -> [u8; LINK] {
    let mut body = [0; LINK];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    body[12..].copy_from_slice(&change.to_ne_bytes());
    body
}

fn begun(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::from([0; HEADER]);
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(body);
    message
}

fn push_address(message: &mut Vec<u8>, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => push(message, kind, &address.octets()),
        IpAddr::V6(address) => push(message, kind, &address.octets()),
    }
}

fn push(message: &mut Vec<u8>, kind: u16, data: &[u8]) {
    // An attribute that is longer than its length can say is one that the kernel refuses.
    let length = u16::try_from(4 + data.len()).unwrap_or(u16::MAX);
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(data);
    message.resize(message.len().next_multiple_of(4), 0);
}

fn finished(mut message: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message
}

/// Sets a message's sequence number.
pub fn number(message: &mut [u8], sequence: u32) {
    message[8..12].copy_from_slice(&sequence.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_the_kernels_to_the_byte() {
        let network = Network::with_mask("10.0.0.2", "24").unwrap();
        #[rustfmt::skip]
        assert_eq!(address(3, &network, false, false), [
            40, 0, 0, 0, 20, 0, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0,
            2, 24, 0, 0, 3, 0, 0, 0,
            8, 0, 2, 0, 10, 0, 0, 2,
            8, 0, 1, 0, 10, 0, 0, 2,
        ]);
        let deleted = address(3, &network, false, true);
        assert_eq!(&deleted[4..8], [21, 0, 5, 0]);
    }

    #[test]
    fn address_of_ipv6_is_not_searched_for_doubles() {
        let message = address(2, &Network::with_mask("fd00::2", "64").unwrap(), false, false);
        assert_eq!(&message[16..24], [10, 64, 2, 0, 2, 0, 0, 0]);
        assert_eq!(&message[24..28], [20, 0, 2, 0]);
        assert_eq!(message.len(), 64);
    }

    #[test]
    fn route_has_its_gateway_and_its_device() {
        let way = |to: &str, gateway: Option<&str>, device| Way {
            destination: Network::destination(to, None).unwrap(),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            device: Some(device),
            on_link: false,
            source: None,
            metric: 0,
            mtu: 0,
        };
        #[rustfmt::skip]
        assert_eq!(route(&way("default", Some("10.0.0.1"), 7), false), [
            44, 0, 0, 0, 24, 0, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0,
            2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0,
            8, 0, 5, 0, 10, 0, 0, 1,
            8, 0, 4, 0, 7, 0, 0, 0,
        ]);
        let removed = route(&way("default", Some("10.0.0.1"), 7), true);
        assert_eq!(&removed[4..8], [25, 0, 5, 0]);
        let near = route(&way("10.9.0.0/16", None, 1), false);
        assert_eq!(&near[16..28], [2, 16, 0, 0, 254, 3, 253, 1, 0, 0, 0, 0]);
        let more = Way {
            on_link: true,
            source: Some("10.0.0.2".parse().unwrap()),
            metric: 9,
            mtu: 1300,
            ..way("default", Some("10.0.0.1"), 7)
        };
        let more = route(&more, false);
        assert_eq!(&more[24..28], [4, 0, 0, 0]);
        #[rustfmt::skip]
        assert_eq!(&more[44..], [
            8, 0, 7, 0, 10, 0, 0, 2,
            8, 0, 6, 0, 9, 0, 0, 0,
            12, 0, 8, 0, 8, 0, 2, 0, 20, 5, 0, 0,
        ]);
    }

    #[test]
    fn neighbour_is_permanent() {
        let message = neighbour(3, "10.0.0.9".parse().unwrap(), &[2, 0, 0, 0, 0, 1]);
        #[rustfmt::skip]
        assert_eq!(&message[4..], [
            28, 0, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0,
            2, 0, 0, 0, 3, 0, 0, 0, 0x80, 0, 0, 0,
            8, 0, 1, 0, 10, 0, 0, 9,
            10, 0, 2, 0, 2, 0, 0, 0, 0, 1, 0, 0,
        ]);
    }

    #[test]
    fn name_ends_with_nul_and_is_padded() {
        let message = link_name(1, "eth10");
        assert_eq!(&message[32..], [10, 0, 3, 0, b'e', b't', b'h', b'1', b'0', 0, 0, 0]);
        assert_eq!(&message[..4], [44, 0, 0, 0]);
    }
}
