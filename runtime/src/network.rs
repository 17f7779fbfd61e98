//! A pod's network: the interfaces of a network namespace of the host, in the guest.
//!
//! For every interface there is a NIC in the guest with the same hardware address, largest packet, addresses, routes and
//! neighbours, over a tap that traffic control joins to the interface ([`redirect`]). The interface itself keeps what it
//! has. Nothing outside of the namespace changes, and with us the taps go.
//!
//! The process is in the namespace itself: it enters with its main thread before the machine's threads start, which
//! are in it then too. So whoever looks a pod's network up by its process (hooks, nsenter(1)) finds it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use agent_proto::payload::{self, Interface, IpAddress, Pod};

use self::found::{Found, Link};
use self::message::{Message, Nest};
use self::netlink::Netlink;
use crate::sys;

mod found;
mod message;
mod netlink;
mod redirect;
pub mod resolver;

/// The most interfaces: each takes one of the machine's interrupts, and the console, the share and the entropy have three.
pub const NICS_MAX: usize = 16;
/// The taps are `vmm` with the number of their interface.
const TAP_PREFIX: &str = "vmm";

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
    /// The hardware address.
    pub mac: [u8; 6],
    /// Bytes of the largest packet.
    pub mtu: u16,
}

/// The interfaces of the process's network namespace, joined to taps until it is dropped.
#[derive(Debug, Default)]
pub struct Network {
    /// In the order in which the machine gets them, so that the guest's kernel gives as many as can be their names.
    pub nics: Vec<Nic>,
    found: Found,
    /// Kept for its end; none where nothing is redirected.
    _redirections: Option<Redirections>,
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
        let has_tap = |link: &Link| links.iter().any(|it| it.name == format!("{TAP_PREFIX}{}", link.index));
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
    /// Enters the network namespace `path` and joins its interfaces to taps.
    pub fn join(path: &Path) -> Result<Network> {
        enter(path)?;
        Network::of_this_namespace()
    }

    /// Joins the interfaces of the namespace that this thread is in to taps.
    pub fn of_this_namespace() -> Result<Network> {
        let mut netlink = Netlink::open().map_err(NetworkError::List)?;
        let mut found = Found::list(&mut netlink).map_err(NetworkError::List)?;
        keep_wanted(&mut found);
        if found.links.is_empty() {
            return Ok(Network::default());
        }
        check(&found)?;
        in_slots(&mut found.links);
        let mut redirections = Redirections { netlink, links: Vec::new() };
        let nics = found.links.iter().map(|link| redirections.join(link)).collect::<Result<_>>()?;
        Ok(Network { nics, found, _redirections: Some(redirections) })
    }

    /// Says in STARTPOD what the guest's network is.
    pub fn describe(&self, pod: &mut Pod) {
        pod.interfaces.extend(self.found.links.iter().map(|link| interface(&self.found, link)));
        let mut routes: Vec<_> = self.found.routes.iter().collect();
        // A gateway is reached by a route that is there already.
        routes.sort_by_key(|route| route.gateway.is_some());
        pod.routes.extend(routes.into_iter().map(|it| route(&self.found, it)));
    }
}

/// Interfaces that traffic control joins to taps. Dropping it parts them.
#[derive(Debug)]
struct Redirections {
    netlink: Netlink,
    links: Vec<u32>,
}

impl Redirections {
    /// Makes the tap of one interface and redirects between them.
    fn join(&mut self, link: &Link) -> Result<Nic> {
        let failed = |step| move |source| NetworkError::Interface { step, name: link.name.clone(), source };
        let unsupported =
            |why: &str| NetworkError::Unsupported { name: link.name.clone(), why: why.to_owned() };
        let mac = link.mac.as_slice().try_into().map_err(|_| unsupported("not an Ethernet interface"))?;
        let mtu = link.mtu.try_into().map_err(|_| unsupported("packets longer than 65535 bytes"))?;
        // Whoever has this tap has the interface: a second machine ends here, before it changes anything.
        let name = format!("{TAP_PREFIX}{}", link.index);
        let tap = sys::tap(&name).map_err(failed("make a tap for"))?;
        let index = sys::interface_index(&name).map_err(failed("find the tap of"))?;
        let quiet = self.netlink.request(tap_quiet(index)).or_else(without_ipv6);
        quiet.map_err(failed("set up the tap of"))?;
        self.netlink.request(tap_up(index, link.mtu)).map_err(failed("set up the tap of"))?;
        self.links.push(link.index);
        for (from, to) in [(link.index, index), (index, link.index)] {
            redirect::redirect(&mut self.netlink, from, to).map_err(failed("redirect the packets of"))?;
        }
        Ok(Nic { tap, mac, mtu })
    }
}

