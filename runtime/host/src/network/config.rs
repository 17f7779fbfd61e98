//! Lists a network namespace: interfaces, addresses, routes and neighbours.

use std::io;
use std::net::IpAddr;

pub use netlink::{Address, Link, Neighbour, Route};

use super::netlink::Netlink;
use crate::HostError;

/// Configuration of a network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkConfig {
    pub links: Vec<Link>,
    /// Addresses, in the order of their interfaces.
    pub addresses: Vec<Address>,
    /// Routes of the main table that were configured, not created by the kernel.
    pub routes: Vec<Route>,
    /// Permanent neighbours.
    pub neighbours: Vec<Neighbour>,
}

impl NetworkConfig {
    /// Lists this namespace by netlink.
    pub fn list(netlink: &mut Netlink) -> Result<NetworkConfig, HostError> {
        let mut list = || {
            io::Result::Ok(NetworkConfig {
                links: netlink.list(Link::list_request(), Link::parse)?,
                addresses: netlink.list(Address::list_request(), Address::parse)?,
                routes: netlink.list(Route::list_request(), Route::parse)?,
                neighbours: netlink.list(Neighbour::list_request(), Neighbour::parse)?,
            })
        };
        list().map_err(HostError::step("list the network namespace"))
    }

    pub fn addresses_of(&self, link: u32) -> Vec<IpAddr> {
        self.addresses.iter().filter(|it| it.link == link).map(|it| it.address).collect()
    }
}
