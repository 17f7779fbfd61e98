//! A rtnetlink socket: requests and their answers.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::message::{self, Message};
use crate::sys;

/// The most of an answer that is read at a time; the kernel cuts a list to what is read.
const ANSWER_MAX: usize = 32 << 10;
/// The most entries of a list.
const ENTRIES_MAX: usize = 4096;
/// An error, or with number 0 that all is well.
const ERROR: u16 = 2;
/// The end of a list.
const DONE: u16 = 3;

/// One entry of a list: its kind and its body.
pub type Entry = (u16, Vec<u8>);

/// The socket. It stays in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens one in this thread's network namespace.
    pub fn open() -> io::Result<Netlink> {
        Ok(Netlink { socket: sys::route_socket()?, sequence: 0 })
    }

    /// Has the kernel do one thing.
    pub fn request(&mut self, message: Message) -> io::Result<()> {
        self.exchange(message).map(drop)
    }

    /// Returns a list.
    pub fn list(&mut self, message: Message) -> io::Result<Vec<Entry>> {
        self.exchange(message)
    }

    /// Sends a message and returns the entries of the answer before its end. The kernel has its answer ready when the
    /// message is sent, and the rest of a list when the part before has been read: nothing is waited for.
    fn exchange(&mut self, message: Message) -> io::Result<Vec<Entry>> {
        self.sequence += 1;
        sys::send(self.socket.as_fd(), &message.finish(self.sequence))?;
        let mut entries = Vec::new();
        let mut answer = vec![0; ANSWER_MAX];
        loop {
            let length = sys::receive(self.socket.as_fd(), &mut answer)?;
            let mut rest = &answer[..length];
            while let Some((kind, sequence, body)) = message::next(&mut rest) {
                match kind {
                    _ if sequence != self.sequence => {}
                    ERROR => {
                        let number = message::number(body).cast_signed();
                        let error = io::Error::from_raw_os_error(number.wrapping_neg());
                        return if number == 0 { Ok(entries) } else { Err(error) };
                    }
                    DONE => return Ok(entries),
                    _ if entries.len() == ENTRIES_MAX => {
                        return Err(io::Error::other(format!("more than {ENTRIES_MAX} entries")));
                    }
                    kind => entries.push((kind, body.to_vec())),
                }
            }
        }
    }
}
