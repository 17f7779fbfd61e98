//! Traffic control that makes a tap the other end of an interface: what comes in at one goes out at the other, both ways,
//! and the host's own stack sees none of it.
//!
//! Each gets an ingress queueing discipline with one filter, `matchall`, and its action, `mirred` (tc-mirred(8)). They go
//! with their interface. The tap's goes with us; the other outlives us where the namespace does, so that it bears a
//! mark: what a process left that was killed is told from what somebody else made.

use std::io;

use super::message::{Message, Nest, attributes, number, text};
use super::netlink::Netlink;

/// Kinds of messages.
mod kind {
    pub(super) const NEW_QDISC: u16 = 36;
    pub(super) const DELETE_QDISC: u16 = 37;
    pub(super) const NEW_FILTER: u16 = 44;
    pub(super) const GET_FILTER: u16 = 46;
}

/// The ingress discipline: its handle, and its place (linux/pkt_sched.h).
const INGRESS: u32 = 0xffff_0000;
const AT_INGRESS: u32 = 0xffff_fff1;
/// The filter's handle, by which it is known as ours: "vmm".
const MARK: u32 = 0x76_6d6d;
/// Of the first priority, for every protocol (ETH_P_ALL), in network byte order.
const FOR_ALL: u32 = 1 << 16 | 0x0003u16.to_be() as u32;

/// TCA_KIND, TCA_OPTIONS; inside an action they are the same numbers.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;

/// Redirects what comes in at `from` to `to`.
pub fn redirect(netlink: &mut Netlink, from: u32, to: u32) -> io::Result<()> {
    let discipline =
        || Message::create(kind::NEW_QDISC, &place(from, INGRESS, AT_INGRESS, 0)).with(KIND, b"ingress\0");
    match netlink.request(discipline()) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
            remove_ours(netlink, from)?;
            netlink.request(discipline())?;
        }
        other => other?,
    }
    netlink.request(filter(from, to))
}

/// Takes an interface's redirection away.
pub fn remove_ours(netlink: &mut Netlink, from: u32) -> io::Result<()> {
    if !is_ours(netlink, from)? {
        return Err(io::Error::other("it has an ingress queueing discipline of somebody else's"));
    }
    // Named, so that a clsact in the same place, whose filters are not in this list, is never taken for it.
    let discipline = Message::change(kind::DELETE_QDISC, &place(from, INGRESS, AT_INGRESS, 0));
    netlink.request(discipline.with(KIND, b"ingress\0"))
}

/// Takes away what a process left that was killed: a redirection that bears our mark, and nothing else.
pub fn remove_left(netlink: &mut Netlink, from: u32) -> io::Result<()> {
    let marks = marks(netlink, from)?;
    if marks.is_empty() || marks.contains(&false) {
        return Ok(());
    }
    remove_ours(netlink, from)
}

fn filter(from: u32, to: u32) -> Message {
    const MIRRED_PARAMETERS: u16 = 2;
    const MATCHALL_ACTIONS: u16 = 2;
    const FIRST: u16 = 1;
    let options = Nest::default().with(MIRRED_PARAMETERS, &mirred(to));
    let action = Nest::default().with(KIND, b"mirred\0").nest(OPTIONS, options);
    let matchall = Nest::default().nest(MATCHALL_ACTIONS, Nest::default().nest(FIRST, action));
    Message::create(kind::NEW_FILTER, &place(from, MARK, INGRESS, FOR_ALL))
        .with(KIND, b"matchall\0")
        .nest(OPTIONS, matchall)
}

/// tc_mirred: index, capabilities, action, two counts, what to do, interface.
fn mirred(to: u32) -> [u8; 28] {
    const STOLEN: u32 = 4;
    const REDIRECT_OUT: u32 = 1;
    let mut parameters = [0; 28];
    for (at, number) in [(8, STOLEN), (20, REDIRECT_OUT), (24, to)] {
        parameters[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    }
    parameters
}

/// tcmsg: family, interface, handle, parent, info.
fn place(link: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut body = [0; 20];
    for (at, number) in [(4, link), (8, handle), (12, parent), (16, info)] {
        body[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    }
    body
}

/// Whether every filter of the ingress discipline bears our mark. It may have none: then its maker was killed early.
fn is_ours(netlink: &mut Netlink, link: u32) -> io::Result<bool> {
    Ok(!marks(netlink, link)?.contains(&false))
}

/// Of each filter of the ingress discipline, whether it bears our mark.
fn marks(netlink: &mut Netlink, link: u32) -> io::Result<Vec<bool>> {
    let filters = netlink.list(Message::list(kind::GET_FILTER, &place(link, 0, INGRESS, 0)))?;
    let is_marked = |body: &[u8]| {
        let handle = number(body.get(8..).unwrap_or_default());
        let kind = attributes(body.get(20..).unwrap_or_default()).find(|(kind, _)| *kind == KIND);
        // The kernel lists a filter's head, with handle 0, before its parts.
        kind.is_some_and(|(_, name)| text(name) == "matchall") && (handle == MARK || handle == 0)
    };
    Ok(filters.iter().map(|(_, body)| is_marked(body)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_is_the_kernels_to_the_byte() {
        #[rustfmt::skip]
        assert_eq!(filter(2, 5).finish(1), [
            112, 0, 0, 0, 44, 0, 5, 6, 1, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 2, 0, 0, 0, 0x6d, 0x6d, 0x76, 0, 0, 0, 0xff, 0xff, 0, 3, 1, 0,
            13, 0, 1, 0, b'm', b'a', b't', b'c', b'h', b'a', b'l', b'l', 0, 0, 0, 0,
            60, 0, 2, 0, 56, 0, 2, 0, 52, 0, 1, 0,
            11, 0, 1, 0, b'm', b'i', b'r', b'r', b'e', b'd', 0, 0,
            36, 0, 2, 0, 32, 0, 2, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0,
        ]);
    }
}
