use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 8];
const V4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const V6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 2);
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1);
const UDP: u8 = 17;

fn filter() -> SourceFilter {
    SourceFilter::new(Sources { mac: MAC, addresses: vec![V4.into(), V6.into()] })
}

fn frame(source: [u8; 6], kind: u16, packet: &[u8]) -> Vec<u8> {
    [&[0; HEADER_LEN][..], &[0xff; 6], &source, &kind.to_be_bytes(), packet].concat()
}

fn ipv4(source: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0; IPV4_LEN + 8];
    packet[0] = 0x45;
    packet[9] = UDP;
    packet[12..16].copy_from_slice(&source.octets());
    frame(MAC, IPV4, &packet)
}

fn ipv6(source: Ipv6Addr, next: u8, rest: &[u8]) -> Vec<u8> {
    let mut packet = [0; IPV6_LEN];
    packet[0] = 0x60;
    packet[6] = next;
    packet[8..24].copy_from_slice(&source.octets());
    frame(MAC, IPV6, &[&packet[..], rest].concat())
}

fn arp(mac: [u8; 6], sender: Ipv4Addr) -> Vec<u8> {
    let packet = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &mac, &sender.octets(), &[0; 10]].concat();
    frame(MAC, ARP, &packet)
}

/// Returns a neighbour discovery message about `target`, with a hardware address option.
fn neighbour(kind: u8, target: Ipv6Addr, option: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), &[option, 1], &mac].concat()
}

fn own_link_local() -> Ipv6Addr {
    "fe80::ff:fe00:7".parse().unwrap()
}

fn refused(frame: &[u8]) -> Option<Refusal> {
    filter().check(&frame[..frame.len().min(HEAD_MAX)]).err()
}

#[test]
fn packets_from_the_interfaces_addresses_leave() {
    for frame in [
        ipv4(V4),
        ipv6(V6, UDP, &[0; 8]),
        ipv6(own_link_local(), UDP, &[0; 8]),
        arp(MAC, V4),
        // An ARP probe.
        arp(MAC, Ipv4Addr::UNSPECIFIED),
        ipv6(V6, ICMPV6, &neighbour(NEIGHBOUR_SOLICITATION, GATEWAY_V6, SOURCE_LINK_LAYER, MAC)),
        ipv6(V6, ICMPV6, &neighbour(NEIGHBOUR_ADVERTISEMENT, V6, TARGET_LINK_LAYER, MAC)),
        ipv6(own_link_local(), ICMPV6, &[ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0]),
        // Duplicate address detection, and a multicast listener report.
        ipv6(Ipv6Addr::UNSPECIFIED, ICMPV6, &neighbour(NEIGHBOUR_SOLICITATION, V6, 14, [0; 6])),
        ipv6(
            Ipv6Addr::UNSPECIFIED,
            HOP_BY_HOP,
            &[ICMPV6, 0, 5, 2, 0, 0, 1, 0, LISTENER_REPORT_V2, 0, 0, 0, 0, 0, 0, 0],
        ),
        // An echo request.
        ipv6(V6, ICMPV6, &[128, 0, 0, 0, 0, 0, 0, 0]),
    ] {
        assert_eq!(refused(&frame), None, "{frame:02x?}");
    }
}

#[test]
fn packets_from_other_addresses_do_not() {
    let nobody = Ipv6Addr::UNSPECIFIED;
    for (frame, why) in [
        (frame(OTHER_MAC, IPV4, &ipv4(V4)[HEADER_LEN + ETHERNET_LEN..]), "Ethernet source"),
        (ipv4(GATEWAY_V4), "IPv4 source"),
        (ipv4(Ipv4Addr::UNSPECIFIED), "IPv4 source"),
        (ipv4(Ipv4Addr::BROADCAST), "IPv4 source"),
        (ipv6(GATEWAY_V6, UDP, &[0; 8]), "IPv6 source"),
        (ipv6("fe80::1".parse().unwrap(), UDP, &[0; 8]), "IPv6 source"),
        (ipv6(V4.to_ipv6_mapped(), UDP, &[0; 8]), "IPv6 source"),
        (ipv6(nobody, UDP, &[0; 8]), "IPv6 source"),
        (ipv6(nobody, ICMPV6, &[128, 0, 0, 0]), "IPv6 source"),
        (ipv6(nobody, ICMPV6, &neighbour(NEIGHBOUR_SOLICITATION, GATEWAY_V6, 14, [0; 6])), "IPv6 source"),
        (arp(MAC, GATEWAY_V4), "ARP sender's address"),
        (arp(OTHER_MAC, V4), "ARP sender's hardware address"),
    ] {
        assert_eq!(refused(&frame), Some(why), "{frame:02x?}");
    }
}

