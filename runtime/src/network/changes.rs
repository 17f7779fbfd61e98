//! Differences between two states of a network namespace, to be sent to the guest.

use agent_proto::payload::{self, Interface};
use host::network::{Link, NetworkConfig, Route};

use super::describe;

/// The difference between two states of a namespace, in the order in which the guest gets it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Removed interfaces. An interface with another name or hardware address counts as removed, and as new.
    pub gone: Vec<Link>,
    /// New interfaces, with their addresses.
    pub new: Vec<(Link, Interface)>,
    /// Changed interfaces: the addresses that they lose, marked as removed, and all present ones.
    pub altered: Vec<Interface>,
    /// Routes: removed ones of interfaces that stay, marked as such, then new ones, direct routes before gateways.
    pub routes: Vec<payload::Route>,
}

impl Changes {
    pub fn between(before: &NetworkConfig, after: &NetworkConfig) -> Changes {
        let gone = before.links.iter().filter(|link| !has(after, link)).cloned().collect();
        let (kept, new): (Vec<&Link>, Vec<&Link>) = after.links.iter().partition(|link| has(before, link));
        let stays = |route: &&Route| kept.iter().any(|link| link.index == route.link);
        let lost = before.routes.iter().filter(stays).filter(|route| !after.routes.contains(route));
        let mut routes: Vec<payload::Route> =
            lost.map(|route| payload::Route { removed: true, ..describe::route(before, route) }).collect();
        let mut won: Vec<&Route> = after.routes.iter().collect();
        won.retain(|route| !stays(route) || !before.routes.contains(route));
        won.sort_by_key(|route| route.gateway.is_some());
        routes.extend(won.into_iter().map(|route| describe::route(after, route)));
        Changes {
            gone,
            new: new.into_iter().map(|link| (link.clone(), describe::interface(after, link))).collect(),
            altered: kept.into_iter().filter_map(|link| altered(before, after, link)).collect(),
            routes,
        }
    }
}

/// Whether the interface is the same for a guest.
fn has(found: &NetworkConfig, link: &Link) -> bool {
    let same = |it: &Link| it.index == link.index && it.name == link.name && it.mac == link.mac;
    found.links.iter().any(same)
}

/// Returns an interface that stays, if its addresses changed.
fn altered(before: &NetworkConfig, after: &NetworkConfig, link: &Link) -> Option<Interface> {
    let old = before.links.iter().find(|it| it.index == link.index)?;
    let (old, mut new) = (describe::interface(before, old), describe::interface(after, link));
    if old == new {
        return None;
    }
    for neighbour in old.neighbours.iter().filter(|it| !new.neighbours.contains(it)) {
        let address = &neighbour.ip_address;
        log::warn!("network interface {}: the guest keeps the removed neighbour {address}", link.name);
    }
    let lost = old.ip_addresses.into_iter().filter(|it| !new.ip_addresses.contains(it));
    let mut addresses: Vec<_> =
        lost.map(|it| payload::IpAddress { ip_address: format!("-{}", it.ip_address), ..it }).collect();
    addresses.append(&mut new.ip_addresses);
    Some(Interface { ip_addresses: addresses, ..new })
}

#[cfg(test)]
mod tests;
