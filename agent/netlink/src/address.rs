//! Addresses of links (linux/if_addr.h, `struct ifaddrmsg`).

use core::net::IpAddr;

use crate::attributes::{self, Attributes, kind, number};
use crate::message::{Message, Object, Operation, Verb, family};

/// Length of ifaddrmsg.
const FIXED: usize = 8;
/// IFA_F_NOPREFIXROUTE. It does not fit into the flags of ifaddrmsg and needs IFA_FLAGS.
const NO_PREFIX_ROUTE: u32 = 0x200;

/// An address of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Number of the link.
    pub link: u32,
    /// The link's address.
    pub address: IpAddr,
    /// Address of the other end of a point-to-point link.
    pub peer: Option<IpAddr>,
    /// Prefix length.
    pub bits: u8,
    /// The kernel adds no route to the address's network.
    pub no_prefix_route: bool,
}

impl Address {
    /// Returns a request for all addresses.
    pub fn list_request() -> Message {
        Message::new(Verb::LIST, Object::Address, &[0; FIXED])
    }

    /// Returns a request that adds the address to its link ([`Operation::Put`]) or deletes it. IPv6 uses the address at
    /// once, without duplicate address detection, because its origin guarantees that no other host has it.
    pub fn request(&self, operation: Operation) -> Message {
        /// IFA_F_NODAD: no duplicate address detection.
        const NO_DETECTION: u8 = 2;
        let flags = if self.address.is_ipv6() { NO_DETECTION } else { 0 };
        let [a, b, c, d] = self.link.to_ne_bytes();
        let fixed = [family(self.address), self.bits, flags, 0, a, b, c, d];
        let message = Message::new(operation, Object::Address, &fixed)
            .with_address(kind::ADDRESS_LOCAL, self.address)
            .with_address(kind::ADDRESS, self.peer.unwrap_or(self.address));
        if !self.no_prefix_route {
            return message;
        }
        message.with_number(kind::ADDRESS_FLAGS, NO_PREFIX_ROUTE | u32::from(flags))
    }

    /// Parses an entry of the list.
    pub fn parse(body: &[u8]) -> Option<Address> {
        let (fixed, rest) = body.split_first_chunk::<FIXED>()?;
        let (mut address, mut local, mut flags) = (None, None, 0);
        for (attribute, data) in Attributes::new(rest) {
            match attribute {
                kind::ADDRESS => address = attributes::address(data),
                kind::ADDRESS_LOCAL => local = attributes::address(data),
                kind::ADDRESS_FLAGS => flags = number(data),
                _ => {}
            }
        }
        Some(Address {
            link: number(&fixed[4..]),
            // Without a peer, IPv6 has only IFA_ADDRESS.
            address: local.or(address)?,
            peer: address.filter(|peer| local.is_some_and(|local| local != *peer)),
            bits: fixed[1],
            no_prefix_route: flags & NO_PREFIX_ROUTE != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attributes::Nest;

    fn address(link: u32, address: &str, bits: u8) -> Address {
        let address = address.parse().unwrap();
        Address { link, address, peer: None, bits, no_prefix_route: false }
    }

    fn parse(fixed: [u8; FIXED], rest: &Nest) -> Option<Address> {
        Address::parse(&[&fixed, rest.bytes()].concat())
    }

    #[test]
    fn an_address_is_the_kernels_to_the_byte() {
        let wanted = address(3, "10.0.0.2", 24);
        #[rustfmt::skip]
        assert_eq!(wanted.request(Operation::Put).into_bytes(0), [
            40, 0, 0, 0, 20, 0, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0,
            2, 24, 0, 0, 3, 0, 0, 0,
            8, 0, 2, 0, 10, 0, 0, 2,
            8, 0, 1, 0, 10, 0, 0, 2,
        ]);
        let deleted = wanted.request(Operation::Delete).into_bytes(0);
        assert_eq!(&deleted[4..8], [21, 0, 5, 0]);
        assert_eq!(deleted[8..], wanted.request(Operation::Put).into_bytes(0)[8..]);
        assert_eq!(&Address::list_request().into_bytes(0)[..8], [24, 0, 0, 0, 22, 0, 1, 3]);
    }

    #[test]
    fn an_ipv6_address_skips_duplicate_address_detection() {
        let message = address(2, "fd00::2", 64).request(Operation::Put).into_bytes(0);
        assert_eq!(&message[16..24], [10, 64, 2, 0, 2, 0, 0, 0]);
        assert_eq!(&message[24..28], [20, 0, 2, 0]);
        assert_eq!(message.len(), 64);
        let alone = Address { no_prefix_route: true, ..address(2, "fd00::2", 64) };
        assert_eq!(&alone.request(Operation::Put).into_bytes(0)[64..], [8, 0, 8, 0, 2, 2, 0, 0]);
    }

    #[test]
    fn local_and_peer_address_are_distinguished() {
        let fixed = [2, 24, 0x80, 0, 3, 0, 0, 0];
        let own = Nest::default().with(2, &[10, 0, 0, 2]);
        let found = parse(fixed, &own.clone().with(1, &[10, 0, 0, 9])).unwrap();
        assert_eq!((found.link, found.bits), (3, 24));
        assert_eq!((found.address, found.peer), ([10, 0, 0, 2].into(), Some([10, 0, 0, 9].into())));
        let message = found.request(Operation::Put).into_bytes(0);
        assert_eq!(message[24..], [8, 0, 2, 0, 10, 0, 0, 2, 8, 0, 1, 0, 10, 0, 0, 9]);
        let same = own.with(1, &[10, 0, 0, 2]).with(8, &0x280u32.to_ne_bytes());
        let found = parse(fixed, &same).unwrap();
        assert_eq!((found.peer, found.no_prefix_route), (None, true));
        let found = parse([10, 64, 0, 0, 3, 0, 0, 0], &Nest::default().with(1, &[0xfd; 16])).unwrap();
        assert_eq!((found.address, found.peer), ([0xfd; 16].into(), None));
        assert_eq!(parse(fixed, &Nest::default().with(1, &[1, 2])), None);
    }
}
