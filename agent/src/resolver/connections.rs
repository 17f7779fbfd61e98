//! DNS queries over TCP: each is preceded by its length, and a connection may carry several (RFC 1035, 4.2.2).

use alloc::vec::Vec;

use agent_proto::datagram;
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::sys;

/// Limit of connections. At the limit, a new connection replaces the oldest one.
const CONNECTIONS_MAX: usize = 32;
/// Limit of bytes that are read from a connection at a time.
const READ: usize = 4 << 10;

/// Connection of a program.
#[derive(Debug)]
struct Connection {
    number: u16,
    socket: OwnedFd,
    /// Incomplete query.
    incoming: Vec<u8>,
    /// Number of queries without an answer.
    waiting: usize,
    /// The program sends no more queries, but may still wait for answers.
    ended: bool,
}

/// All connections, oldest first.
#[derive(Debug, Default)]
pub struct Connections {
    all: Vec<Connection>,
    last: u16,
}

impl Connections {
    /// Accepts the connection that waits at `listener`.
    pub fn accept(&mut self, listener: &OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // The connection may already have been closed.
        let Ok(socket) = rustix::net::accept_with(listener, flags) else { return };
        if self.all.len() == CONNECTIONS_MAX {
            self.all.remove(0);
        }
        self.last = self.last.wrapping_add(1);
        let (number, incoming) = (self.last, Vec::new());
        self.all.push(Connection { number, socket, incoming, waiting: 0, ended: false });
    }

    /// Returns the events to wait for, one per connection.
    pub fn watched(&self) -> impl Iterator<Item = PollFd<'_>> {
        self.all.iter().map(|connection| {
            // A socket at end of file would always be readable.
            let events = if connection.ended { PollFlags::empty() } else { PollFlags::IN };
            PollFd::new(&connection.socket, events)
        })
    }

    /// Reads queries from the connections that are `ready`, in the order of [`watched`](Connections::watched), and
    /// appends them to `out`.
    pub fn take(&mut self, ready: &[bool], out: &mut Vec<u8>) {
        let mut ready = ready.iter();
        self.all.retain_mut(|connection| !ready.next().is_some_and(|it| *it) || connection.take(out));
    }

    /// Sends an answer on the connection `number`, which may no longer exist.
    pub fn answer(&mut self, number: u16, data: &[u8]) {
        if let Some(at) = self.all.iter().position(|connection| connection.number == number)
            && !self.all[at].answer(data)
        {
            self.all.remove(at);
        }
    }
}

impl Connection {
    /// Returns whether the connection stays open.
    fn take(&mut self, out: &mut Vec<u8>) -> bool {
        if self.ended {
            // No event was requested, so the event is an error.
            return false;
        }
        match sys::read_append(self.socket.as_fd(), &mut self.incoming, READ) {
            Ok(0) => self.ended = true,
            Ok(_) => return self.drain(out),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return false,
        }
        self.waiting > 0 || !self.ended
    }

    /// Removes all complete queries. Returns whether all were valid.
    fn drain(&mut self, out: &mut Vec<u8>) -> bool {
        let mut start = 0;
        while let Some((length, rest)) = self.incoming[start..].split_first_chunk() {
            let length = usize::from(u16::from_be_bytes(*length));
            if length == 0 {
                return false;
            }
            let Some(query) = rest.get(..length) else { break };
            datagram::encode(datagram::of_connection(self.number), query, out);
            self.waiting += 1;
            start += 2 + length;
        }
        self.incoming.drain(..start);
        true
    }

    /// Returns whether the connection stays open.
    fn answer(&mut self, data: &[u8]) -> bool {
        let Ok(length) = u16::try_from(data.len()) else { return false };
        if length == 0 {
            return false;
        }
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend_from_slice(data);
        self.waiting = self.waiting.saturating_sub(1);
        // If the socket does not accept the whole answer, the program does not read.
        let whole = rustix::io::write(&self.socket, &bytes).is_ok_and(|count| count == bytes.len());
        whole && (self.waiting > 0 || !self.ended)
    }
}
