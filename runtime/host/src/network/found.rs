//! What is in a network namespace: interfaces, addresses, routes, neighbours.

use std::io;
use std::net::IpAddr;

pub use netlink::{Address, Link, Neighbour, Route};

use super::netlink::Netlink;

/// Everything in a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Interfaces.
    pub links: Vec<Link>,
    /// Addresses, in their interfaces' order.
    pub addresses: Vec<Address>,
    /// Routes of the main table that somebody made.
    pub routes: Vec<Route>,
    /// Neighbours that somebody made known for good.
    pub neighbours: Vec<Neighbour>,
}

impl Found {
    /// Asks the kernel.
    pub fn list(netlink: &mut Netlink) -> io::Result<Found> {
        Ok(Found {
            links: netlink.list(Link::list_request(), Link::parse)?,
            addresses: netlink.list(Address::list_request(), Address::parse)?,
            routes: netlink.list(Route::list_request(), Route::parse)?,
            neighbours: netlink.list(Neighbour::list_request(), Neighbour::parse)?,
        })
    }

    /// The addresses of an interface.
    pub fn addresses_of(&self, link: u32) -> Vec<IpAddr> {
        self.addresses.iter().filter(|it| it.link == link).map(|it| it.address).collect()
    }
}
