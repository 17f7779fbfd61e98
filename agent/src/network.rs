//! The pod's network: interfaces, addresses and routes, which are set through rtnetlink (rtnetlink(7)).
//!
//! All operations are idempotent: setting something twice is not an error.

pub mod address;
pub mod netlink;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

use ::netlink::{Address, Link, LinkChange, Operation};
use agent_proto::payload::{Interface, Neighbour, Route};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use self::netlink::Netlink;
use crate::error::{Error, Step};
use address::Network;

/// The driver of virtio-mmio slots, and the kernel's name prefix for them, followed by a number.
const MMIO_DRIVER: &str = "/sys/bus/platform/drivers/virtio-mmio";
const MMIO_SLOT: &str = "virtio-mmio.";
/// Limit of slots: more than an x86 machine has interrupts for them.
const MMIO_SLOTS_MAX: u32 = 32;

/// An address to add to or remove from an interface.
struct Change<'a> {
    text: &'a str,
    network: Network,
    no_prefix_route: bool,
    removed: bool,
}

/// Returns the requested changes to an interface's addresses.
fn changes(interface: &Interface) -> Result<Vec<Change<'_>>, Error> {
    let list = interface
        .ip_addresses
        .iter()
        .map(|entry| (entry.ip_address.as_str(), entry.net_mask.as_str(), entry.no_prefix_route));
    list.chain([(interface.ip_address.as_str(), interface.net_mask.as_str(), false)])
        .filter(|(address, ..)| !address.is_empty())
        .map(|(address, mask, no_prefix_route)| {
            let text = address.trim_start_matches('-');
            let network = Network::with_mask(text, mask)?;
            Ok(Change { text, network, no_prefix_route, removed: text.len() < address.len() })
        })
        .collect()
}

/// Refuses an invalid interface before anything is changed.
pub fn check(interface: &Interface) -> Result<(), Error> {
    if interface.device.is_empty() && interface.mac_addr.is_empty() {
        return Err(Error::bad_request("interface has neither a name nor a hardware address"));
    }
    changes(interface).map(drop)
}

/// Sets up an interface: name, MTU, addresses, state "up", neighbours. If the MTU, an address or a neighbour fails, the
/// rest is still set.
pub fn set_up(interface: &Interface) -> Result<(), Error> {
    check(interface)?;
    let mut netlink = Netlink::open()?;
    let link = find(&mut netlink, interface).or_else(|_| {
        // The NIC may have been plugged in since the kernel last looked for devices.
        look_for_devices();
        find(&mut netlink, interface)
    })?;
    let change = |netlink: &mut Netlink, what| netlink.request(Link::change_request(link.index, &[what]));
    let mut name = link.name.as_str();
    let new_name = interface.new_device_name.as_str();
    if !new_name.is_empty() && new_name != name {
        // A link that is up cannot be renamed.
        change(&mut netlink, LinkChange::Down).step("bring down interface", name)?;
        change(&mut netlink, LinkChange::Name(new_name)).step("rename interface", name)?;
        name = new_name;
    }
    let mtu = match interface.mtu {
        0 => Ok(()),
        mtu => change(&mut netlink, LinkChange::Mtu(mtu)).step("set MTU of interface", name),
    };
    if interface.no_link_local {
        let step = "disable generated addresses of interface";
        change(&mut netlink, LinkChange::NoGeneratedAddress).step(step, name)?;
    }
    let addresses = each(changes(interface)?, |change| {
        let Change { text, network: Network { address, bits }, no_prefix_route, removed } = change;
        let address = Address { link: link.index, address, peer: None, bits, no_prefix_route };
        let (step, operation) =
            if removed { ("remove address", Operation::Delete) } else { ("add address", Operation::Put) };
        netlink.request(address.request(operation)).step(step, &entry_name(text, name))
    });
    change(&mut netlink, LinkChange::Up).step("bring up interface", name)?;
    let neighbours = each(&interface.neighbours, |it| add_neighbour(&mut netlink, link.index, it));
    mtu.and(addresses).and(neighbours)
}

/// Calls the function for each item, also after failures, and returns the first error. If one address or route fails,
/// the others are still set.
pub fn each<T>(
    all: impl IntoIterator<Item = T>,
    mut what: impl FnMut(T) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut first = Ok(());
    for one in all {
        first = first.and(what(one));
    }
    first
}

