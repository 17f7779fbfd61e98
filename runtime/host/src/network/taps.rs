//! The taps behind a machine's NICs, each joined to an interface of the namespace by traffic control.

use std::io;
use std::net::IpAddr;

use netlink::{Link, LinkChange};

use super::netlink::Netlink;
use super::{NetworkError, Nic, Result, redirect};
use crate::sys;

/// The taps are `vmm` with the number of their interface.
pub const PREFIX: &str = "vmm";

/// An interface and its tap, by their numbers.
#[derive(Debug)]
struct Joined {
    link: u32,
    tap: u32,
    /// Packets are redirected between them.
    redirected: bool,
}

/// Interfaces that are joined to taps. Dropping it parts them; the taps end with their descriptors.
#[derive(Debug)]
pub struct Taps {
    /// A socket in their namespace.
    pub netlink: Netlink,
    joined: Vec<Joined>,
}

/// The name of an interface's tap.
pub fn name(link: u32) -> String {
    format!("{PREFIX}{link}")
}

impl Taps {
    /// Without any tap yet, through a socket in the namespace that they are to be in.
    pub fn new(netlink: Netlink) -> Taps {
        Taps { netlink, joined: Vec::new() }
    }

    /// Makes the tap of one interface, which has `addresses`, and redirects between them. Where that fails, dropping this clears up, or
    /// [`part`](Self::part).
    pub fn join(&mut self, link: &Link, addresses: Vec<IpAddr>) -> Result<Nic> {
        let failed = |step| move |source| NetworkError::Interface { step, name: link.name.clone(), source };
        let unsupported =
            |why: &str| NetworkError::Unsupported { name: link.name.clone(), why: why.to_owned() };
        let mac = link.mac.as_slice().try_into().map_err(|_| unsupported("not an Ethernet interface"))?;
        let mtu = link.mtu.try_into().map_err(|_| unsupported("packets longer than 65535 bytes"))?;
        // Whoever has this tap has the interface: a second machine ends here, before it changes anything.
        let name = name(link.index);
        let tap = sys::tap(&name).map_err(failed("make a tap for"))?;
        let index = sys::interface_index(&name).map_err(failed("find the tap of"))?;
        // The tap has no address of its own making: its host says nothing to the guest.
        let quiet = Link::change_request(index, &[LinkChange::NoGeneratedAddress]);
        self.netlink.request(quiet).or_else(without_ipv6).map_err(failed("set up the tap of"))?;
        let up = Link::change_request(index, &[LinkChange::Up, LinkChange::Mtu(link.mtu)]);
        self.netlink.request(up).map_err(failed("set up the tap of"))?;
        self.joined.push(Joined { link: link.index, tap: index, redirected: true });
        for (from, to) in [(link.index, index), (index, link.index)] {
            redirect::redirect(&mut self.netlink, from, to).map_err(failed("redirect the packets of"))?;
        }
        Ok(Nic { tap, link: link.index, mac, mtu, addresses })
    }

    /// Ends an interface's redirection. Its tap is known as ours for as long as somebody holds it.
    pub fn part(&mut self, link: u32) {
        for joined in self.joined.iter_mut().filter(|it| it.link == link && it.redirected) {
            joined.redirected = false;
            // It may be gone, or have none if that is what failed.
            let _ = redirect::remove_ours(&mut self.netlink, link);
        }
    }

    /// Whether an interface is one of these taps.
    pub fn has(&self, index: u32) -> bool {
        self.joined.iter().any(|joined| joined.tap == index)
    }
}

impl Drop for Taps {
    fn drop(&mut self) {
        let links: Vec<u32> = self.joined.iter().map(|joined| joined.link).collect();
        links.into_iter().for_each(|link| self.part(link));
    }
}

/// A kernel without IPv6 makes none, either.
fn without_ipv6(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL) => Ok(()),
        _ => Err(error),
    }
}
