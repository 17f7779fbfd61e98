//! Datagrams on the resolver's port: `u16 length, u16 port, 4 bytes of IPv4 address, data`, big-endian. The length is
//! that of the data. In both directions, address and port are those of the program in the guest.
//!
//! A query that came over TCP has the address 0.0.0.0, and as its port the number of its connection. An answer without
//! data to such a query means that there is no answer.

use alloc::vec::Vec;
use core::net::{Ipv4Addr, SocketAddrV4};

/// Length of everything before the data.
pub const DATAGRAM_HEADER: usize = 8;
/// Limit of the data's length: that of UDP.
pub const DATAGRAM_MAX: usize = u16::MAX as usize;

/// Returns the address that represents a program whose query came over TCP, on the connection `number`.
pub fn of_connection(number: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, number)
}

/// Returns the number of the connection if the query came over TCP.
pub fn connection(program: SocketAddrV4) -> Option<u16> {
    program.ip().is_unspecified().then_some(program.port())
}

/// Appends a datagram to `out`. Data are truncated to [`DATAGRAM_MAX`] bytes.
pub fn encode(program: SocketAddrV4, data: &[u8], out: &mut Vec<u8>) {
    let data = &data[..data.len().min(DATAGRAM_MAX)];
    out.extend_from_slice(&(data.len() as u16).to_be_bytes());
    out.extend_from_slice(&program.port().to_be_bytes());
    out.extend_from_slice(&program.ip().octets());
    out.extend_from_slice(data);
}

/// Removes all complete datagrams from the front of `input` and passes them to `each`.
pub fn drain(input: &mut Vec<u8>, mut each: impl FnMut(SocketAddrV4, &[u8])) {
    let mut start = 0;
    while let Some((header, rest)) = input[start..].split_first_chunk::<DATAGRAM_HEADER>() {
        let [l0, l1, p0, p1, a, b, c, d] = *header;
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        let Some(data) = rest.get(..length) else { break };
        each(SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([p0, p1])), data);
        start += DATAGRAM_HEADER + length;
    }
    input.drain(..start);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_survive_any_split() {
        let program = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 9), 4321);
        let mut wire = Vec::new();
        encode(program, b"query", &mut wire);
        encode(program, b"", &mut wire);
        encode(program, &[7; DATAGRAM_MAX + 1], &mut wire);
        let (mut input, mut seen) = (Vec::new(), Vec::new());
        for piece in wire.chunks(3) {
            input.extend_from_slice(piece);
            drain(&mut input, |from, data| seen.push((from, data.len())));
        }
        assert_eq!((connection(program), connection(of_connection(7))), (None, Some(7)));
        assert_eq!(seen, [(program, 5), (program, 0), (program, DATAGRAM_MAX)]);
        assert!(input.is_empty());
    }
}
