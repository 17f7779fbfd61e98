//! What is in a network namespace: interfaces, addresses, routes, neighbours.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::message::{Message, attributes, number, text};
use super::netlink::Netlink;

/// Kinds of messages.
mod kind {
    pub(super) const GET_LINK: u16 = 18;
    pub(super) const GET_ADDRESS: u16 = 22;
    pub(super) const GET_ROUTE: u16 = 26;
    pub(super) const GET_NEIGHBOUR: u16 = 30;
}

/// Bytes of ifinfomsg; the fixed parts of the others have 8 (address), 12 (route, neighbour).
const LINK: usize = 16;

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: Vec<u8>,
    /// Bytes of its largest packet.
    pub mtu: u32,
    /// IFF_UP, IFF_LOOPBACK (netdevice(7)).
    pub flags: u32,
    /// Its hardware (ARPHRD_ETHER and so on).
    pub hardware: u16,
    /// What made it: `veth`, `tun`; empty where hardware did.
    pub driver: String,
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub link: u32,
    /// The address.
    pub address: IpAddr,
    /// The other end's, where the interface leads to one alone.
    pub peer: Option<IpAddr>,
    /// Bits of the network.
    pub bits: u8,
    /// The kernel makes no route for the network.
    pub no_prefix_route: bool,
}

/// A route of the main table that somebody made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The interface; 0 where there are several.
    pub link: u32,
    /// The network, and its bits.
    pub destination: (IpAddr, u8),
    /// The next hop.
    pub gateway: Option<IpAddr>,
    /// The next hop is on the link, whatever the addresses say.
    pub on_link: bool,
    /// The address that packets come from.
    pub source: Option<IpAddr>,
    /// Lower ones win.
    pub metric: u32,
    /// Bytes of the largest packet on this way; 0: the interface's.
    pub mtu: u32,
    /// What else it has that cannot be said to a guest.
    pub beyond: Option<&'static str>,
}

/// A neighbour that somebody made known for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The interface.
    pub link: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its hardware address.
    pub mac: Vec<u8>,
}

/// Everything in a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Interfaces.
    pub links: Vec<Link>,
    /// Addresses, in their interfaces' order.
    pub addresses: Vec<Address>,
    /// Routes.
    pub routes: Vec<Route>,
    /// Neighbours.
    pub neighbours: Vec<Neighbour>,
}

impl Found {
    /// Asks the kernel.
    pub fn list(netlink: &mut Netlink) -> io::Result<Found> {
        Ok(Found {
            links: all(netlink, kind::GET_LINK, LINK, link)?,
            addresses: all(netlink, kind::GET_ADDRESS, 8, address)?,
            routes: all(netlink, kind::GET_ROUTE, 12, route)?,
            neighbours: all(netlink, kind::GET_NEIGHBOUR, 12, neighbour)?,
        })
    }
}

fn all<T>(
    netlink: &mut Netlink,
    kind: u16,
    fixed: usize,
    read: fn(&[u8], &[u8]) -> Option<T>,
) -> io::Result<Vec<T>> {
    let entries = netlink.list(Message::list(kind, &vec![0; fixed]))?;
    Ok(entries.iter().filter_map(|(_, body)| read(body.get(..fixed)?, &body[fixed..])).collect())
}

/// Returns a link from its ifinfomsg and attributes.
fn link(fixed: &[u8], rest: &[u8]) -> Option<Link> {
    let mut link = Link {
        index: number(&fixed[4..]),
        flags: number(&fixed[8..]),
        hardware: u16::from_ne_bytes([fixed[2], fixed[3]]),
        ..Link::default()
    };
    for (kind, data) in attributes(rest) {
        match kind {
            1 => link.mac = data.to_vec(),
            3 => link.name = text(data),
            4 => link.mtu = number(data),
            // IFLA_LINKINFO with IFLA_INFO_KIND.
            18 => {
                let kind = attributes(data).find(|(kind, _)| *kind == 1);
                link.driver = kind.map(|(_, data)| text(data)).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(link)
}

/// Returns an address from its ifaddrmsg and attributes.
fn address(fixed: &[u8], rest: &[u8]) -> Option<Address> {
    const NO_PREFIX_ROUTE: u32 = 0x200;
    let (mut address, mut local, mut flags) = (None, None, 0);
    for (kind, data) in attributes(rest) {
        match kind {
            1 => address = ip(data),
            2 => local = ip(data),
            8 => flags = number(data),
            _ => {}
        }
    }
    Some(Address {
        link: number(&fixed[4..]),
        address: local.or(address)?,
        peer: address.filter(|peer| local.is_some_and(|local| local != *peer)),
        bits: fixed[1],
        no_prefix_route: flags & NO_PREFIX_ROUTE != 0,
    })
}

/// Returns a route from its rtmsg and attributes; none for what the kernel makes itself from addresses and what
/// routers advertise, which a guest hears too.
fn route(fixed: &[u8], rest: &[u8]) -> Option<Route> {
    const MAIN: u32 = 254;
    const KERNEL: u8 = 2;
    const ADVERTISED: u8 = 9;
    const ON_LINK: u32 = 4;
    const CLONED: u32 = 0x200;
    const UNICAST: u8 = 1;
    let [family, bits, _, tos, table, protocol, _, kind, ..] = *fixed else { return None };
    let flags = number(&fixed[8..]);
    let mut destination = match family {
        2 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        10 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut table = u32::from(table);
    let mut route = Route {
        link: 0,
        destination: (destination, bits),
        gateway: None,
        on_link: flags & ON_LINK != 0,
        source: None,
        metric: 0,
        mtu: 0,
        beyond: (tos != 0).then_some("a type of service"),
    };
    if kind != UNICAST {
        route.beyond = Some("another type than unicast");
    }
    for (kind, data) in attributes(rest) {
        match kind {
            1 => destination = ip(data)?,
            4 => route.link = number(data),
            5 => route.gateway = ip(data),
            6 => route.metric = number(data),
            7 => route.source = ip(data),
            8 => metrics(&mut route, data),
            9 => route.beyond = Some("several next hops"),
            15 => table = number(data),
            18 => route.beyond = Some("a next hop of the other family"),
            22 => route.beyond = Some("an encapsulation"),
            _ => {}
        }
    }
    route.destination.0 = destination;
    let own = table == MAIN && protocol != KERNEL && protocol != ADVERTISED && flags & CLONED == 0;
    own.then_some(route)
}

fn metrics(route: &mut Route, data: &[u8]) {
    const MTU: u16 = 2;
    for (kind, data) in attributes(data) {
        match kind {
            MTU => route.mtu = number(data),
            _ => route.beyond = Some("metrics"),
        }
    }
}

/// Returns a neighbour from its ndmsg and attributes, if it is one for good.
fn neighbour(fixed: &[u8], rest: &[u8]) -> Option<Neighbour> {
    const PERMANENT: u16 = 0x80;
    const PROXY: u8 = 0x08;
    let state = u16::from_ne_bytes([fixed[8], fixed[9]]);
    if state & PERMANENT == 0 || fixed[10] & PROXY != 0 {
        return None;
    }
    let find = |wanted| attributes(rest).find(|(kind, _)| *kind == wanted).map(|(_, data)| data);
    Some(Neighbour { link: number(&fixed[4..]), address: ip(find(1)?)?, mac: find(2)?.to_vec() })
}

fn ip(data: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(data) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(data).ok().map(IpAddr::from)
}

#[cfg(test)]
mod tests;
