//! The source filter: decides which frames of a guest may leave if its interface is restricted to its own addresses.
//!
//! A frame leaves if all addresses in it that identify the sender are the interface's: the Ethernet source, the sender
//! in ARP, the IPv4 or IPv6 source, and in neighbour discovery the target of an advertisement and its hardware address.
//! A frame that cannot be checked does not leave: any other EtherType, and so VLAN tags, 802.3 frames and RARP; IPv6
//! extension headers that are truncated or more than [`EXTENSIONS_MAX`]; neighbour discovery in fragments (RFC 6980).
//!
//! Two kinds of frames without a source address may leave, since they cannot impersonate another host. An ARP probe
//! (RFC 5227) has no IPv4 address. A frame from IPv6's unspecified address may test whether one of the interface's
//! addresses is in use, and report its multicast groups. A DHCP client's frames also have no source address, but are
//! refused: the host configures the interface.
//!
//! The packet's virtio header is checked as well. It tells the host where to compute and write a checksum. Inside the
//! part that was checked, that write would change it afterwards, so the checksum must be in the transport header or
//! after it. When the host segments a packet, all segments get the headers of the whole packet.
//!
//! This module does no I/O: bytes go in, a reason comes out. The bytes are a copy of the packet's beginning, and the
//! packet is sent with that copy, because guest memory may change between the check and the write.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_bindings::virtio_net::VIRTIO_NET_HDR_F_NEEDS_CSUM;

use super::packet::{ETHERNET_LEN, HEADER_LEN};

/// Number of bytes at a packet's beginning that are checked, including the virtio header. All relevant headers are in
/// them.
pub const HEAD_MAX: usize = 512;
/// Limit of IPv6 extension headers before the transport header.
const EXTENSIONS_MAX: usize = 8;

/// EtherTypes.
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

const ARP_LEN: usize = 28;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;

/// Values of IPv6's next header field.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;
const DESTINATION: u8 = 60;

/// ICMPv6 types: those of neighbour discovery (RFC 4861), and the version 2 multicast listener report (RFC 3810).
const ROUTER_SOLICITATION: u8 = 133;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const LISTENER_REPORT_V2: u8 = 143;
/// Offset of the checksum in ICMPv6.
const ICMPV6_CHECKSUM: usize = 2;

/// Options of neighbour discovery: the hardware addresses of a message's source and of its target.
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;

/// Why a frame must not leave: the header or field that is refused.
type Refusal = &'static str;

/// The addresses of an interface, from which its guest may send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// Hardware address.
    pub mac: [u8; 6],
    /// IPv4 and IPv6 addresses. The IPv6 link-local address that is derived from `mac` is also allowed.
    pub addresses: Vec<IpAddr>,
}

/// Restricts a device to the addresses of its interface. Clones share the addresses, which can change while the machine
/// runs.
#[derive(Clone, Debug)]
pub struct SourceFilter(Arc<Mutex<Sources>>);

impl SourceFilter {
    /// Returns a filter that allows these sources.
    pub fn new(sources: Sources) -> SourceFilter {
        SourceFilter(Arc::new(Mutex::new(sources)))
    }

    /// Replaces the allowed IP addresses.
    pub fn set_addresses(&self, addresses: Vec<IpAddr>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).addresses = addresses;
    }

    /// Checks the first [`HEAD_MAX`] bytes of a packet, or the whole packet if it is shorter. The error names the field
    /// that is refused.
    pub fn check(&self, head: &[u8]) -> Result<(), Refusal> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).check(head)
    }
}

impl Sources {
    fn check(&self, head: &[u8]) -> Result<(), Refusal> {
        let (header, frame) = head.split_at_checked(HEADER_LEN).ok_or("no virtio header")?;
        let (ethernet, packet) = frame.split_at_checked(ETHERNET_LEN).ok_or("no Ethernet header")?;
        if ethernet[6..12] != self.mac {
            return Err("Ethernet source");
        }
        let transport = match u16::from_be_bytes([ethernet[12], ethernet[13]]) {
            ARP => self.check_arp(packet)?,
            IPV4 => self.check_ipv4(packet)?,
            IPV6 => self.check_ipv6(packet)?,
            _ => return Err("EtherType"),
        };
        check_checksum(header, transport)
    }

    fn check_arp(&self, packet: &[u8]) -> Result<Transport, Refusal> {
        let arp = packet.get(..ARP_LEN).ok_or("ARP truncated")?;
        // Hardware type Ethernet, protocol IPv4, and the lengths of their addresses.
        if arp[..6] != [0, 1, 8, 0, 6, 4] {
            return Err("ARP of other addresses");
        }
        if arp[8..14] != self.mac {
            return Err("ARP sender's hardware address");
        }
        let sender = Ipv4Addr::new(arp[14], arp[15], arp[16], arp[17]);
        if sender.is_unspecified() || self.has(sender.into()) {
            Ok(Transport::None)
        } else {
            Err("ARP sender's address")
        }
    }

