//! Connects a tap and an interface by traffic control: packets that arrive at one leave at the other, in both
//! directions, and the host's network stack does not see them.
//!
//! Each of the two gets an ingress queueing discipline with one filter, `matchall`, and its action, `mirred`
//! (tc-mirred(8)). These disappear with their interface: on the tap with this process, on the other interface with the
//! namespace, which may exist longer. The filter's handle marks it, so that the leftovers of a killed process are
//! distinguished from filters of other programs.

use std::io;

use netlink::traffic::{self, Filter};

use super::netlink::Netlink;

/// Handle of the filters that this program creates: "vmm".
const MARK: u32 = 0x76_6d6d;

/// Redirects packets that arrive at `from` to `to`.
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

/// Removes an interface's redirection. Refuses an ingress discipline of another program. One of this program may have
/// no filters, if the process was killed early.
pub fn remove_ours(netlink: &mut Netlink, from: u32) -> io::Result<()> {
    if marks(netlink, from)?.contains(&false) {
        return Err(io::Error::other("the interface has an ingress queueing discipline of another program"));
    }
    // For a clsact discipline, whose filters are not in this list, the kernel refuses the request.
    netlink.request(traffic::delete_ingress(from))
}

/// Removes the redirection that a killed process has left, if all filters are marked, and nothing else.
pub fn remove_left(netlink: &mut Netlink, from: u32) -> io::Result<()> {
    let marks = marks(netlink, from)?;
    if marks.is_empty() || marks.contains(&false) { Ok(()) } else { remove_ours(netlink, from) }
}

/// Returns for each filter of the ingress discipline whether it is marked.
fn marks(netlink: &mut Netlink, link: u32) -> io::Result<Vec<bool>> {
    // A filter that cannot be parsed belongs to another program.
    let marked = |body: &[u8]| Some(Filter::parse(body).is_some_and(|filter| is_marked(&filter)));
    netlink.list(traffic::list_filters(link), marked)
}

fn is_marked(filter: &Filter) -> bool {
    // The kernel lists the head of a filter, with handle 0, before its parts.
    filter.kind == "matchall" && (filter.handle == MARK || filter.handle == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_of_another_kind_or_handle_is_not_marked() {
        let marked = |handle, kind: &str| is_marked(&Filter { handle, kind: kind.into() });
        assert!(marked(MARK, "matchall") && marked(0, "matchall"));
        assert!(!marked(1, "matchall") && !marked(MARK, "flower") && !marked(0, ""));
    }
}
