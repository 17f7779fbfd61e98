//! Lists a network namespace: interfaces, addresses, routes and neighbours.

use std::io;
use std::net::IpAddr;

pub use netlink::{Address, Link, Neighbour, Route};

use super::netlink::Netlink;

/// Configuration of a network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Interfaces.
    pub links: Vec<Link>,
    /// Addresses, in the order of their interfaces.
    pub addresses: Vec<Address>,
    /// Routes of the main table that were configured, not created by the kernel.
    pub routes: Vec<Route>,
    /// Permanent neighbours.
    pub neighbours: Vec<Neighbour>,
}

impl Found {
    /// Lists this namespace by netlink.
    pub fn list(netlink: &mut Netlink) -> io::Result<Found> {
        Ok(Found {
            links: netlink.list(Link::list_request(), Link::parse)?,
            addresses: netlink.list(Address::list_request(), Address::parse)?,
            routes: netlink.list(Route::list_request(), Route::parse)?,
            neighbours: netlink.list(Neighbour::list_request(), Neighbour::parse)?,
        })
    }

    /// Returns the addresses of an interface.
    pub fn addresses_of(&self, link: u32) -> Vec<IpAddr> {
        self.addresses.iter().filter(|it| it.link == link).map(|it| it.address).collect()
    }
}
