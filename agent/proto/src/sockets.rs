//! Connections between sockets of the guest and of the host, on a port of their own.
//!
//! A frame is `u32 connection, u16 kind, u16 length, data`, big-endian. The side that opens a connection numbers it; numbers
//! of the host have the bit [`OF_HOST`]. Both directions of a connection have a window of [`WINDOW`] bytes, so that a slow
//! reader stops only its own connection.
//!
//! | kind | data | meaning |
//! |---|---|---|
//! | 0 | `u16 socket, u32 uid, u32 gid` | connect to a socket as this user (only from the guest) |
//! | 1 | bytes | data |
//! | 2 | `u32 bytes` | the sender has passed on so many bytes |
//! | 3 | none | no data follows from the sender |
//! | 4 | none | the sender has closed the connection; what it sent before is delivered |
//! | 5 | none | a process has passed descriptors, which are not carried; kind 4 follows (only from the guest) |
//! | 6 | `u32 ticket` | the connection is the one for which the file server gave this ticket (only from the guest) |
//! | 7 | `u64 node, u32 uid, u32 gid` | connect as this user to the socket that was bound to a file (only from the host) |
//!
//! The host sends kind 4 for each connection, as its last frame. Until then the connection counts for
//! [`CONNECTIONS_MAX`], and its number is in use.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Length of everything before the data.
const HEADER: usize = 8;
/// Limit of the data of a frame.
pub const DATA_MAX: usize = 32 << 10;
/// Bytes that a sender may have outstanding, and limit of a connection's buffer.
pub const WINDOW: usize = 128 << 10;
/// Limit of connections. The guest accepts no more.
pub const CONNECTIONS_MAX: usize = 128;
/// Limit of sockets of the host.
pub const SOCKETS_MAX: usize = 64;
/// Bit in the number of a connection that the host has opened.
pub const OF_HOST: u32 = 1 << 31;
/// Limit of frames that wait to be sent, in bytes. Above it nothing is read that would add to them.
pub const OUT_MAX: usize = 256 << 10;

/// A frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Connect to a socket as a user.
    Open {
        /// Number of the socket.
        socket: u16,
        /// User of the process in the guest.
        uid: u32,
        /// Group of the process in the guest.
        gid: u32,
    },
    /// Data.
    Data(&'a [u8]),
    /// The sender has passed on so many bytes.
    Credit(u32),
    /// No data follows.
    End,
    /// The connection is closed.
    Close,
    /// A process of the guest has passed descriptors.
    Descriptors,
    /// The connection is the one that the file server has made.
    Take {
        /// The file server's number of it.
        ticket: u32,
    },
    /// Connect to a socket of the guest as a user.
    Arrive {
        /// The file server's number of the socket's file.
        node: u64,
        /// User of the process on the host.
        uid: u32,
        /// Group of the process on the host.
        gid: u32,
    },
}

/// The other side has broken the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

impl Frame<'_> {
    /// Appends the frame of a connection to `out`. Data has at most [`DATA_MAX`] bytes.
    pub fn encode(&self, connection: u32, out: &mut Vec<u8>) {
        let mut fields = [0; 16];
        let (kind, data): (u16, &[u8]) = match *self {
            Frame::Open { socket, uid, gid } => {
                fields[..2].copy_from_slice(&socket.to_be_bytes());
                fields[2..6].copy_from_slice(&uid.to_be_bytes());
                fields[6..10].copy_from_slice(&gid.to_be_bytes());
                (0, &fields[..10])
            }
            Frame::Data(data) => (1, &data[..data.len().min(DATA_MAX)]),
            Frame::Credit(bytes) => {
                fields[..4].copy_from_slice(&bytes.to_be_bytes());
                (2, &fields[..4])
            }
            Frame::End => (3, &[]),
            Frame::Close => (4, &[]),
            Frame::Descriptors => (5, &[]),
            Frame::Take { ticket } => {
                fields[..4].copy_from_slice(&ticket.to_be_bytes());
                (6, &fields[..4])
            }
            Frame::Arrive { node, uid, gid } => {
                fields[..8].copy_from_slice(&node.to_be_bytes());
                fields[8..12].copy_from_slice(&uid.to_be_bytes());
                fields[12..].copy_from_slice(&gid.to_be_bytes());
                (7, &fields)
            }
        };
        out.extend_from_slice(&connection.to_be_bytes());
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&(data.len() as u16).to_be_bytes());
        out.extend_from_slice(data);
    }
}

