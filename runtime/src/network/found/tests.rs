//! What the kernel writes, by the byte.

use super::*;

fn attribute(kind: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = (4 + data.len() as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// rtmsg of IPv4: bits, table, protocol, kind, flags.
fn rtmsg(bits: u8, table: u8, protocol: u8, kind: u8, flags: u32) -> [u8; 12] {
    let [a, b, c, d] = flags.to_ne_bytes();
    [2, bits, 0, 0, table, protocol, 0, kind, a, b, c, d]
}

#[test]
fn a_link_is_read_with_what_made_it() {
    let mut fixed = [0; LINK];
    (fixed[2], fixed[4], fixed[8]) = (1, 7, 0x43);
    let rest = [
        attribute(3, b"eth0\0"),
        attribute(1, &[2, 0, 0, 0, 0, 1]),
        attribute(4, &1400u32.to_ne_bytes()),
        attribute(18, &attribute(1, b"veth\0")),
    ];
    let expected = Link {
        index: 7,
        name: "eth0".into(),
        mac: vec![2, 0, 0, 0, 0, 1],
        mtu: 1400,
        flags: 0x43,
        hardware: libc::ARPHRD_ETHER,
        driver: "veth".into(),
    };
    assert_eq!(link(&fixed, &rest.concat()), Some(expected));
}

#[test]
fn an_addresss_own_end_is_told_from_its_peer() {
    let fixed = [2, 24, 0x80, 0, 3, 0, 0, 0];
    let (own, other) = (attribute(2, &[10, 0, 0, 2]), attribute(1, &[10, 0, 0, 9]));
    let found = address(&fixed, &[own.clone(), other].concat()).unwrap();
    assert_eq!((found.link, found.bits), (3, 24));
    assert_eq!((found.address, found.peer), ([10, 0, 0, 2].into(), Some([10, 0, 0, 9].into())));
    let same = [own, attribute(1, &[10, 0, 0, 2]), attribute(8, &0x280u32.to_ne_bytes())].concat();
    let found = address(&fixed, &same).unwrap();
    assert_eq!((found.peer, found.no_prefix_route), (None, true));
    // IPv6 has the first attribute alone.
    let found = address(&[10, 64, 0, 0, 3, 0, 0, 0], &attribute(1, &[0xfd; 16])).unwrap();
    assert_eq!((found.address, found.peer), ([0xfd; 16].into(), None));
    assert_eq!(address(&fixed, &attribute(1, &[1, 2])), None);
}

#[test]
fn a_route_is_read_with_all_that_a_guest_can_have() {
    let rest = [
        attribute(1, &[10, 8, 0, 0]),
        attribute(4, &3u32.to_ne_bytes()),
        attribute(5, &[10, 0, 0, 1]),
        attribute(6, &7u32.to_ne_bytes()),
        attribute(7, &[10, 0, 0, 2]),
        attribute(8, &attribute(2, &1300u32.to_ne_bytes())),
    ];
    let expected = Route {
        link: 3,
        destination: ([10, 8, 0, 0].into(), 16),
        gateway: Some([10, 0, 0, 1].into()),
        on_link: true,
        source: Some([10, 0, 0, 2].into()),
        metric: 7,
        mtu: 1300,
        beyond: None,
    };
    assert_eq!(route(&rtmsg(16, 254, 3, 1, 4), &rest.concat()), Some(expected));
}

#[test]
fn routes_of_the_kernel_of_routers_and_of_other_tables_are_none_of_ours() {
    for fixed in [rtmsg(0, 254, 2, 1, 0), rtmsg(0, 254, 9, 1, 0), rtmsg(0, 255, 3, 1, 0)] {
        assert_eq!(route(&fixed, &attribute(4, &3u32.to_ne_bytes())), None);
    }
    let elsewhere = attribute(15, &1000u32.to_ne_bytes());
    assert_eq!(route(&rtmsg(0, 254, 3, 1, 0), &elsewhere), None);
}

#[test]
fn what_a_guest_cannot_have_of_a_route_is_named() {
    let beyond = |fixed: [u8; 12], rest: &[u8]| route(&fixed, rest).unwrap().beyond;
    let plain = rtmsg(0, 254, 3, 1, 0);
    assert_eq!(beyond(plain, &[]), None);
    assert_eq!(beyond(rtmsg(0, 254, 3, 6, 0), &[]), Some("another type than unicast"));
    assert_eq!(beyond(plain, &attribute(9, &[])), Some("several next hops"));
    assert_eq!(beyond(plain, &attribute(18, &[])), Some("a next hop of the other family"));
    assert_eq!(beyond(plain, &attribute(22, &[])), Some("an encapsulation"));
    assert_eq!(beyond(plain, &attribute(8, &attribute(4, &[0; 4]))), Some("metrics"));
}

#[test]
fn neighbours_count_that_are_for_good() {
    let rest = [attribute(1, &[10, 0, 0, 9]), attribute(2, &[2, 0, 0, 0, 0, 9])].concat();
    let fixed = |state: u8, flags: u8| [2, 0, 0, 0, 3, 0, 0, 0, state, 0, flags, 0];
    let expected = Neighbour { link: 3, address: [10, 0, 0, 9].into(), mac: vec![2, 0, 0, 0, 0, 9] };
    assert_eq!(neighbour(&fixed(0x80, 0), &rest), Some(expected));
    assert_eq!(neighbour(&fixed(0x02, 0), &rest), None);
    assert_eq!(neighbour(&fixed(0x80, 0x08), &rest), None);
}
