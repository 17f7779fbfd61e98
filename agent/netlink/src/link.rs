//! Links, which are network interfaces (linux/if_link.h, linux/rtnetlink.h `struct ifinfomsg`).

use alloc::string::String;
use alloc::vec::Vec;

use crate::attributes::{Attributes, Nest, kind, number, text};
use crate::message::{IPV6, Message, Object, Operation, Verb};

/// Length of ifinfomsg.
const FIXED: usize = 16;

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Number of the interface.
    pub index: u32,
    /// Name of the interface.
    pub name: String,
    /// Hardware address.
    pub mac: Vec<u8>,
    /// MTU in bytes.
    pub mtu: u32,
    /// IFF_UP, IFF_LOOPBACK (netdevice(7)).
    pub flags: u32,
    /// Hardware type (ARPHRD_ETHER and so on).
    pub hardware: u16,
    /// Kind of a virtual interface, for example `veth` or `tun`. Empty for hardware.
    pub driver: String,
}

/// One change of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkChange<'a> {
    /// Bring the link up.
    Up,
    /// Take the link down.
    Down,
    /// Rename the link. The kernel does not rename a link that is up.
    Name(&'a str),
    /// Set the MTU in bytes.
    Mtu(u32),
    /// Move the link to the network namespace of this descriptor.
    Namespace(i32),
    /// Prevent IPv6 from generating addresses for the link. A kernel without IPv6 refuses the request.
    NoGeneratedAddress,
}

impl Link {
    /// Returns a request for all links.
    pub fn list_request() -> Message {
        Message::new(Verb::LIST, Object::Link, &[0; FIXED])
    }

    /// Returns a request that changes the link `index`. Everything that is not in `changes` stays unchanged.
    pub fn change_request(index: u32, changes: &[LinkChange<'_>]) -> Message {
        /// IFF_UP.
        const UP: u32 = 1;
        /// Inside AF_INET6 of IFLA_AF_SPEC: IFLA_INET6_ADDR_GEN_MODE, and IN6_ADDR_GEN_MODE_NONE.
        const ADDRESS_GENERATION: u16 = 8;
        const NONE: u8 = 1;
        let (mut flags, mut changed) = (0, 0);
        for change in changes {
            match change {
                LinkChange::Up => (flags, changed) = (UP, UP),
                LinkChange::Down => (flags, changed) = (0, UP),
                _ => {}
            }
        }
        let mut message = Message::new(Verb::SET, Object::Link, &fixed(index, flags, changed));
        for change in changes {
            message = match *change {
                LinkChange::Up | LinkChange::Down => message,
                LinkChange::Name(name) => message.with(kind::LINK_NAME, &[name.as_bytes(), &[0]].concat()),
                LinkChange::Mtu(mtu) => message.with_number(kind::LINK_MTU, mtu),
                LinkChange::Namespace(fd) => message.with(kind::LINK_NAMESPACE, &fd.to_ne_bytes()),
                LinkChange::NoGeneratedAddress => {
                    let ipv6 = Nest::default().with(ADDRESS_GENERATION, &[NONE]);
                    message.nest(kind::LINK_FAMILIES, &Nest::default().nest(IPV6.into(), &ipv6))
                }
            };
        }
        message
    }

    /// Returns a request that deletes the link `index`.
    pub fn delete_request(index: u32) -> Message {
        Message::new(Operation::Delete, Object::Link, &fixed(index, 0, 0))
    }

    /// Parses an entry of the list.
    pub fn parse(body: &[u8]) -> Option<Link> {
        let (fixed, rest) = body.split_first_chunk::<FIXED>()?;
        let mut link = Link {
            index: number(&fixed[4..]),
            flags: number(&fixed[8..]),
            hardware: u16::from_ne_bytes([fixed[2], fixed[3]]),
            ..Link::default()
        };
        for (attribute, data) in Attributes::new(rest) {
            match attribute {
                kind::LINK_MAC => link.mac = data.to_vec(),
                kind::LINK_NAME => link.name = text(data),
                kind::LINK_MTU => link.mtu = number(data),
                kind::LINK_INFO => {
                    link.driver = Attributes::find(data, kind::LINK_INFO_KIND).map(text).unwrap_or_default()
                }
                _ => {}
            }
        }
        Some(link)
    }
}

/// Returns ifinfomsg with the link's number, its flags, and the mask of flags to change.
fn fixed(index: u32, flags: u32, change: u32) -> [u8; FIXED] {
    let mut fixed = [0; FIXED];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..].copy_from_slice(&change.to_ne_bytes());
    fixed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_ends_with_nul_and_is_padded() {
        let message = Link::change_request(1, &[LinkChange::Name("eth10")]).into_bytes(0);
        assert_eq!(&message[32..], [10, 0, 3, 0, b'e', b't', b'h', b'1', b'0', 0, 0, 0]);
        assert_eq!(&message[..4], [44, 0, 0, 0]);
    }

