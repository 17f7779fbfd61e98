//! A rtnetlink socket: requests and their answers.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{Errno, Result as IoResult};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};

use super::message::{self, HEADER, LINK, attribute};
use crate::fault::{Fault, Step};
use crate::sys;

/// The most of an answer that is read at a time; the kernel cuts a list to what is read.
const ANSWER_MAX: usize = 16 << 10;
/// The most interfaces that are looked at.
const LINKS_MAX: usize = 1024;
/// An error, or with number 0 that all is well.
const ERROR: u16 = 2;
/// The end of a list.
const DONE: u16 = 3;
/// RTM_NEWLINK.
const NEW_LINK: u16 = 16;

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address, `aa:bb:cc:dd:ee:ff`.
    pub address: String,
}

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
    pub fn request(&mut self, message: &[u8]) -> IoResult<()> {
        self.exchange(message, |_, _| {})
    }

    /// Returns every interface.
    pub fn links(&mut self) -> IoResult<Vec<Link>> {
        let mut links = Vec::new();
        self.exchange(&message::all_links(), |kind, body| {
            if kind == NEW_LINK && links.len() < LINKS_MAX {
                links.extend(link(body));
            }
        })?;
        Ok(links)
    }

    /// Sends a message and hands each part of the answer to `take`, until the one that ends it.
    fn exchange(&mut self, message: &[u8], mut take: impl FnMut(u16, &[u8])) -> IoResult<()> {
        self.sequence += 1;
        let mut message = message.to_vec();
        message::number(&mut message, self.sequence);
        rustix::net::send(&self.socket, &message, SendFlags::empty())?;
        let mut answer = Vec::new();
        loop {
            answer.clear();
            if sys::read_append(self.socket.as_fd(), &mut answer, ANSWER_MAX)? == 0 {
                return Err(Errno::IO);
            }
            let mut rest = answer.as_slice();
            while let Some((kind, sequence, body)) = next(&mut rest) {
                match kind {
                    _ if sequence != self.sequence => {}
                    ERROR => {
                        let number = body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                        return if number == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(-number)) };
                    }
                    DONE => return Ok(()),
                    kind => take(kind, body),
                }
            }
        }
    }
}

/// Takes the next message off the front of `rest`: its type, sequence number and body.
fn next<'a>(rest: &mut &'a [u8]) -> Option<(u16, u32, &'a [u8])> {
    let header: &[u8; HEADER] = rest.first_chunk()?;
    let [a, b, c, d, e, f, _, _, g, h, i, j, ..] = *header;
    let length = u32::from_ne_bytes([a, b, c, d]) as usize;
    let body = rest.get(HEADER..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16::from_ne_bytes([e, f]), u32::from_ne_bytes([g, h, i, j]), body))
}

fn link(body: &[u8]) -> Option<Link> {
    let mut rest = body.get(LINK..)?;
    let mut link = Link { index: u32::from_ne_bytes(*body[4..].first_chunk()?), ..Link::default() };
    while let Some([a, b, c, d]) = rest.first_chunk() {
        let length = usize::from(u16::from_ne_bytes([*a, *b]));
        let Some(data) = rest.get(4..length) else { break };
        match u16::from_ne_bytes([*c, *d]) {
            attribute::LINK_NAME => {
                link.name = String::from_utf8_lossy(data.strip_suffix(&[0]).unwrap_or(data)).into_owned();
            }
            attribute::LINK_ADDRESS => {
                for (at, byte) in data.iter().enumerate() {
                    // Writing to a String does not fail.
                    let _ = write!(link.address, "{}{byte:02x}", if at > 0 { ":" } else { "" });
                }
            }
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_is_read_from_its_attributes() {
        let mut body = vec![0; LINK];
        body[4] = 7;
        body.extend([7, 0, 3, 0, b'l', b'o', 0, 0]);
        body.extend([10, 0, 1, 0, 2, 0x1a, 0xff, 0, 0, 1, 0, 0]);
        body.extend([8, 0, 4, 0, 0, 0, 1, 0]);
        let expected = Link { index: 7, name: "lo".into(), address: "02:1a:ff:00:00:01".into() };
        assert_eq!(link(&body), Some(expected));
    }

    #[test]
    fn broken_answers_end_and_do_not_panic() {
        for length in 0..HEADER {
            assert_eq!(next(&mut vec![0; length].as_slice()), None);
        }
        let mut short = [0; HEADER];
        short[0] = 255;
        assert_eq!(next(&mut short.as_slice()), None);
        short[0] = 3;
        assert_eq!(next(&mut short.as_slice()), None);
        assert_eq!(link(&[0; LINK - 1]), None);
        let mut odd = vec![0; LINK];
        odd.extend([2, 0, 3, 0]);
        assert_eq!(link(&odd), Some(Link::default()));
    }
}
