//! Requests (linux/netlink.h, `struct nlmsghdr`): length, type, flags, sequence number, port; a fixed part; attributes.

use alloc::vec::Vec;
use core::net::IpAddr;

use crate::attributes::{self, Nest};

/// Length of a message's header.
pub(crate) const HEADER: usize = 16;

/// AF_INET and AF_INET6.
pub(crate) const IPV4: u8 = 2;
pub(crate) const IPV6: u8 = 10;

/// NLM_F_REQUEST, and NLM_F_ACK: the kernel acknowledges the request when it is complete.
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;

/// A type of kernel object, with the number of the message that creates one (RTM_NEWLINK and so on). Its other messages
/// have the next numbers: see [`Verb`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Object {
    Link = 16,
    Address = 20,
    Route = 24,
    Neighbour = 28,
    Discipline = 36,
    Filter = 44,
}

/// Operation on the object that a request's fields describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Create the object, or replace the existing one.
    Put,
    /// Delete the object.
    Delete,
}

/// Operation and flags of a request: the offset among the messages for a type of object, and the flags.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Verb(u16, u16);

impl Verb {
    /// RTM_NEW with NLM_F_CREATE and NLM_F_EXCL: create an object; fail if it exists.
    pub(crate) const CREATE: Verb = Verb(0, REQUEST | ACK | 0x600);
    /// RTM_GET with NLM_F_DUMP: list all objects of a type.
    pub(crate) const LIST: Verb = Verb(2, REQUEST | 0x300);
    /// RTM_SET: change an existing object.
    pub(crate) const SET: Verb = Verb(3, REQUEST | ACK);
}

impl From<Operation> for Verb {
    fn from(operation: Operation) -> Verb {
        match operation {
            // RTM_NEW with NLM_F_CREATE and NLM_F_REPLACE.
            Operation::Put => Verb(0, REQUEST | ACK | 0x500),
            // RTM_DEL.
            Operation::Delete => Verb(1, REQUEST | ACK),
        }
    }
}

/// A request to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message(Vec<u8>);

impl Message {
    /// Returns a request with its fixed part and no attributes.
    pub(crate) fn new(verb: impl Into<Verb>, object: Object, fixed: &[u8]) -> Message {
        let Verb(offset, flags) = verb.into();
        let mut message = Vec::from([0; HEADER]);
        message[4..6].copy_from_slice(&(object as u16 + offset).to_ne_bytes());
        message[6..8].copy_from_slice(&flags.to_ne_bytes());
        message.extend_from_slice(fixed);
        Message(message)
    }

    /// Adds an attribute.
    pub(crate) fn with(mut self, kind: u16, data: &[u8]) -> Message {
        attributes::push(&mut self.0, kind, data);
        self
    }

    /// Adds an attribute that contains a number.
    pub(crate) fn with_number(self, kind: u16, number: u32) -> Message {
        self.with(kind, &number.to_ne_bytes())
    }

    /// Adds an attribute that contains an address.
    pub(crate) fn with_address(mut self, kind: u16, address: IpAddr) -> Message {
        attributes::push_address(&mut self.0, kind, address);
        self
    }

    /// Adds an attribute that contains others.
    pub(crate) fn nest(self, kind: u16, inner: &Nest) -> Message {
        self.with(kind, inner.bytes())
    }

    /// Returns the bytes to send as request number `sequence`. The kernel's replies have the same number.
    pub fn into_bytes(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// Returns the address family of `address`.
pub(crate) fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { IPV4 } else { IPV6 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_header_fixed_part_and_attributes() {
        let inner = Nest::default().with(2, b"ab");
        let message = Message::new(Verb::CREATE, Object::Discipline, &[7; 4])
            .with(1, b"x\0")
            .nest(2, &inner)
            .into_bytes(5);
        #[rustfmt::skip]
        assert_eq!(message, [
            40, 0, 0, 0, 36, 0, 5, 6, 5, 0, 0, 0, 0, 0, 0, 0,
            7, 7, 7, 7,
            6, 0, 1, 0, b'x', 0, 0, 0,
            12, 0, 2, 0, 6, 0, 2, 0, b'a', b'b', 0, 0,
        ]);
    }
}