fn add_neighbour(netlink: &mut Netlink, link: u32, neighbour: &Neighbour) -> Result<(), Error> {
    let address = address::parse(&neighbour.ip_address)?;
    let mac = address::parse_link(&neighbour.mac_addr)?;
    let request = ::netlink::Neighbour { link, address, mac }.request(Operation::Put);
    netlink.request(request).step("add neighbour", &neighbour.ip_address)
}

fn entry_name(address: &str, interface: &str) -> String {
    format!("{address} of interface {interface}")
}

/// Returns a route's destination and gateway, or why the route is invalid.
pub fn check_route(route: &Route) -> Result<(Network, Option<IpAddr>), Error> {
    let gateway = (!route.gateway.is_empty()).then(|| address::parse(&route.gateway)).transpose()?;
    let destination = Network::destination(&route.dest, gateway)?;
    if gateway.is_some_and(|gateway| gateway.is_ipv4() != destination.address.is_ipv4()) {
        return Err(Error::bad_request(format!(
            "route to {} via {}: address families differ",
            route.dest, route.gateway
        )));
    }
    Ok((destination, gateway))
}

/// Adds or removes a route.
pub fn set_route(route: &Route) -> Result<(), Error> {
    let (destination, gateway) = check_route(route)?;
    let mut netlink = Netlink::open()?;
    let link = if route.device.is_empty() {
        0
    } else {
        find(&mut netlink, &Interface { device: route.device.clone(), ..Interface::default() })?.index
    };
    let source = (!route.source.is_empty()).then(|| address::parse(&route.source)).transpose()?;
    let Route { on_link, metric, mtu, removed, .. } = *route;
    let destination = (destination.address, destination.bits);
    let entry =
        ::netlink::Route { link, destination, gateway, on_link, source, metric, mtu, unsupported: None };
    let (step, operation) =
        if removed { ("remove route to", Operation::Delete) } else { ("add route to", Operation::Put) };
    match netlink.request(entry.request(operation)) {
        // The kernel has already removed it together with an address or the interface.
        Err(Errno::SRCH) if removed => Ok(()),
        other => other.step(step, &route.dest),
    }
}

/// Removes an interface. A virtual interface is deleted. Otherwise the device is removed from its bus, or unbound from
/// its driver if the bus cannot remove devices.
pub fn delete(interface: &Interface) -> Result<(), Error> {
    check(interface)?;
    let mut netlink = Netlink::open()?;
    let link = find(&mut netlink, interface)?;
    match netlink.request(Link::delete_request(link.index)) {
        Err(Errno::OPNOTSUPP) => release(&link.name),
        other => other,
    }
    .step("delete interface", &link.name)
}

fn release(name: &str) -> Result<(), Errno> {
    let class = format!("/sys/class/net/{name}");
    match write(&format!("{class}/device/../remove"), b"1") {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    // .../<slot>/<device>/net/<name>
    let path = rustix::fs::readlink(class.as_str(), Vec::new())?;
    let mut parts = path.to_bytes().rsplit(|byte| *byte == b'/').skip(2);
    let (device, slot) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if slot.starts_with(MMIO_SLOT.as_bytes()) {
        // The slot has a different driver than the device in it; only the slot's driver can probe it again.
        return write(&format!("{MMIO_DRIVER}/unbind"), slot);
    }
    write(&format!("{class}/device/driver/unbind"), device)
}

/// Makes the kernel look for devices that the host has plugged in: on PCI, or in the virtio-mmio slots that were empty
/// before. A machine has only one of the two. Existing devices are not affected.
pub fn look_for_devices() {
    if write("/sys/bus/pci/rescan", b"1").is_ok() {
        return;
    }
    for number in 0..MMIO_SLOTS_MAX {
        // Ignore failures: most slots are in use, empty or do not exist.
        let _ = write(&format!("{MMIO_DRIVER}/bind"), format!("{MMIO_SLOT}{number}").as_bytes());
    }
}

fn write(path: &str, text: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, text).map(drop)
}

/// Finds an interface by its hardware address if given, or else by its name.
fn find(netlink: &mut Netlink, interface: &Interface) -> Result<Link, Error> {
    let by_address = !interface.mac_addr.is_empty();
    let name = if by_address { &interface.mac_addr } else { &interface.device };
    let mac = address::parse_link(&interface.mac_addr).ok();
    let mut links = netlink.links().step("list", "interfaces")?.into_iter();
    let found =
        links.find(|link| if by_address { mac.as_ref() == Some(&link.mac) } else { link.name == *name });
    found.ok_or_else(|| Error::not_found("interface", name))
}

#[cfg(test)]
mod tests;