/// Removes all complete frames from the front of `input` and passes them to `each`.
pub fn drain(
    input: &mut Vec<u8>,
    mut each: impl FnMut(u32, Frame<'_>) -> Result<(), Broken>,
) -> Result<(), Broken> {
    let mut start = 0;
    while let Some((header, rest)) = input[start..].split_first_chunk::<HEADER>() {
        let [a, b, c, d, k0, k1, l0, l1] = *header;
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        if length > DATA_MAX {
            return Err(Broken);
        }
        let Some(data) = rest.get(..length) else { break };
        let frame = match (u16::from_be_bytes([k0, k1]), data) {
            (0, &[s0, s1, u0, u1, u2, u3, g0, g1, g2, g3]) => Frame::Open {
                socket: u16::from_be_bytes([s0, s1]),
                uid: u32::from_be_bytes([u0, u1, u2, u3]),
                gid: u32::from_be_bytes([g0, g1, g2, g3]),
            },
            (1, _) => Frame::Data(data),
            (2, &[b0, b1, b2, b3]) => Frame::Credit(u32::from_be_bytes([b0, b1, b2, b3])),
            (3, []) => Frame::End,
            (4, []) => Frame::Close,
            (5, []) => Frame::Descriptors,
            (6, &[t0, t1, t2, t3]) => Frame::Take { ticket: u32::from_be_bytes([t0, t1, t2, t3]) },
            (7, &[n0, n1, n2, n3, n4, n5, n6, n7, u0, u1, u2, u3, g0, g1, g2, g3]) => Frame::Arrive {
                node: u64::from_be_bytes([n0, n1, n2, n3, n4, n5, n6, n7]),
                uid: u32::from_be_bytes([u0, u1, u2, u3]),
                gid: u32::from_be_bytes([g0, g1, g2, g3]),
            },
            _ => return Err(Broken),
        };
        each(u32::from_be_bytes([a, b, c, d]), frame)?;
        start += HEADER + length;
    }
    input.drain(..start);
    Ok(())
}

/// What one side knows of a connection, without its socket.
#[derive(Debug)]
pub struct Flow {
    /// Bytes that the other side accepts.
    credit: usize,
    /// Bytes from the other side for the socket.
    pending: VecDeque<u8>,
    /// Bytes that were written to the socket since the last credit.
    owed: usize,
    /// The socket has no more data, and the other side knows.
    ended: bool,
    /// The other side has no more data.
    other_ended: bool,
    /// The socket was told.
    shut: bool,
    /// The other side has closed the connection.
    closed: bool,
}

impl Default for Flow {
    fn default() -> Flow {
        Flow {
            credit: WINDOW,
            pending: VecDeque::new(),
            owed: 0,
            ended: false,
            other_ended: false,
            shut: false,
            closed: false,
        }
    }
}

impl Flow {
    /// Handles a frame of the other side.
    pub fn take(&mut self, frame: Frame<'_>) -> Result<(), Broken> {
        match frame {
            Frame::Data(data)
                if !self.other_ended && self.pending.len() + self.owed + data.len() <= WINDOW =>
            {
                self.pending.extend(data);
            }
            Frame::Credit(bytes) if self.credit + bytes as usize <= WINDOW => self.credit += bytes as usize,
            Frame::End => self.other_ended = true,
            Frame::Close => (self.other_ended, self.closed) = (true, true),
            _ => return Err(Broken),
        }
        Ok(())
    }

    /// Number of bytes that may be read from the socket now.
    pub fn room(&self) -> usize {
        if self.ended || self.closed { 0 } else { self.credit.min(DATA_MAX) }
    }

    /// Sends what was read from the socket; nothing means that no more will come.
    pub fn send(&mut self, connection: u32, data: &[u8], out: &mut Vec<u8>) {
        match data {
            [] => {
                self.ended = true;
                Frame::End.encode(connection, out);
            }
            data => {
                self.credit = self.credit.saturating_sub(data.len());
                Frame::Data(data).encode(connection, out);
            }
        }
    }

    /// Returns bytes for the socket.
    pub fn pending(&self) -> &[u8] {
        self.pending.as_slices().0
    }

    /// Records that the socket has accepted bytes.
    pub fn wrote(&mut self, count: usize) {
        self.pending.drain(..count);
        self.owed += count;
    }

    /// Sends the credit that the other side has a use for.
    pub fn give_credit(&mut self, connection: u32, out: &mut Vec<u8>) {
        if self.owed >= WINDOW / 2 || self.owed > 0 && self.pending.is_empty() {
            Frame::Credit(self.owed as u32).encode(connection, out);
            self.owed = 0;
        }
    }

    /// Whether the socket must be told now that no more data comes. True once.
    pub fn must_shut(&mut self) -> bool {
        let must = self.other_ended && self.pending.is_empty() && !self.shut;
        self.shut |= must;
        must
    }

    /// Whether the socket has no more data, so that only its end is of interest.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether the other side has closed the connection.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether both sides are done with the connection.
    pub fn is_over(&self) -> bool {
        self.pending.is_empty() && (self.closed || self.ended && self.shut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_split() {
        let frames = [
            Frame::Open { socket: 3, uid: 1000, gid: 7 },
            Frame::Data(b"text"),
            Frame::Credit(70_000),
            Frame::End,
            Frame::Close,
            Frame::Descriptors,
            Frame::Take { ticket: 70_000 },
            Frame::Arrive { node: 1 << 40, uid: 1000, gid: 7 },
        ];
        let mut wire = Vec::new();
        frames.iter().enumerate().for_each(|(number, frame)| frame.encode(number as u32, &mut wire));
        let (mut input, mut seen) = (Vec::new(), 0);
        for piece in wire.chunks(3) {
            input.extend_from_slice(piece);
            let each = |number, frame: Frame<'_>| {
                assert_eq!((number as usize, frame), (seen, frames[seen]));
                seen += 1;
                Ok(())
            };
            drain(&mut input, each).unwrap();
        }
        assert_eq!((seen, input.len()), (frames.len(), 0));
    }

    #[test]
    fn frames_of_no_kind_and_lengths_of_other_kinds_are_refused() {
        for (kind, length) in
            [(0, 9), (1, DATA_MAX + 1), (2, 3), (3, 1), (4, 1), (5, 1), (6, 3), (7, 15), (8, 0)]
        {
            let header = [0, 0, 0, 1, 0, kind, (length >> 8) as u8, length as u8];
            let mut input = [&header[..], &[0; DATA_MAX + 1]].concat();
            assert_eq!(drain(&mut input, |_, _| Ok(())), Err(Broken), "{kind} {length}");
        }
    }

    #[test]
    fn a_sender_has_a_window_and_gets_it_back() {
        let (mut sender, mut receiver) = (Flow::default(), Flow::default());
        let mut wire = Vec::new();
        while sender.room() > 0 {
            let data = [1; DATA_MAX];
            sender.send(1, &data[..sender.room()], &mut wire);
        }
        drain(&mut wire, |_, frame| receiver.take(frame)).unwrap();
        assert_eq!(receiver.take(Frame::Data(&[1])), Err(Broken));
        let mut written = 0;
        while !receiver.pending().is_empty() {
            let count = receiver.pending().len().min(1000);
            receiver.wrote(count);
            written += count;
            receiver.give_credit(1, &mut wire);
        }
        assert_eq!(written, WINDOW);
        drain(&mut wire, |_, frame| sender.take(frame)).unwrap();
        assert_eq!(sender.credit, WINDOW);
        assert_eq!(sender.take(Frame::Credit(1)), Err(Broken));
    }

    #[test]
    fn a_connection_is_over_when_both_sides_have_ended_or_one_has_closed() {
        let mut flow = Flow::default();
        flow.take(Frame::Data(b"last")).unwrap();
        flow.take(Frame::End).unwrap();
        assert_eq!(flow.take(Frame::Data(b"more")), Err(Broken));
        assert!(!flow.must_shut());
        flow.wrote(4);
        assert!(flow.must_shut() && !flow.must_shut() && !flow.is_over());
        flow.send(1, &[], &mut Vec::new());
        assert!(flow.has_ended() && flow.is_over());
        let mut flow = Flow::default();
        flow.take(Frame::Data(b"last")).unwrap();
        flow.take(Frame::Close).unwrap();
        assert_eq!((flow.room(), flow.is_over()), (0, false));
        flow.wrote(4);
        assert!(flow.is_over());
    }
}