#[test]
fn neighbour_discovery_speaks_for_the_interface_alone() {
    let discovery = "neighbour discovery's hardware address";
    let target = "neighbour advertisement's target";
    let options = "neighbour discovery's options";
    let router = "router's part in neighbour discovery";
    let advertisement = |address, mac| neighbour(NEIGHBOUR_ADVERTISEMENT, address, TARGET_LINK_LAYER, mac);
    for (message, why) in [
        (advertisement(GATEWAY_V6, MAC), target),
        (advertisement(Ipv6Addr::UNSPECIFIED, MAC), target),
        (advertisement(V6, OTHER_MAC), discovery),
        (neighbour(NEIGHBOUR_SOLICITATION, GATEWAY_V6, SOURCE_LINK_LAYER, OTHER_MAC), discovery),
        // The second of two options.
        ([advertisement(V6, MAC), vec![TARGET_LINK_LAYER, 1, 2, 0, 0, 0, 0, 8]].concat(), discovery),
        // Options without a length, or that extend past the message.
        ([advertisement(V6, MAC), vec![14, 0, 0, 0, 0, 0, 0, 0]].concat(), options),
        ([advertisement(V6, MAC), vec![14, 9, 0, 0, 0, 0, 0, 0]].concat(), options),
        ([advertisement(V6, MAC), vec![14]].concat(), options),
        (advertisement(V6, MAC)[..20].to_vec(), "neighbour discovery truncated"),
        (vec![134; 16], router),
        (vec![REDIRECT; 40], router),
    ] {
        assert_eq!(refused(&ipv6(V6, ICMPV6, &message)), Some(why), "{message:02x?}");
    }
    // After so many options that the next one is past the checked part.
    let mut padded = neighbour(NEIGHBOUR_ADVERTISEMENT, V6, TARGET_LINK_LAYER, MAC);
    padded.extend([14, 1, 0, 0, 0, 0, 0, 0].repeat(100));
    assert_eq!(refused(&ipv6(V6, ICMPV6, &padded)), Some("neighbour discovery in fragments, or too long"));
}

#[test]
fn frames_that_cannot_be_checked_do_not_leave() {
    let inner = &ipv4(V4)[HEADER_LEN + ETHERNET_LEN..];
    for kind in [0, 0x05dc, 0x8035, 0x8100, 0x88a8, 0x8847, 0x8864, 0x0801] {
        let tagged = frame(MAC, kind, &[&[0, 1, 8, 0], inner].concat());
        assert_eq!(refused(&tagged), Some("EtherType"), "{kind:#x}");
    }
    for (frame, why) in [
        (vec![], "no virtio header"),
        (vec![0; HEADER_LEN + ETHERNET_LEN - 1], "no Ethernet header"),
        (frame(MAC, ARP, &[0; ARP_LEN - 1]), "ARP truncated"),
        (frame(MAC, ARP, &[0; ARP_LEN]), "ARP of other addresses"),
        (frame(MAC, IPV4, &[0x45; IPV4_LEN - 1]), "IPv4 truncated"),
        (frame(MAC, IPV4, &[0x44; IPV4_LEN]), "IPv4 header"),
        (frame(MAC, IPV4, &[0x65; IPV4_LEN]), "IPv4 header"),
        (frame(MAC, IPV6, &[0x60; IPV6_LEN - 1]), "IPv6 truncated"),
        (frame(MAC, IPV6, &[0x45; IPV6_LEN]), "IPv6 header"),
        (ipv6(V6, HOP_BY_HOP, &[UDP]), "IPv6 headers truncated"),
        (ipv6(V6, FRAGMENT, &[UDP, 0, 0]), "IPv6 headers truncated"),
        (ipv6(V6, DESTINATION, &[UDP, 200, 0, 0]), "IPv6 headers truncated"),
        (ipv6(V6, DESTINATION, &[ICMPV6, 200, 0, 0]), "IPv6 headers truncated"),
        (ipv6(V6, ICMPV6, &[136]), "ICMPv6 truncated"),
        (ipv6(V6, HOP_BY_HOP, &[0; 8 * (EXTENSIONS_MAX + 2)]), "too many IPv6 headers"),
    ] {
        assert_eq!(refused(&frame), Some(why), "{frame:02x?}");
    }
}