    fn check_ipv4(&self, packet: &[u8]) -> Result<Transport, Refusal> {
        let ip = packet.get(..IPV4_LEN).ok_or("IPv4 truncated")?;
        let len = 4 * usize::from(ip[0] & 0xf);
        if ip[0] >> 4 != 4 || len < IPV4_LEN {
            return Err("IPv4 header");
        }
        if !self.has(Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]).into()) {
            return Err("IPv4 source");
        }
        Ok(Transport::At(ETHERNET_LEN + len))
    }

    fn check_ipv6(&self, packet: &[u8]) -> Result<Transport, Refusal> {
        let ip = packet.get(..IPV6_LEN).ok_or("IPv6 truncated")?;
        if ip[0] >> 4 != 6 {
            return Err("IPv6 header");
        }
        let source = address(&ip[8..24]).ok_or("IPv6 truncated")?;
        let own = self.has(source.into());
        if !own && !source.is_unspecified() {
            return Err("IPv6 source");
        }
        let Chain { last, at, fragment } = Chain::follow(packet)?;
        if fragment == Some(Part::Later) {
            // The fragment with the transport header is checked on its own.
            return if own { Ok(Transport::None) } else { Err("IPv6 source") };
        }
        if last != ICMPV6 {
            return if own { Ok(Transport::At(ETHERNET_LEN + at)) } else { Err("IPv6 source") };
        }
        let message = packet.get(at..).filter(|message| message.len() >= 4).ok_or("ICMPv6 truncated")?;
        let is_whole = HEADER_LEN + ETHERNET_LEN + packet.len() < HEAD_MAX;
        if (ROUTER_SOLICITATION..=REDIRECT).contains(&message[0]) && (fragment.is_some() || !is_whole) {
            return Err("neighbour discovery in fragments, or too long");
        }
        self.check_icmpv6(message, own)?;
        Ok(Transport::Icmpv6At(ETHERNET_LEN + at))
    }

    /// Checks an ICMPv6 message. `own`: the source is an address of the interface; otherwise it is unspecified.
    fn check_icmpv6(&self, message: &[u8], own: bool) -> Result<(), Refusal> {
        let target = || message.get(8..24).and_then(address).ok_or("neighbour discovery truncated");
        match message[0] {
            NEIGHBOUR_SOLICITATION if !own && !self.has(target()?.into()) => Err("IPv6 source"),
            NEIGHBOUR_SOLICITATION => self.check_options(message.get(24..).unwrap_or_default()),
            NEIGHBOUR_ADVERTISEMENT if !own || !self.has(target()?.into()) => {
                Err("neighbour advertisement's target")
            }
            NEIGHBOUR_ADVERTISEMENT => self.check_options(message.get(24..).unwrap_or_default()),
            // Only routers send the others. A router solicitation needs a source address.
            ROUTER_SOLICITATION if own => self.check_options(message.get(8..).unwrap_or_default()),
            ROUTER_SOLICITATION..=REDIRECT => Err("router's part in neighbour discovery"),
            LISTENER_REPORT_V2 => Ok(()),
            _ if own => Ok(()),
            _ => Err("IPv6 source"),
        }
    }

    /// Checks the options of neighbour discovery. An option is a type, a length in units of eight bytes, and data.
    fn check_options(&self, mut options: &[u8]) -> Result<(), Refusal> {
        while let [kind, units, ..] = *options {
            let len = 8 * usize::from(units);
            let (option, rest) =
                options.split_at_checked(len).filter(|_| len > 0).ok_or("neighbour discovery's options")?;
            if matches!(kind, SOURCE_LINK_LAYER | TARGET_LINK_LAYER) && option[2..8] != self.mac {
                return Err("neighbour discovery's hardware address");
            }
            options = rest;
        }
        if options.is_empty() { Ok(()) } else { Err("neighbour discovery's options") }
    }

    fn has(&self, address: IpAddr) -> bool {
        !address.is_unspecified()
            && (self.addresses.contains(&address) || address == IpAddr::V6(link_local(self.mac)))
    }
}

/// Position of the transport header, which limits where a checksum may be written.
enum Transport {
    /// There is no transport header, so no checksum may be written.
    None,
    /// The header starts at this offset of the frame.
    At(usize),
    /// An ICMPv6 header starts at this offset of the frame. The message has been checked as well.
    Icmpv6At(usize),
}

/// Refuses a checksum that would overwrite what has been checked. `header` is the packet's virtio header (5.1.6).
fn check_checksum(header: &[u8], transport: Transport) -> Result<(), Refusal> {
    if u32::from(header[0]) & VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 {
        return Ok(());
    }
    let word = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (start, offset) = (word(6), word(8));
    let fits = match transport {
        Transport::None => false,
        Transport::At(at) => start >= at,
        Transport::Icmpv6At(at) => start == at && offset == ICMPV6_CHECKSUM,
    };
    if fits { Ok(()) } else { Err("place of the checksum") }
}

/// Position of a fragment in its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    First,
    Later,
}

/// The end of an IPv6 packet's extension headers.
struct Chain {
    /// Type of the first header that is not an extension header.
    last: u8,
    /// Offset of that header in the packet.
    at: usize,
    fragment: Option<Part>,
}

impl Chain {
    fn follow(packet: &[u8]) -> Result<Chain, Refusal> {
        let mut chain = Chain { last: packet[6], at: IPV6_LEN, fragment: None };
        for _ in 0..=EXTENSIONS_MAX {
            let header = packet.get(chain.at..).unwrap_or_default();
            let len = match (chain.last, header) {
                (HOP_BY_HOP | ROUTING | DESTINATION, [_, units, ..]) => 8 * (usize::from(*units) + 1),
                (FRAGMENT, [_, _, high, low, ..]) => {
                    let later = u16::from_be_bytes([*high, *low]) >> 3 != 0;
                    chain.fragment = Some(if later { Part::Later } else { Part::First });
                    8
                }
                (HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT, _) => return Err("IPv6 headers truncated"),
                _ if chain.at > packet.len() => return Err("IPv6 headers truncated"),
                _ => return Ok(chain),
            };
            chain.last = header[0];
            chain.at += len;
            if chain.fragment == Some(Part::Later) {
                return Ok(chain);
            }
        }
        Err("too many IPv6 headers")
    }
}

fn address(bytes: &[u8]) -> Option<Ipv6Addr> {
    <[u8; 16]>::try_from(bytes).ok().map(Ipv6Addr::from)
}

/// Returns the link-local address that is derived from a hardware address (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

#[cfg(test)]
mod tests;
