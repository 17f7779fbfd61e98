//! The taps of a machine's NICs, each connected to an interface of the namespace by traffic control.

use std::io;
use std::net::IpAddr;

use netlink::{Link, LinkChange};

use super::netlink::Netlink;
use super::{NetworkError, Nic, Result, redirect};
use crate::sys;

/// Prefix of a tap's name, followed by the index of its interface.
pub const PREFIX: &str = "vmm";

/// Indexes of an interface and its tap.
#[derive(Debug)]
struct Redirection {
    link: u32,
    tap: u32,
    /// Whether packets are redirected between them.
    redirected: bool,
}

/// Connections of interfaces to taps. Dropping it ends the redirections; the taps disappear with their descriptors.
#[derive(Debug)]
pub struct Taps {
    /// A socket in the namespace of the interfaces.
    pub netlink: Netlink,
    joined: Vec<Redirection>,
}

/// Returns the name of an interface's tap.
pub fn name(link: u32) -> String {
    format!("{PREFIX}{link}")
}

impl Taps {
    pub fn new(netlink: Netlink) -> Taps {
        Taps { netlink, joined: Vec::new() }
    }

    /// Creates the tap of an interface with `addresses`, and redirects packets between them. After an error,
    /// [`disconnect`](Self::disconnect) or dropping this cleans up.
    pub fn connect(&mut self, link: &Link, addresses: Vec<IpAddr>) -> Result<Nic> {
        let failed = |step| move |source| NetworkError::Interface { step, name: link.name.clone(), source };
        let unsupported =
            |why: &str| NetworkError::Unsupported { name: link.name.clone(), why: why.to_owned() };
        let mac = link.mac.as_slice().try_into().map_err(|_| unsupported("not an Ethernet interface"))?;
        let mtu = link.mtu.try_into().map_err(|_| unsupported("packets longer than 65535 bytes"))?;
        // The tap's owner owns the interface: a second machine fails here, before it changes anything.
        let name = name(link.index);
        let tap = sys::tap(&name).map_err(failed("create a tap for"))?;
        let index = self.netlink.index_of(&name).map_err(failed("find the tap of"))?;
        // The tap gets no address of its own: the host sends nothing to the guest over it.
        let quiet = Link::change_request(index, &[LinkChange::NoGeneratedAddress]);
        self.netlink.request(quiet).or_else(without_ipv6).map_err(failed("set up the tap of"))?;
        let up = Link::change_request(index, &[LinkChange::Up, LinkChange::Mtu(link.mtu)]);
        self.netlink.request(up).map_err(failed("set up the tap of"))?;
        self.joined.push(Redirection { link: link.index, tap: index, redirected: true });
        for (from, to) in [(link.index, index), (index, link.index)] {
            redirect::redirect(&mut self.netlink, from, to).map_err(failed("redirect the packets of"))?;
        }
        Ok(Nic { tap, link: link.index, mac, mtu, addresses })
    }

    /// Ends the redirection of an interface. Its tap is still recognized as long as its descriptor is open.
    pub fn disconnect(&mut self, link: u32) {
        for joined in self.joined.iter_mut().filter(|it| it.link == link && it.redirected) {
            joined.redirected = false;
            // The redirection may be missing, with its interface or after an error.
            let _ = redirect::remove_ours(&mut self.netlink, link);
        }
    }

    /// Whether the interface with this index is one of these taps.
    pub fn has(&self, index: u32) -> bool {
        self.joined.iter().any(|joined| joined.tap == index)
    }
}

impl Drop for Taps {
    fn drop(&mut self) {
        let links: Vec<u32> = self.joined.iter().map(|joined| joined.link).collect();
        links.into_iter().for_each(|link| self.disconnect(link));
    }
}

/// A kernel without IPv6 creates no IPv6 address anyway.
fn without_ipv6(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL) => Ok(()),
        _ => Err(error),
    }
}
