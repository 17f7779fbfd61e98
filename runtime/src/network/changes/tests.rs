use std::net::IpAddr;

use host::network::testing::link;
use host::network::{Address, Neighbour};

use super::*;

fn address(link: u32, last: u8) -> Address {
    let address = IpAddr::from([10, 0, link as u8, last]);
    Address { link, address, peer: None, bits: 24, no_prefix_route: false }
}

fn way(link: u32, net: u8, gateway: Option<u8>) -> Route {
    Route {
        link,
        destination: ([10, net, 0, 0].into(), 16),
        gateway: gateway.map(|last| [10, 0, link as u8, last].into()),
        on_link: false,
        source: None,
        metric: 0,
        mtu: 0,
        unsupported: None,
    }
}

/// Returns eth0 with an address, a direct route and a route through a gateway.
fn one() -> NetworkConfig {
    NetworkConfig {
        links: vec![link(2, "eth0")],
        addresses: vec![address(2, 2)],
        routes: vec![way(2, 70, None), way(2, 71, Some(1))],
        ..NetworkConfig::default()
    }
}

fn names(links: &[Link]) -> Vec<&str> {
    links.iter().map(|link| link.name.as_str()).collect()
}

/// Returns whether a route is removed, its destination, and its gateway.
fn ways(routes: &[payload::Route]) -> Vec<(bool, &str, &str)> {
    routes.iter().map(|it| (it.removed, it.dest.as_str(), it.device.as_str())).collect()
}

#[test]
fn equal_states_have_no_difference() {
    let mut again = one();
    // The carrier came up: the guest is not told.
    again.links[0].flags |= libc::IFF_RUNNING as u32;
    again.routes.reverse();
    assert_eq!(Changes::between(&one(), &again), Changes::default());
}

#[test]
fn an_interface_is_added_with_its_addresses_and_routes_and_removed_with_them() {
    let mut two = one();
    two.links.push(link(3, "eth1"));
    two.addresses.push(address(3, 2));
    two.routes.splice(0..0, [way(3, 80, Some(1)), way(3, 81, None)]);
    let came = Changes::between(&one(), &two);
    let (new, interface) = &came.new[0];
    assert_eq!((new, came.new.len()), (&two.links[1], 1));
    assert_eq!(
        (interface.new_device_name.as_str(), interface.mac_addr.as_str()),
        ("eth1", "02:00:00:00:00:03")
    );
    assert_eq!(interface.ip_addresses[0].ip_address, "10.0.3.2");
    assert_eq!(ways(&came.routes), [(false, "10.81.0.0/16", "eth1"), (false, "10.80.0.0/16", "eth1")]);
    assert_eq!((came.gone.len(), came.altered.len()), (0, 0));

    let went = Changes::between(&two, &one());
    assert_eq!(went, Changes { gone: vec![link(3, "eth1")], ..Changes::default() });
}

#[test]
fn an_interface_with_another_name_or_hardware_address_is_another_one() {
    let mut renamed = one();
    renamed.links[0].name = "lan".into();
    let mut moved = one();
    moved.links[0].mac[5] = 0xee;
    for other in [renamed, moved] {
        let changes = Changes::between(&one(), &other);
        assert_eq!(
            (names(&changes.gone), names(&[changes.new[0].0.clone()])),
            (vec!["eth0"], names(&other.links))
        );
        let device = other.links[0].name.as_str();
        let all = [(false, "10.70.0.0/16", device), (false, "10.71.0.0/16", device)];
        assert_eq!(ways(&changes.routes), all);
        assert_eq!(changes.altered, []);
    }
}

#[test]
fn lost_addresses_precede_present_ones() {
    let mut other = one();
    other.links[0].mtu = 1400;
    other.addresses = vec![address(2, 3)];
    other.neighbours =
        vec![Neighbour { link: 2, address: [10, 0, 2, 9].into(), mac: vec![2, 0, 0, 0, 0, 9] }];
    let changes = Changes::between(&one(), &other);
    let [eth0] = &changes.altered[..] else { panic!("{changes:?}") };
    let addresses: Vec<_> = eth0.ip_addresses.iter().map(|it| it.ip_address.as_str()).collect();
    assert_eq!(addresses, ["-10.0.2.2", "10.0.2.3"]);
    assert_eq!((eth0.mtu, eth0.neighbours.len(), eth0.new_device_name.as_str()), (1400, 1, "eth0"));
    assert_eq!((changes.gone, changes.new, changes.routes), (vec![], vec![], vec![]));
}

#[test]
fn a_gateway_is_replaced() {
    let mut other = one();
    other.routes[1] = way(2, 71, Some(9));
    let changes = Changes::between(&one(), &other);
    assert_eq!(ways(&changes.routes), [(true, "10.71.0.0/16", "eth0"), (false, "10.71.0.0/16", "eth0")]);
    assert_eq!(changes.routes[0].gateway, "10.0.2.1");
    assert_eq!(changes.routes[1].gateway, "10.0.2.9");
}

#[test]
fn direct_routes_precede_the_gateways_behind_them() {
    let found = NetworkConfig {
        links: vec![link(2, "eth0")],
        addresses: vec![address(2, 2)],
        routes: vec![way(2, 8, Some(1)), way(2, 8, None)],
        neighbours: vec![Neighbour { link: 2, address: [10, 0, 2, 9].into(), mac: vec![2, 0xff] }],
    };
    let mut pod = payload::Pod::default();
    describe::describe(&found, &mut pod);
    let text = serde_json::to_string(&pod).unwrap();
    let expected = concat!(
        r#"{"hostname":"","shareDir":"","interfaces":[{"device":"","newDeviceName":"eth0","#,
        r#""ipAddresses":[{"ipAddress":"10.0.2.2","netMask":"24"}],"mtu":1500,"macAddr":"02:00:00:00:00:02","#,
        r#""neighbours":[{"ipAddress":"10.0.2.9","macAddr":"02:ff"}],"noLinkLocal":true}],"#,
        r#""routes":[{"dest":"10.8.0.0/16","device":"eth0"},"#,
        r#"{"dest":"10.8.0.0/16","gateway":"10.0.2.1","device":"eth0"}]}"#
    );
    assert_eq!(text, expected);
}
