//! Neighbours: hosts with a known hardware address (linux/neighbour.h, `struct ndmsg`).

use alloc::vec::Vec;
use core::net::IpAddr;

use crate::attributes::{self, Attributes, kind, number};
use crate::message::{Message, Object, Operation, Verb, family};

/// NUD_PERMANENT.
const PERMANENT: u16 = 0x80;
/// Length of ndmsg.
const FIXED: usize = 12;

/// A permanent neighbour, which an administrator has set and which never expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// IP address of the neighbour.
    pub address: IpAddr,
    /// Hardware address of the neighbour.
    pub mac: Vec<u8>,
    /// Number of the neighbour's link.
    pub link: u32,
}

impl Neighbour {
    /// Returns a request for all neighbours.
    pub fn list_request() -> Message {
        Message::new(Verb::LIST, Object::Neighbour, &[0; FIXED])
    }

    /// Returns a request that adds this neighbour ([`Operation::Put`]) or deletes it.
    pub fn request(&self, operation: Operation) -> Message {
        let [a, b, c, d] = self.link.to_ne_bytes();
        let [e, f] = PERMANENT.to_ne_bytes();
        let fixed = [family(self.address), 0, 0, 0, a, b, c, d, e, f, 0, 0];
        Message::new(operation, Object::Neighbour, &fixed)
            .with_address(kind::NEIGHBOUR_ADDRESS, self.address)
            .with(kind::NEIGHBOUR_MAC, &self.mac)
    }

    /// Parses an entry of the list. `None` for neighbours that the kernel has learned, and for proxy entries.
    pub fn parse(body: &[u8]) -> Option<Neighbour> {
        /// NTF_PROXY.
        const PROXY: u8 = 0x08;
        let (fixed, rest) = body.split_first_chunk::<FIXED>()?;
        let state = u16::from_ne_bytes([fixed[8], fixed[9]]);
        if state & PERMANENT == 0 || fixed[10] & PROXY != 0 {
            return None;
        }
        Some(Neighbour {
            link: number(&fixed[4..]),
            address: attributes::address(Attributes::find(rest, kind::NEIGHBOUR_ADDRESS)?)?,
            mac: Attributes::find(rest, kind::NEIGHBOUR_MAC)?.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attributes::Nest;

    #[test]
    fn a_neighbour_is_permanent() {
        let wanted = Neighbour { link: 3, address: [10, 0, 0, 9].into(), mac: Vec::from([2, 0, 0, 0, 0, 1]) };
        #[rustfmt::skip]
        assert_eq!(&wanted.request(Operation::Put).into_bytes(0)[4..], [
            28, 0, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0,
            2, 0, 0, 0, 3, 0, 0, 0, 0x80, 0, 0, 0,
            8, 0, 1, 0, 10, 0, 0, 9,
            10, 0, 2, 0, 2, 0, 0, 0, 0, 1, 0, 0,
        ]);
        assert_eq!(Neighbour::parse(&wanted.request(Operation::Put).into_bytes(0)[16..]), Some(wanted));
        assert_eq!(&Neighbour::list_request().into_bytes(0)[..8], [28, 0, 0, 0, 30, 0, 1, 3]);
    }

    #[test]
    fn neighbours_that_the_kernel_learned_are_left_out() {
        let rest = Nest::default().with(1, &[10, 0, 0, 9]).with(2, &[2, 0, 0, 0, 0, 9]);
        let parse = |state: u8, flags: u8| {
            Neighbour::parse(&[&[2, 0, 0, 0, 3, 0, 0, 0, state, 0, flags, 0], rest.bytes()].concat())
        };
        let expected =
            Neighbour { link: 3, address: [10, 0, 0, 9].into(), mac: Vec::from([2, 0, 0, 0, 0, 9]) };
        assert_eq!(parse(0x80, 0), Some(expected));
        assert_eq!(parse(0x02, 0), None);
        assert_eq!(parse(0x80, 0x08), None);
    }
}
