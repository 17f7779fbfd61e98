//! A pod's network: connects the interfaces of a host network namespace to NICs of the guest.
//!
//! Each interface gets a NIC in the guest with the same hardware address, MTU, addresses, routes and neighbours. The
//! NIC is backed by a tap, and traffic control redirects packets between tap and interface ([`redirect`]). The
//! interface keeps its configuration. Nothing outside of the namespace changes, and the taps disappear with this
//! process. [`Network::refresh`] returns changes of the namespace while the machine runs.
//!
//! The process is in the namespace itself: its main thread enters before the machine's threads start, which inherit the
//! namespace. Programs that look up a pod's network by its process (hooks, nsenter(1)) therefore find it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub use self::config::{Address, Link, Neighbour, NetworkConfig, Route};
use self::netlink::Netlink;
use self::notifications::Notifications;
use self::taps::Taps;
use crate::HostError;

mod config;
pub mod devices;
pub mod loopback;
mod netlink;
mod notifications;
mod redirect;
mod taps;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

/// Maximum number of interfaces: each uses an interrupt of the machine, and console, share, entropy device and balloon
/// use four.
pub const NICS_MAX: usize = 16;

/// Maximum number of NICs that can be added while a machine runs: its kernel probes each such slot when it boots.
const SPARE_NICS: usize = 4;

/// Step of an error, before the path.
const JOIN: &str = "join network namespace";

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("join network namespace {}: the host's own network cannot be the guest's", .0.display())]
    HostNamespace(PathBuf),
    #[error("network namespace: {0} interfaces exceed the limit of {NICS_MAX}")]
    TooMany(usize),
    #[error("network interface {name}: {why}")]
    Unsupported { name: String, why: String },
    #[error("{step} network interface {name}")]
    Interface {
        /// The operation, with the preposition if any: `create a tap for`.
        step: &'static str,
        name: String,
        #[source]
        source: io::Error,
    },
}

impl NetworkError {
    /// Whether this process may not do the step.
    pub fn is_denied(&self) -> bool {
        matches!(self, NetworkError::Host(error) if error.source.kind() == io::ErrorKind::PermissionDenied)
    }
}

pub type Result<T, E = NetworkError> = std::result::Result<T, E>;

/// The host's side of a NIC.
#[derive(Debug)]
pub struct Nic {
    /// The tap: non-blocking, packets with virtio headers.
    pub tap: OwnedFd,
    /// Index of the interface in its namespace.
    pub link: u32,
    pub mac: [u8; 6],
    pub mtu: u16,
    pub addresses: Vec<IpAddr>,
}

impl Nic {
    /// Returns the same NIC with another descriptor of its tap.
    pub fn try_clone(&self) -> io::Result<Nic> {
        let Nic { link, mac, mtu, addresses, .. } = self;
        Ok(Nic {
            tap: self.tap.try_clone()?,
            link: *link,
            mac: *mac,
            mtu: *mtu,
            addresses: addresses.clone(),
        })
    }
}

/// The interfaces of this process's network namespace, connected to taps until this is dropped.
#[derive(Debug)]
pub struct Network {
    /// In the order of the machine's slots, so that the guest's kernel itself gives most NICs their names.
    pub nics: Vec<Nic>,
    config: NetworkConfig,
    taps: Taps,
    notifications: Notifications,
}

/// Enters the network namespace `path` with this thread. Threads that it starts later inherit the namespace.
///
/// # Errors
///
/// Also if `path` is the namespace of this process or of the host's process 1.
pub fn enter(path: &Path) -> Result<()> {
    let open = || {
        let namespace = File::open(path)?;
        let metadata = namespace.metadata()?;
        io::Result::Ok((namespace, (metadata.dev(), metadata.ino())))
    };
    let (namespace, identity) = open().map_err(HostError::at(JOIN, path))?;
    // /proc/1 may not be readable; then this process may not enter the host's network either.
    let hosts = ["/proc/self/ns/net", "/proc/1/ns/net"].map(fs::metadata);
    if hosts.iter().flatten().any(|host| (host.dev(), host.ino()) == identity) {
        return Err(NetworkError::HostNamespace(path.to_owned()));
    }
    let joined = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
    Ok(joined.map_err(HostError::at(JOIN, path))?)
}

