//! What a guest is to be told when its network namespace has changed.

use agent_proto::payload::{self, Interface};
use host::network::{Found, Link, Route};

use super::describe;

/// The difference between two looks at a namespace, in the order in which a guest is told.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Interfaces that are gone. One with another name or hardware address is gone, and another one is new.
    pub gone: Vec<Link>,
    /// Interfaces that are new, and what they have.
    pub new: Vec<(Link, Interface)>,
    /// Interfaces that have something else: what they lose, marked as such, and all that they have now.
    pub altered: Vec<Interface>,
    /// Routes: those that are gone of interfaces that stay, marked as such, and then new ones, ways before gateways.
    pub routes: Vec<payload::Route>,
}

impl Changes {
    /// Compares.
    pub fn between(before: &Found, after: &Found) -> Changes {
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

/// Whether it is the same interface for a guest.
fn has(found: &Found, link: &Link) -> bool {
    let same = |it: &Link| it.index == link.index && it.name == link.name && it.mac == link.mac;
    found.links.iter().any(same)
}

/// An interface that stays, if it has something else now.
fn altered(before: &Found, after: &Found, link: &Link) -> Option<Interface> {
    let old = before.links.iter().find(|it| it.index == link.index)?;
    let (old, mut new) = (describe::interface(before, old), describe::interface(after, link));
    if old == new {
        return None;
    }
    for neighbour in old.neighbours.iter().filter(|it| !new.neighbours.contains(it)) {
        let address = &neighbour.ip_address;
        log::warn!("network interface {}: its guest still knows the neighbour {address}", link.name);
    }
    let lost = old.ip_addresses.into_iter().filter(|it| !new.ip_addresses.contains(it));
    let mut addresses: Vec<_> =
        lost.map(|it| payload::IpAddress { ip_address: format!("-{}", it.ip_address), ..it }).collect();
    addresses.append(&mut new.ip_addresses);
    Some(Interface { ip_addresses: addresses, ..new })
}

#[cfg(test)]
mod tests;
