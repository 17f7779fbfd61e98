//! Network devices of the host that are moved into a container's namespace (`linux.netDevices`, config-linux.md).
//!
//! A device keeps its addresses and comes up in the namespace, where it is like any other interface. When the namespace
//! ends, the kernel gives a physical device back to the host and deletes a virtual one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use netlink::{Address, Link, LinkChange, Operation};

use super::netlink::Netlink;
use super::{NetworkError, Result};
use crate::HostError;

/// Devices of the network namespace in which they were found.
#[derive(Debug)]
pub struct Devices {
    netlink: Netlink,
    found: Vec<Device>,
}

#[derive(Debug)]
struct Device {
    link: Link,
    addresses: Vec<Address>,
    new_name: String,
}

impl Devices {
    /// Finds devices in this thread's network namespace, by name, with their new names.
    pub fn find(wanted: &BTreeMap<&str, &str>) -> Result<Devices> {
        let mut netlink = Netlink::open()?;
        let mut listed =
            || io::Result::Ok((netlink.list(Link::list_request(), Link::parse)?, addresses(&mut netlink)?));
        let (links, addresses) = listed().map_err(HostError::step("list the network namespace"))?;
        let device = |(name, new_name): (&&str, &&str)| {
            let failed = |number: i32| NetworkError::Interface {
                step: "find",
                name: (*name).to_owned(),
                source: io::Error::from_raw_os_error(number),
            };
            let link = links.iter().find(|link| link.name == *name).ok_or_else(|| failed(libc::ENODEV))?;
            if link.flags & libc::IFF_LOOPBACK as u32 != 0 {
                return Err(failed(libc::EINVAL));
            }
            let own = addresses.iter().filter(|it| it.link == link.index).cloned().collect();
            Ok(Device { link: link.clone(), addresses: own, new_name: (*new_name).to_owned() })
        };
        let found = wanted.iter().map(device).collect::<Result<_>>()?;
        Ok(Devices { netlink, found })
    }

    /// Moves the devices into this thread's network namespace, which is another one now.
    pub fn take(mut self) -> Result<()> {
        let namespace =
            File::open("/proc/thread-self/ns/net").map_err(HostError::step("open the network namespace"))?;
        let mut here = Netlink::open()?;
        for Device { link, addresses, new_name } in &self.found {
            let failed =
                |step| move |source| NetworkError::Interface { step, name: link.name.clone(), source };
            // A device that is up cannot be renamed.
            let changes =
                [LinkChange::Down, LinkChange::Name(new_name), LinkChange::Namespace(namespace.as_raw_fd())];
            let moved = self.netlink.request(Link::change_request(link.index, &changes));
            moved.map_err(failed("move to the container's namespace"))?;
            let index = here.index_of(new_name).map_err(failed("find in the container's namespace"))?;
            here.request(Link::change_request(index, &[LinkChange::Up])).map_err(failed("bring up"))?;
            for address in addresses {
                let moved = Address { link: index, ..address.clone() };
                here.request(moved.request(Operation::Put)).map_err(failed("restore an address of"))?;
            }
        }
        Ok(())
    }
}

/// Returns the addresses that a device keeps: not those that the kernel generates for each link.
fn addresses(netlink: &mut Netlink) -> io::Result<Vec<Address>> {
    let mut all = netlink.list(Address::list_request(), Address::parse)?;
    all.retain(|it| match it.address {
        IpAddr::V4(_) => true,
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    });
    Ok(all)
}
