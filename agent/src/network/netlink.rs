//! A rtnetlink socket: requests and their answers.

use alloc::vec::Vec;

use netlink::{Link, Message, Reply, replies};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{Errno, Result as IoResult};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};

use crate::fault::{Fault, Step};
use crate::sys;

/// The most of an answer that is read at a time; the kernel cuts a list to what is read.
const ANSWER_MAX: usize = 16 << 10;
/// The most interfaces that are looked at.
const LINKS_MAX: usize = 1024;

/// The socket.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens one in the agent's own network.
    pub fn open() -> Result<Netlink, Fault> {
        // NETLINK_ROUTE is protocol 0, which is what no protocol means.
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
                .step("open", "netlink socket")?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Has the kernel do one thing.
    pub fn request(&mut self, message: Message) -> IoResult<()> {
        self.exchange(message, &mut |_| {})
    }

    /// Returns every interface.
    pub fn links(&mut self) -> IoResult<Vec<Link>> {
        let mut links = Vec::new();
        self.exchange(Link::list_request(), &mut |body| {
            if links.len() < LINKS_MAX {
                links.extend(Link::parse(body));
            }
        })?;
        Ok(links)
    }

    /// Sends a message and hands each entry of the answer to `take`, until the reply that ends it.
    fn exchange(&mut self, message: Message, take: &mut dyn FnMut(&[u8])) -> IoResult<()> {
        self.sequence += 1;
        rustix::net::send(&self.socket, &message.finish(self.sequence), SendFlags::empty())?;
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
