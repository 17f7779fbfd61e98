//! Attributes of a message (linux/netlink.h, `struct nlattr`): length including the header, type, data, padding to 4
//! bytes.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

pub(crate) mod kind;

/// Length of an attribute's header.
const HEADER: usize = 4;
/// NLA_ALIGNTO.
const ALIGNMENT: usize = 4;
/// Limit of an attribute's data in bytes, due to its 16-bit length.
const DATA_MAX: usize = u16::MAX as usize - HEADER;
/// NLA_TYPE_MASK: the two bits above it are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
const TYPE_MASK: u16 = 0x3fff;

/// Attributes under construction: those of a message, or those inside another attribute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Nest(Vec<u8>);

impl Nest {
    /// Adds an attribute.
    pub(crate) fn with(mut self, kind: u16, data: &[u8]) -> Nest {
        push(&mut self.0, kind, data);
        self
    }

    /// Adds an attribute that contains others.
    pub(crate) fn nest(self, kind: u16, inner: &Nest) -> Nest {
        self.with(kind, inner.bytes())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Appends an attribute to `out`. Data are truncated to [`DATA_MAX`] bytes, so that the following attributes stay
/// readable. No attribute that the kernel accepts is that long.
pub(crate) fn push(out: &mut Vec<u8>, kind: u16, data: &[u8]) {
    let data = &data[..data.len().min(DATA_MAX)];
    out.extend_from_slice(&((HEADER + data.len()) as u16).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}

/// Appends an attribute with an address, in network byte order.
pub(crate) fn push_address(out: &mut Vec<u8>, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => push(out, kind, &address.octets()),
        IpAddr::V6(address) => push(out, kind, &address.octets()),
    }
}

/// Iterates over the attributes in a message's body or in another attribute: type and data. An attribute that is
/// truncated, or shorter than its own header, ends the iteration.
#[derive(Clone, Debug)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Reads `bytes`.
    pub fn new(bytes: &'a [u8]) -> Attributes<'a> {
        Attributes(bytes)
    }

    /// Returns the data of the first attribute of type `wanted`.
    pub fn find(bytes: &'a [u8], wanted: u16) -> Option<&'a [u8]> {
        Attributes(bytes).find_map(|(kind, data)| (kind == wanted).then_some(data))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let [a, b, c, d] = *self.0.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let data = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & TYPE_MASK, data))
    }
}

/// Returns the 32-bit number at the front of `data`, or 0 if `data` is too short.
pub(crate) fn number(data: &[u8]) -> u32 {
    data.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// Returns the text in `data` without its final NUL.
pub(crate) fn text(data: &[u8]) -> String {
    String::from_utf8_lossy(data.strip_suffix(&[0]).unwrap_or(data)).into_owned()
}

/// Returns the address in `data`, which is in network byte order.
pub(crate) fn address(data: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(data) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(data).ok().map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nest() {
        let inner = Nest::default().with(2, b"ab").nest(3, &Nest::default().with(1, &[9]));
        let outer = Nest::default().with(1, b"x\0").nest(2, &inner);
        #[rustfmt::skip]
        assert_eq!(outer.bytes(), [
            6, 0, 1, 0, b'x', 0, 0, 0,
            24, 0, 2, 0, 6, 0, 2, 0, b'a', b'b', 0, 0, 12, 0, 3, 0, 5, 0, 1, 0, 9, 0, 0, 0,
        ]);
        let read: Vec<_> = Attributes::new(outer.bytes()).collect();
        assert_eq!(read[0], (1, &b"x\0"[..]));
        assert_eq!(Attributes::new(read[1].1).next(), Some((2, &b"ab"[..])));
        assert_eq!(Attributes::find(read[1].1, 3), Some(&[5, 0, 1, 0, 9, 0, 0, 0][..]));
    }

    #[test]
    fn broken_attributes_end_the_iteration() {
        assert_eq!(Attributes::new(&[2, 0, 3, 0]).next(), None);
        assert_eq!(Attributes::new(&[9, 0, 3, 0, 1]).next(), None);
        // The last attribute may lack its padding.
        assert_eq!(Attributes::new(&[5, 0, 3, 0, 1]).collect::<Vec<_>>(), [(3, &[1][..])]);
        assert_eq!((number(&[1, 2]), text(b"lo\0"), text(b"")), (0, "lo".into(), String::new()));
        assert_eq!(address(&[10, 0, 0]), None);
    }

    #[test]
    fn flags_above_the_type_are_left_out() {
        assert_eq!(Attributes::find(&[5, 0, 3, 0x80, 1], 3), Some(&[1][..]));
    }

    #[test]
    fn too_long_data_are_truncated_and_the_next_attribute_stays_readable() {
        let long = Nest::default().with(1, &[7; DATA_MAX + 9]).with(2, b"after");
        let lengths: Vec<_> = Attributes::new(long.bytes()).map(|(kind, data)| (kind, data.len())).collect();
        assert_eq!(lengths, [(1, DATA_MAX), (2, 5)]);
    }
}