    #[test]
    fn a_change_request_contains_only_the_changes() {
        let nothing = Link::change_request(9, &[]).into_bytes(0);
        assert_eq!(nothing[4..16], [19, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(nothing[16..], [0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        #[rustfmt::skip]
        assert_eq!(Link::change_request(9, &[LinkChange::Up, LinkChange::Mtu(1400)]).into_bytes(2), [
            40, 0, 0, 0, 19, 0, 5, 0, 2, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0,
            8, 0, 4, 0, 0x78, 5, 0, 0,
        ]);
        let down = Link::change_request(9, &[LinkChange::Down]).into_bytes(2);
        assert_eq!(down[24..], [0, 0, 0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn a_link_is_moved_to_the_namespace_of_a_descriptor() {
        let message = Link::change_request(1, &[LinkChange::Namespace(7)]).into_bytes(0);
        assert_eq!(&message[32..], [8, 0, 28, 0, 7, 0, 0, 0]);
    }

    #[test]
    fn generation_of_ipv6_addresses_is_disabled() {
        let message = Link::change_request(1, &[LinkChange::NoGeneratedAddress]).into_bytes(0);
        assert_eq!(&message[32..], [16, 0, 26, 0, 12, 0, 10, 0, 5, 0, 8, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn list_and_deletion_are_the_kernels_to_the_byte() {
        let list = Link::list_request().into_bytes(3);
        assert_eq!(list[..16], [32, 0, 0, 0, 18, 0, 1, 3, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(list[16..], [0; 16]);
        let deletion = Link::delete_request(5).into_bytes(3);
        assert_eq!(
            deletion[..24],
            [32, 0, 0, 0, 17, 0, 5, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0]
        );
    }

    #[test]
    fn a_link_is_parsed_with_its_driver() {
        let mut fixed = [0; FIXED];
        (fixed[2], fixed[4], fixed[8]) = (1, 7, 0x43);
        let rest = Nest::default()
            .with(3, b"eth0\0")
            .with(1, &[2, 0, 0, 0, 0, 1])
            .with(4, &1400u32.to_ne_bytes())
            .nest(18, &Nest::default().with(1, b"veth\0"));
        let expected = Link {
            index: 7,
            name: "eth0".into(),
            mac: Vec::from([2, 0, 0, 0, 0, 1]),
            mtu: 1400,
            flags: 0x43,
            hardware: 1,
            driver: "veth".into(),
        };
        assert_eq!(Link::parse(&[&fixed, rest.bytes()].concat()), Some(expected));
    }

    #[test]
    fn a_link_without_attributes_or_with_broken_ones_has_its_number() {
        assert_eq!(Link::parse(&[0; FIXED - 1]), None);
        let odd = [&[0; FIXED][..], &[2, 0, 3, 0]].concat();
        assert_eq!(Link::parse(&odd), Some(Link::default()));
    }
}
