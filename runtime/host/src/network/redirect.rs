//! Traffic control that makes a tap the other end of an interface: what comes in at one goes out at the other, both ways,
//! and the host's own stack sees none of it.
//!
//! Each gets an ingress queueing discipline with one filter, `matchall`, and its action, `mirred` (tc-mirred(8)). They go
//! with their interface. The tap's goes with us; the other outlives us where the namespace does, so that it bears a
//! mark: what a process left that was killed is told from what somebody else made.

use std::io;

use netlink::traffic::{self, Filter};

use super::netlink::Netlink;

/// The filter's handle, by which it is known as ours: "vmm".
const MARK: u32 = 0x76_6d6d;

/// Redirects what comes in at `from` to `to`.
pub fn redirect(netlink: &mut Netlink, from: u32, to: u32) -> io::Result<()> {
    match netlink.request(traffic::create_ingress(from)) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
            remove_ours(netlink, from)?;
            netlink.request(traffic::create_ingress(from))?;
        }
        other => other?,
    }
    netlink.request(traffic::create_redirection(from, to, MARK))
}

/// Takes an interface's redirection away.
pub fn remove_ours(netlink: &mut Netlink, from: u32) -> io::Result<()> {
    if !is_ours(netlink, from)? {
        return Err(io::Error::other("it has an ingress queueing discipline of somebody else's"));
    }
    // A clsact in the same place, whose filters are not in this list, is refused by the kernel.
    netlink.request(traffic::delete_ingress(from))
}

/// Takes away what a process left that was killed: a redirection that bears our mark, and nothing else.
pub fn remove_left(netlink: &mut Netlink, from: u32) -> io::Result<()> {
    let marks = marks(netlink, from)?;
    if marks.is_empty() || marks.contains(&false) {
        return Ok(());
    }
    remove_ours(netlink, from)
}

/// Whether every filter of the ingress discipline bears our mark. It may have none: then its maker was killed early.
fn is_ours(netlink: &mut Netlink, link: u32) -> io::Result<bool> {
    Ok(!marks(netlink, link)?.contains(&false))
}

/// Of each filter of the ingress discipline, whether it bears our mark.
fn marks(netlink: &mut Netlink, link: u32) -> io::Result<Vec<bool>> {
    // One that cannot be read is somebody else's.
    let marked = |body: &[u8]| Some(Filter::parse(body).is_some_and(|filter| is_marked(&filter)));
    netlink.list(traffic::list_filters(link), marked)
}

fn is_marked(filter: &Filter) -> bool {
    // The kernel lists a filter's head, with handle 0, before its parts.
    filter.kind == "matchall" && (filter.handle == MARK || filter.handle == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_of_another_kind_or_handle_is_somebody_elses() {
        let marked = |handle, kind: &str| is_marked(&Filter { handle, kind: kind.into() });
        assert!(marked(MARK, "matchall") && marked(0, "matchall"));
        assert!(!marked(1, "matchall") && !marked(MARK, "flower") && !marked(0, ""));
    }
}
