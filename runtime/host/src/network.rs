//! A pod's network: the interfaces of a network namespace of the host, in the guest.
//!
//! For every interface there is a NIC in the guest with the same hardware address, largest packet, addresses, routes and
//! neighbours, over a tap that traffic control joins to the interface ([`redirect`]). The interface itself keeps what it
//! has. Nothing outside of the namespace changes, and with us the taps go. What changes in the namespace while the machine
//! runs can be asked for ([`Network::look_again`]).
//!
//! The process is in the namespace itself: it enters with its main thread before the machine's threads start, which
//! are in it then too. So whoever looks a pod's network up by its process (hooks, nsenter(1)) finds it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

pub use self::found::{Address, Found, Link, Neighbour, Route};
use self::netlink::Netlink;
use self::taps::Taps;
use self::watch::Watch;
use crate::sys;

mod found;
mod netlink;
mod redirect;
mod taps;
mod watch;

/// The most interfaces: each takes one of the machine's interrupts, and the console, the share and the entropy have three.
pub const NICS_MAX: usize = 16;

/// How many may come while a machine runs: each is a place that its kernel looks at once when it boots.
const SPARE_NICS: usize = 4;

/// Why a pod cannot have its network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The namespace cannot be entered.
    #[error("join network namespace {}", path.display())]
    Join {
        /// The namespace.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The namespace is the host's.
    #[error("join network namespace {}: the host's own network cannot be the guest's", path.display())]
    Host {
        /// The namespace.
        path: PathBuf,
    },
    /// What is in the namespace cannot be listed.
    #[error("list the network namespace")]
    List(#[source] io::Error),
    /// There are too many interfaces.
    #[error("network namespace: {0} interfaces, the most are {NICS_MAX}")]
    TooMany(usize),
    /// Something in it cannot be in a guest.
    #[error("network interface {name}: {why}")]
    Unsupported {
        /// The interface.
        name: String,
        /// What it has or is.
        why: String,
    },
    /// An interface cannot be joined to a NIC.
    #[error("{step} network interface {name}")]
    Interface {
        /// What for.
        step: &'static str,
        /// The interface.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// This module's result.
pub type Result<T, E = NetworkError> = std::result::Result<T, E>;

/// What stands behind one NIC of the machine.
#[derive(Debug)]
pub struct Nic {
    /// The tap, non-blocking, with headers.
    pub tap: OwnedFd,
    /// The interface's number in its namespace.
    pub link: u32,
    /// The hardware address.
    pub mac: [u8; 6],
    /// Bytes of the largest packet.
    pub mtu: u16,
    /// The interface's addresses.
    pub addresses: Vec<IpAddr>,
}

/// The interfaces of the process's network namespace, joined to taps until it is dropped.
#[derive(Debug, Default)]
pub struct Network {
    /// In the order in which the machine gets them, so that the guest's kernel gives as many as can be their names.
    pub nics: Vec<Nic>,
    found: Found,
    /// None where nothing is joined, and nothing is to come.
    taps: Option<Taps>,
    /// None where changes are nobody's business.
    watch: Option<Watch>,
}

/// Enters the network namespace `path`, for this thread and those that it starts.
///
/// # Errors
///
/// Also where it is the namespace in which we, or the host's first process, are.
pub fn enter(path: &Path) -> Result<()> {
    let join = |source| NetworkError::Join { path: path.to_owned(), source };
    let namespace = File::open(path).map_err(join)?;
    let place = namespace.metadata().map(|it| (it.dev(), it.ino())).map_err(join)?;
    // Of the first process we may not be told; then we may not enter its network, either.
    let hosts = ["/proc/self/ns/net", "/proc/1/ns/net"].map(fs::metadata);
    if hosts.iter().flatten().any(|host| (host.dev(), host.ino()) == place) {
        return Err(NetworkError::Host { path: path.to_owned() });
    }
    sys::enter_network(namespace.as_fd()).map_err(join)
}

/// Takes away what a process that was killed left on the interfaces of the namespace `path`. What a machine has that lives
/// stays, and so does the caller's own namespace.
pub fn clear(path: &Path) -> Result<()> {
    let clear = || {
        enter(path)?;
        let mut netlink = Netlink::open().map_err(NetworkError::List)?;
        let links = Found::list(&mut netlink).map_err(NetworkError::List)?.links;
        let has_tap = |link: &Link| links.iter().any(|it| it.name == taps::name(link.index));
        for link in links.iter().filter(|link| !has_tap(link)) {
            let left = redirect::remove_left(&mut netlink, link.index);
            left.map_err(|source| NetworkError::Interface {
                step: "clear",
                name: link.name.clone(),
                source,
            })?;
        }
        Ok(())
    };
    // A thread is in a namespace; this one is not to be.
    thread::scope(|scope| scope.spawn(clear).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

impl Network {
    /// Joins the interfaces of the namespace that this thread is in to taps.
    pub fn of_this_namespace() -> Result<Network> {
        let mut netlink = Netlink::open().map_err(NetworkError::List)?;
        let mut found = Found::list(&mut netlink).map_err(NetworkError::List)?;
        keep_wanted(&mut found);
        check(&found)?;
        in_slots(&mut found.links);
        let mut taps = Taps::new(netlink);
        let join = |link: &Link| taps.join(link, found.addresses_of(link.index));
        let nics = found.links.iter().map(join).collect::<Result<_>>()?;
        Ok(Network { nics, found, taps: Some(taps), watch: None })
    }

    /// As [`of_this_namespace`](Self::of_this_namespace), and hears of everything that changes there from then on.
    pub fn followed() -> Result<Network> {
        let watch = Watch::open().map_err(NetworkError::List)?;
        Ok(Network { watch: Some(watch), ..Network::of_this_namespace()? })
    }

    /// How many NICs more may come while the machine runs.
    pub fn spare_nics(&self) -> usize {
        self.watch.as_ref().map_or(0, |_| SPARE_NICS.min(NICS_MAX.saturating_sub(self.nics.len())))
    }

    /// Readable when something may have changed.
    pub fn changes_fd(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(Watch::fd)
    }

    /// Lists the namespace again. Returns what was found the last time; [`found`](Self::found) is what is there now. `None`
    /// for a namespace that is not watched.
    ///
    /// # Errors
    ///
    /// Something in the namespace cannot be in a guest; then [`found`](Self::found) stays as it was.
    pub fn look_again(&mut self) -> Result<Option<Found>> {
        let (Some(watch), Some(taps)) = (&self.watch, &mut self.taps) else { return Ok(None) };
        watch.drain();
        let mut found = Found::list(&mut taps.netlink).map_err(NetworkError::List)?;
        found.links.retain(|link| !taps.has(link.index));
        keep_wanted(&mut found);
        check(&found)?;
        Ok(Some(std::mem::replace(&mut self.found, found)))
    }

    /// The interfaces that are for the guest, and what they have.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// The addresses of each interface, as they were found last.
    pub fn addresses(&self) -> impl Iterator<Item = (u32, Vec<IpAddr>)> {
        self.found.links.iter().map(|link| (link.index, self.found.addresses_of(link.index)))
    }

    /// Joins an interface that has come to a tap. Where that fails it is to be [removed](Self::remove).
    pub fn add(&mut self, link: &Link) -> Result<Nic> {
        match &mut self.taps {
            Some(taps) => taps.join(link, self.found.addresses_of(link.index)),
            None => Err(NetworkError::List(io::ErrorKind::NotFound.into())),
        }
    }

    /// Ends the redirection of an interface that is gone, or cannot be the guest's; what was found of it is forgotten, so
    /// that it is new again at the next look.
    pub fn remove(&mut self, link: u32) {
        if let Some(taps) = &mut self.taps {
            taps.part(link);
        }
        self.found.links.retain(|it| it.index != link);
        keep_wanted(&mut self.found);
    }
}

/// Leaves in `found` what is for the guest: interfaces that are up or have addresses, and what is theirs.
fn keep_wanted(found: &mut Found) {
    let has_address: BTreeSet<u32> = found.addresses.iter().map(|address| address.link).collect();
    let up = |flags: u32| flags & libc::IFF_UP as u32 != 0;
    let loopback = |flags: u32| flags & libc::IFF_LOOPBACK as u32 != 0;
    found.links.retain(|it| !loopback(it.flags) && (up(it.flags) || has_address.contains(&it.index)));
    let kept: BTreeSet<u32> = found.links.iter().map(|link| link.index).collect();
    found.addresses.retain(|it| kept.contains(&it.link));
    found.neighbours.retain(|it| kept.contains(&it.link));
    // One over several interfaces is kept to be refused.
    found.routes.retain(|it| kept.contains(&it.link) || it.beyond.is_some() && it.link == 0);
}

/// Refuses what cannot be the same in a guest.
fn check(found: &Found) -> Result<()> {
    if found.links.is_empty() {
        return Ok(());
    }
    if found.links.len() > NICS_MAX {
        return Err(NetworkError::TooMany(found.links.len()));
    }
    let name = |index: u32| found.links.iter().find(|it| it.index == index).map_or("?", |it| &it.name);
    let unsupported =
        |link: u32, why: String| Err(NetworkError::Unsupported { name: name(link).to_owned(), why });
    let mut macs = BTreeSet::new();
    for link in &found.links {
        if link.driver == "tun" && link.name.starts_with(taps::PREFIX) {
            return unsupported(link.index, "another virtual machine is in this namespace".to_owned());
        }
        if link.hardware != libc::ARPHRD_ETHER {
            return unsupported(link.index, "not an Ethernet interface".to_owned());
        }
        // The guest tells its NICs apart by them.
        if !macs.insert(&link.mac) {
            return unsupported(link.index, "another interface has the same hardware address".to_owned());
        }
    }
    if let Some(address) = found.addresses.iter().find(|address| address.peer.is_some()) {
        return unsupported(address.link, format!("address {} has a peer", address.address));
    }
    if let Some((route, why)) = found.routes.iter().find_map(|route| Some((route, route.beyond?))) {
        let (address, bits) = route.destination;
        return unsupported(route.link, format!("route to {address}/{bits} has {why}"));
    }
    Ok(())
}

/// Puts the interfaces in the order in which the guest's kernel names NICs, `eth0` first, so that one called `eth1` is
/// made as `eth1` where that can be: then no name that is wanted is another's when the others are renamed.
fn in_slots(links: &mut Vec<Link>) {
    let count = links.len();
    let mut slots: Vec<Option<Link>> = vec![None; count];
    let mut rest = Vec::new();
    for link in links.drain(..) {
        let slot = link.name.strip_prefix("eth").and_then(|number| number.parse::<usize>().ok());
        // `eth01` is not what the kernel calls the second.
        match slot.filter(|slot| *slot < count && link.name == format!("eth{slot}")) {
            Some(slot) if slots[slot].is_none() => slots[slot] = Some(link),
            _ => rest.push(link),
        }
    }
    let mut rest = rest.into_iter();
    links.extend(slots.into_iter().filter_map(|slot| slot.or_else(|| rest.next())));
}

#[cfg(test)]
mod tests;
