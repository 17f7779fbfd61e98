//! An rtnetlink socket: sends requests and reads their answers.

use alloc::vec::Vec;

use netlink::{Link, Message, Reply, replies};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{Errno, Result as IoResult};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};

use crate::error::{Error, Step};
use crate::sys;

/// Limit of bytes that are read at a time. The kernel splits lists accordingly.
const ANSWER_MAX: usize = 16 << 10;
/// Limit of interfaces that are read.
const LINKS_MAX: usize = 1024;

/// An rtnetlink socket.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the agent's network namespace.
    pub fn open() -> Result<Netlink, Error> {
        // NETLINK_ROUTE is protocol 0, the default.
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
                .step("open", "netlink socket")?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Sends one request and waits for its result.
    pub fn request(&mut self, message: Message) -> IoResult<()> {
        self.exchange(message, &mut |_| {})
    }

    /// Returns all interfaces.
    pub fn links(&mut self) -> IoResult<Vec<Link>> {
        let mut links = Vec::new();
        self.exchange(Link::list_request(), &mut |body| {
            if links.len() < LINKS_MAX {
                links.extend(Link::parse(body));
            }
        })?;
        Ok(links)
    }

    /// Sends a message and passes each entry of the answer to `take`, until the last reply.
    fn exchange(&mut self, message: Message, take: &mut dyn FnMut(&[u8])) -> IoResult<()> {
        self.sequence += 1;
        rustix::net::send(&self.socket, &message.into_bytes(self.sequence), SendFlags::empty())?;
        let mut answer = Vec::new();
        loop {
            answer.clear();
            if sys::read_append(self.socket.as_fd(), &mut answer, ANSWER_MAX)? == 0 {
                return Err(Errno::IO);
            }
            for reply in replies(&answer, self.sequence) {
                match reply {
                    Reply::Entry(body) => take(body),
                    Reply::Done => return Ok(()),
                    Reply::Failed(number) => return Err(Errno::from_raw_os_error(number)),
                }
            }
        }
    }
}