impl Drop for Redirections {
    fn drop(&mut self) {
        for link in &self.links {
            // It may be gone, or have none if that is what failed.
            let _ = redirect::remove_ours(&mut self.netlink, *link);
        }
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
    if found.links.len() > NICS_MAX {
        return Err(NetworkError::TooMany(found.links.len()));
    }
    let name = |index: u32| found.links.iter().find(|it| it.index == index).map_or("?", |it| &it.name);
    let unsupported =
        |link: u32, why: String| Err(NetworkError::Unsupported { name: name(link).to_owned(), why });
    let mut macs = BTreeSet::new();
    for link in &found.links {
        if link.driver == "tun" && link.name.starts_with(TAP_PREFIX) {
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

fn interface(found: &Found, link: &Link) -> Interface {
    let addresses = found.addresses.iter().filter(|it| it.link == link.index);
    let neighbours = found.neighbours.iter().filter(|it| it.link == link.index);
    Interface {
        mac_addr: mac_text(&link.mac),
        new_device_name: link.name.clone(),
        mtu: link.mtu,
        ip_addresses: addresses
            .map(|it| IpAddress {
                ip_address: it.address.to_string(),
                net_mask: it.bits.to_string(),
                no_prefix_route: it.no_prefix_route,
            })
            .collect(),
        neighbours: neighbours
            .map(|it| payload::Neighbour { ip_address: it.address.to_string(), mac_addr: mac_text(&it.mac) })
            .collect(),
        no_link_local: true,
        ..Interface::default()
    }
}

fn route(found: &Found, route: &found::Route) -> payload::Route {
    let (address, bits) = route.destination;
    let text = |address: Option<IpAddr>| address.map(|it| it.to_string()).unwrap_or_default();
    let link = found.links.iter().find(|link| link.index == route.link);
    payload::Route {
        dest: format!("{address}/{bits}"),
        gateway: text(route.gateway),
        device: link.map(|link| link.name.clone()).unwrap_or_default(),
        on_link: route.on_link,
        source: text(route.source),
        metric: route.metric,
        mtu: route.mtu,
        removed: false,
    }
}

fn mac_text(mac: &[u8]) -> String {
    let bytes: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

/// RTM_NEWLINK, which changes one that is there.
const NEW_LINK: u16 = 16;

/// The tap has no address of its own making: its host says nothing to the guest.
fn tap_quiet(index: u32) -> Message {
    const AF_SPEC: u16 = 26;
    const ADDRESS_GENERATION: u16 = 8;
    const NONE: u8 = 1;
    let ipv6 = Nest::default().with(ADDRESS_GENERATION, &[NONE]);
    Message::change(NEW_LINK, &link_body(index, 0))
        .nest(AF_SPEC, Nest::default().nest(libc::AF_INET6 as u16, ipv6))
}

/// A kernel without IPv6 makes none, either.
fn without_ipv6(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL) => Ok(()),
        _ => Err(error),
    }
}

fn tap_up(index: u32, mtu: u32) -> Message {
    const MTU: u16 = 4;
    Message::change(NEW_LINK, &link_body(index, libc::IFF_UP as u32)).with(MTU, &mtu.to_ne_bytes())
}

/// ifinfomsg: flags, and which of them change.
fn link_body(index: u32, up: u32) -> [u8; 16] {
    let mut body = [0; 16];
    for (at, number) in [(4, index), (8, up), (12, up)] {
        body[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    }
    body
}

#[cfg(test)]
mod tests;