#[test]
fn fragments_carry_no_neighbour_discovery() {
    let advertisement = neighbour(NEIGHBOUR_ADVERTISEMENT, V6, TARGET_LINK_LAYER, MAC);
    let fragment = |source, next, offset: u16, rest: &[u8]| {
        let header = [&[next, 0][..], &(offset << 3 | 1).to_be_bytes(), &[0; 4]].concat();
        ipv6(source, FRAGMENT, &[&header, rest].concat())
    };
    let discovery = Some("neighbour discovery in fragments, or too long");
    assert_eq!(refused(&fragment(V6, ICMPV6, 0, &advertisement)), discovery);
    // After a second extension header.
    let behind = [&[ICMPV6, 0, 1, 4, 0, 0, 0, 0], &advertisement[..]].concat();
    assert_eq!(refused(&fragment(V6, DESTINATION, 0, &behind)), discovery);
    assert_eq!(refused(&fragment(V6, UDP, 0, &[0; 8])), None);
    assert_eq!(refused(&fragment(V6, UDP, 100, &[0; 8])), None);
    assert_eq!(refused(&fragment(GATEWAY_V6, UDP, 100, &[0; 8])), Some("IPv6 source"));
    assert_eq!(refused(&fragment(Ipv6Addr::UNSPECIFIED, ICMPV6, 100, &[0; 8])), Some("IPv6 source"));
}

#[test]
fn a_checksum_changes_nothing_that_was_judged() {
    let with = |mut frame: Vec<u8>, start: usize, offset: u16| {
        frame[0] = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
        frame[6..8].copy_from_slice(&(start as u16).to_le_bytes());
        frame[8..10].copy_from_slice(&offset.to_le_bytes());
        frame
    };
    let place = Some("place of the checksum");
    let v4 = ETHERNET_LEN + IPV4_LEN;
    let v6 = ETHERNET_LEN + IPV6_LEN;
    let message = neighbour(NEIGHBOUR_ADVERTISEMENT, V6, TARGET_LINK_LAYER, MAC);
    for (frame, expected) in [
        (with(ipv4(V4), v4, 6), None),
        // A packet inside a packet.
        (with(ipv4(V4), v4 + 8, 6), None),
        // Overwrites the source.
        (with(ipv4(V4), ETHERNET_LEN, 12), place),
        (with(ipv4(V4), v4 - 2, 0), place),
        (with(ipv4(V4), 0, 6), place),
        (with(ipv6(V6, UDP, &[0; 8]), v6, 6), None),
        (with(ipv6(V6, UDP, &[0; 8]), ETHERNET_LEN, 8), place),
        (with(arp(MAC, V4), ETHERNET_LEN + ARP_LEN, 0), place),
        (with(ipv6(V6, ICMPV6, &message), v6, 2), None),
        // Overwrites the target.
        (with(ipv6(V6, ICMPV6, &message), v6, 8), place),
        (with(ipv6(V6, ICMPV6, &message), v6 + 2, 0), place),
    ] {
        assert_eq!(refused(&frame), expected, "{frame:02x?}");
    }
}

#[test]
fn changed_addresses_apply_at_once() {
    let filter = filter();
    let other = filter.clone();
    assert!(filter.check(&ipv4(GATEWAY_V4)).is_err());
    other.set_addresses(vec![GATEWAY_V4.into()]);
    assert_eq!(filter.check(&ipv4(GATEWAY_V4)), Ok(()));
    assert!(filter.check(&ipv4(V4)).is_err());
}

proptest::proptest! {
    #[test]
    fn no_frame_does_harm(mut bytes: Vec<u8>, kind in 0..4usize, next: u8) {
        let kinds = [IPV4, IPV6, ARP, 0x8100];
        if bytes.len() > HEADER_LEN + ETHERNET_LEN + IPV6_LEN {
            bytes[HEADER_LEN + 6..HEADER_LEN + 12].copy_from_slice(&MAC);
            bytes[HEADER_LEN + 12..HEADER_LEN + 14].copy_from_slice(&kinds[kind].to_be_bytes());
            let packet = &mut bytes[HEADER_LEN + ETHERNET_LEN..];
            packet[0] = if kind == 0 { 0x45 } else { 0x60 };
            packet[6] = next % 64;
            packet[8..24].copy_from_slice(&V6.octets());
        }
        let _ = refused(&bytes);
    }
}
