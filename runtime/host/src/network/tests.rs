use std::net::IpAddr;

use super::testing::link;
use super::*;

fn address(link: u32, address: [u8; 4]) -> config::Address {
    config::Address { link, address: address.into(), peer: None, bits: 24, no_prefix_route: false }
}

fn way(link: u32, gateway: Option<[u8; 4]>) -> config::Route {
    config::Route {
        link,
        destination: ([10, 8, 0, 0].into(), 16),
        gateway: gateway.map(IpAddr::from),
        on_link: false,
        source: None,
        metric: 0,
        mtu: 0,
        unsupported: None,
    }
}

#[track_caller]
fn refused(found: &NetworkConfig, text: &str) {
    assert_eq!(check(found).unwrap_err().to_string(), text);
}

#[test]
fn interfaces_that_are_up_or_have_an_address_are_for_the_guest() {
    let mut found = NetworkConfig {
        links: ["lo", "up", "down", "addressed"].iter().zip(1..).map(|(name, at)| link(at, name)).collect(),
        addresses: vec![address(1, [127, 0, 0, 1]), address(4, [10, 0, 0, 2])],
        routes: vec![way(1, None), way(2, None), way(3, None)],
        ..NetworkConfig::default()
    };
    found.links[0].flags |= libc::IFF_LOOPBACK as u32;
    (found.links[2].flags, found.links[3].flags) = (0, 0);
    keep_wanted(&mut found);
    assert_eq!(found.links.iter().map(|link| link.index).collect::<Vec<_>>(), [2, 4]);
    assert_eq!(found.addresses, [address(4, [10, 0, 0, 2])]);
    assert_eq!(found.routes, [way(2, None)]);
}

#[test]
fn interfaces_with_the_kernel_s_names_are_in_their_slots() {
    let order = |names: &[&str]| {
        let mut links: Vec<Link> = names.iter().zip(1..).map(|(name, at)| link(at, name)).collect();
        in_slots(&mut links);
        links.into_iter().map(|link| link.name).collect::<Vec<_>>()
    };
    assert_eq!(order(&["eth1", "eth0"]), ["eth0", "eth1"]);
    assert_eq!(order(&["lan", "eth2", "eth0"]), ["eth0", "lan", "eth2"]);
    assert_eq!(order(&["eth7", "eth00", "eth1"]), ["eth7", "eth1", "eth00"]);
    assert_eq!(order(&["ethernet"]), ["ethernet"]);
}

#[test]
fn unsupported_interfaces_are_refused_by_name() {
    let one = |change: fn(&mut Link)| {
        let mut found = NetworkConfig { links: vec![link(2, "eth0")], ..NetworkConfig::default() };
        change(&mut found.links[0]);
        found
    };
    assert!(check(&one(|_| ())).is_ok());
    refused(&one(|link| link.hardware = 65534), "network interface eth0: not an Ethernet interface");
    let machine = one(|link| (link.name, link.driver) = ("vmm2".into(), "tun".into()));
    refused(&machine, "network interface vmm2: another virtual machine is in this namespace");
    let mut twins =
        NetworkConfig { links: vec![link(2, "eth0"), link(3, "eth1")], ..NetworkConfig::default() };
    twins.links[1].mac = twins.links[0].mac.clone();
    refused(&twins, "network interface eth1: another interface has the same hardware address");
    let many = NetworkConfig { links: (0..17).map(|at| link(at, "x")).collect(), ..NetworkConfig::default() };
    refused(&many, "network namespace: 17 interfaces exceed the limit of 16");
    let mut peered = one(|_| ());
    peered.addresses =
        vec![config::Address { peer: Some([10, 0, 0, 9].into()), ..address(2, [10, 0, 0, 2]) }];
    refused(&peered, "network interface eth0: address 10.0.0.2 has a peer");
    let mut routed = one(|_| ());
    routed.routes = vec![config::Route { unsupported: Some("several next hops"), ..way(2, None) }];
    refused(&routed, "network interface eth0: route to 10.8.0.0/16 has several next hops");
}

#[test]
fn a_namespace_that_is_the_hosts_is_refused() {
    let error = enter(Path::new("/proc/self/ns/net")).unwrap_err();
    let text = "join network namespace /proc/self/ns/net: the host's own network cannot be the guest's";
    assert_eq!(error.to_string(), text);
    let error = enter(Path::new("/no/such/namespace")).unwrap_err();
    assert_eq!(error.to_string(), "join network namespace /no/such/namespace");
}

#[test]
fn each_namespace_has_a_loopback_interface() {
    let mut netlink = Netlink::open().unwrap();
    let found = NetworkConfig::list(&mut netlink).unwrap();
    let loopback = found.links.iter().find(|link| link.name == "lo").unwrap();
    assert_eq!(netlink.index_of("lo").unwrap(), loopback.index);
    assert!(netlink.index_of("none").is_err());
}
