//! A rtnetlink socket: sends requests and parses the replies.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use netlink::{Message, Reply, replies};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::{HostError, sys};

/// Maximum bytes of a reply per read. The kernel divides lists accordingly.
const ANSWER_MAX: usize = 32 << 10;
/// Maximum number of entries in a list.
const ENTRIES_MAX: usize = 4096;

/// Returns a rtnetlink socket in this thread's network namespace.
pub fn socket() -> io::Result<OwnedFd> {
    // Protocol 0 is NETLINK_ROUTE.
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?)
}

/// The socket. It belongs to the network namespace in which it was opened.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in this thread's network namespace.
    pub fn open() -> Result<Netlink, HostError> {
        Ok(Netlink { socket: socket().map_err(HostError::step("open a netlink socket"))?, sequence: 0 })
    }

    pub fn index_of(&self, name: &str) -> io::Result<u32> {
        Ok(name_to_index(&self.socket, name)?)
    }

    /// Sends a request and checks its acknowledgement.
    pub fn request(&mut self, message: Message) -> io::Result<()> {
        self.list(message, |_| None::<()>).map(drop)
    }

    /// Sends a request and returns what `parse` returns for the entries of the reply. Reads do not block: the kernel
    /// has the reply ready when the request was sent, and the rest of a list when the previous part was read.
    pub fn list<T>(&mut self, message: Message, parse: impl Fn(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
        self.sequence += 1;
        sys::send(self.socket.as_fd(), &message.into_bytes(self.sequence))?;
        let (mut entries, mut count) = (Vec::new(), 0);
        let mut answer = vec![0; ANSWER_MAX];
        loop {
            let length = sys::receive(self.socket.as_fd(), &mut answer)?;
            for reply in replies(&answer[..length], self.sequence) {
                match reply {
                    Reply::Done => return Ok(entries),
                    Reply::Failed(number) => return Err(io::Error::from_raw_os_error(number)),
                    Reply::Entry(_) if count == ENTRIES_MAX => {
                        return Err(io::Error::other(format!("more than {ENTRIES_MAX} entries")));
                    }
                    Reply::Entry(body) => entries.extend(parse(body)),
                }
                count += 1;
            }
        }
    }
}