/// Removes what a killed process has left on the interfaces of the namespace `path`. Interfaces of running machines do
/// not change, and the caller stays in its namespace.
pub fn remove_leftovers(path: &Path) -> Result<()> {
    let remove = || {
        enter(path)?;
        let mut netlink = Netlink::open()?;
        let links = NetworkConfig::list(&mut netlink)?.links;
        let has_tap = |link: &Link| links.iter().any(|it| it.name == taps::name(link.index));
        for link in links.iter().filter(|link| !has_tap(link)) {
            let left = redirect::remove_left(&mut netlink, link.index);
            let (step, name) = ("remove the redirection of", &link.name);
            left.map_err(|source| NetworkError::Interface { step, name: name.clone(), source })?;
        }
        Ok(())
    };
    // setns(2) affects one thread; this thread must stay in its namespace.
    thread::scope(|scope| scope.spawn(remove).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

/// Returns the names of the interfaces of this thread's namespace that a container would use.
pub fn names_here() -> Result<Vec<String>> {
    let mut config = NetworkConfig::list(&mut Netlink::open()?)?;
    keep_wanted(&mut config);
    Ok(config.links.into_iter().map(|link| link.name).collect())
}

impl Network {
    /// Connects the interfaces of this thread's namespace to taps, and follows changes of the namespace.
    pub fn of_this_namespace() -> Result<Network> {
        let notifications = Notifications::open().map_err(HostError::step("watch the network namespace"))?;
        let mut netlink = Netlink::open()?;
        let mut config = NetworkConfig::list(&mut netlink)?;
        keep_wanted(&mut config);
        check(&config)?;
        in_slots(&mut config.links);
        let mut taps = Taps::new(netlink);
        let join = |link: &Link| taps.connect(link, config.addresses_of(link.index));
        let nics = config.links.iter().map(join).collect::<Result<_>>()?;
        Ok(Network { nics, config, taps, notifications })
    }

    /// Returns how many NICs can be added while the machine runs.
    pub fn spare_nics(&self) -> usize {
        SPARE_NICS.min(NICS_MAX.saturating_sub(self.nics.len()))
    }

    /// Returns a descriptor that is readable when something may have changed.
    pub fn changes_fd(&self) -> BorrowedFd<'_> {
        self.notifications.fd()
    }

    /// Lists the namespace again. Returns the previous state; [`config`](Self::config) returns the new one.
    ///
    /// # Errors
    ///
    /// Something in the namespace is not supported in a guest. Then [`config`](Self::config) returns the previous
    /// state.
    pub fn refresh(&mut self) -> Result<NetworkConfig> {
        self.notifications.drain();
        let mut config = NetworkConfig::list(&mut self.taps.netlink)?;
        config.links.retain(|link| !self.taps.has(link.index));
        keep_wanted(&mut config);
        check(&config)?;
        Ok(std::mem::replace(&mut self.config, config))
    }

    /// Returns the guest's interfaces with their configuration.
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// Returns the addresses of each interface by its index, from the last listing.
    pub fn addresses(&self) -> impl Iterator<Item = (u32, Vec<IpAddr>)> {
        self.config.links.iter().map(|link| (link.index, self.config.addresses_of(link.index)))
    }

    /// Connects a new interface to a tap. After an error the caller must [remove](Self::remove) it.
    pub fn add(&mut self, link: &Link) -> Result<Nic> {
        self.taps.connect(link, self.config.addresses_of(link.index))
    }

    /// Ends the redirection of an interface that has disappeared or is not supported. The interface counts as new if it
    /// is found again.
    pub fn remove(&mut self, link: u32) {
        self.taps.disconnect(link);
        self.config.links.retain(|it| it.index != link);
        keep_wanted(&mut self.config);
    }
}

/// Removes from `config` what is not for the guest. Interfaces that are up or have addresses stay, with their
/// configuration.
fn keep_wanted(config: &mut NetworkConfig) {
    let has_address: BTreeSet<u32> = config.addresses.iter().map(|address| address.link).collect();
    let up = |flags: u32| flags & libc::IFF_UP as u32 != 0;
    let loopback = |flags: u32| flags & libc::IFF_LOOPBACK as u32 != 0;
    config.links.retain(|it| !loopback(it.flags) && (up(it.flags) || has_address.contains(&it.index)));
    let kept: BTreeSet<u32> = config.links.iter().map(|link| link.index).collect();
    config.addresses.retain(|it| kept.contains(&it.link));
    config.neighbours.retain(|it| kept.contains(&it.link));
    // A route over several interfaces stays, so that `check` refuses it.
    config.routes.retain(|it| kept.contains(&it.link) || it.unsupported.is_some() && it.link == 0);
}

/// Refuses what cannot be reproduced in the guest.
fn check(config: &NetworkConfig) -> Result<()> {
    if config.links.is_empty() {
        return Ok(());
    }
    if config.links.len() > NICS_MAX {
        return Err(NetworkError::TooMany(config.links.len()));
    }
    let name = |index: u32| config.links.iter().find(|it| it.index == index).map_or("?", |it| &it.name);
    let unsupported =
        |link: u32, why: String| Err(NetworkError::Unsupported { name: name(link).to_owned(), why });
    let mut macs = BTreeSet::new();
    for link in &config.links {
        if link.driver == "tun" && link.name.starts_with(taps::PREFIX) {
            return unsupported(link.index, "another virtual machine is in this namespace".to_owned());
        }
        if link.hardware != libc::ARPHRD_ETHER {
            return unsupported(link.index, "not an Ethernet interface".to_owned());
        }
        // The agent identifies NICs by their hardware addresses.
        if !macs.insert(&link.mac) {
            return unsupported(link.index, "another interface has the same hardware address".to_owned());
        }
    }
    if let Some(address) = config.addresses.iter().find(|address| address.peer.is_some()) {
        return unsupported(address.link, format!("address {} has a peer", address.address));
    }
    if let Some((route, why)) = config.routes.iter().find_map(|route| Some((route, route.unsupported?))) {
        let (address, bits) = route.destination;
        return unsupported(route.link, format!("route to {address}/{bits} has {why}"));
    }
    Ok(())
}

/// Sorts the interfaces by the names that the guest's kernel gives to NICs, `eth0` first: an interface `eth1` becomes
/// the second NIC if possible. Then no requested name is in use when the other NICs are renamed.
fn in_slots(links: &mut Vec<Link>) {
    let count = links.len();
    let mut slots: Vec<Option<Link>> = vec![None; count];
    let mut rest = Vec::new();
    for link in links.drain(..) {
        let slot = link.name.strip_prefix("eth").and_then(|number| number.parse::<usize>().ok());
        // `eth01` is not the kernel's name of the second NIC.
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
