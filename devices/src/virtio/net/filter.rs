//! Which frames of a guest's may leave, where its interface is held to its own addresses.
//!
//! A frame leaves if everything in it that says who sent it is the interface's: the Ethernet source, the sender in ARP, the
//! IPv4 or IPv6 source, and in neighbour discovery the address that an advertisement is for and the hardware address that
//! goes with it. What cannot be judged does not leave: any other EtherType, and so VLAN tags, 802.3 frames and RARP; an
//! IPv6 chain of headers that is cut short or longer than [`EXTENSIONS_MAX`]; neighbour discovery in fragments (RFC 6980).
//!
//! Two senders are nobody's, and so nobody can be taken for them: an ARP probe (RFC 5227) has no IPv4 address, and IPv6's
//! unspecified address may ask whether an address of the interface's is taken, and say what groups it listens to. A DHCP
//! client has none either and is refused: the host configures the interface.
//!
//! The packet's virtio header counts, too. The host computes a checksum where the header says, and writes it there: one
//! that lay in what has been judged would change it afterwards. So it may only be where the transport header begins, or
//! behind that. Segments that the host cuts have the headers of the whole.
//!
//! Pure: bytes in, a reason out. The bytes are a copy of the packet's beginning, and what is sent begins with that copy,
//! since guest memory may change between a look and a write.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_bindings::virtio_net::VIRTIO_NET_HDR_F_NEEDS_CSUM;

use super::{ETHERNET_LEN, HEADER_LEN};

/// Bytes of a packet's beginning that are judged, with its virtio header; whatever counts is in them.
pub const HEAD_MAX: usize = 512;
/// The most IPv6 extension headers before the transport's.
const EXTENSIONS_MAX: usize = 8;

/// EtherTypes.
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

const ARP_LEN: usize = 28;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;

/// IPv6's next headers.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;
const DESTINATION: u8 = 60;

/// ICMPv6 types: neighbour discovery's are these (RFC 4861), and the second version of a listener's report (RFC 3810).
const ROUTER_SOLICITATION: u8 = 133;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const LISTENER_REPORT_V2: u8 = 143;
/// Where ICMPv6 has its checksum.
const ICMPV6_CHECKSUM: usize = 2;

/// Options of neighbour discovery: the hardware address of a message's source, and of its target.
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;

/// Why a frame does not leave.
type Refusal = &'static str;

/// The addresses of an interface, which are all that its guest may send from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// The hardware address.
    pub mac: [u8; 6],
    /// IPv4 and IPv6 addresses. The link-local one that IPv6 makes of the hardware address is allowed besides.
    pub addresses: Vec<IpAddr>,
}

/// Holds a device to the addresses of its interface. Clones share them, so that they may change while packets go out.
#[derive(Clone, Debug)]
pub struct SourceFilter(Arc<Mutex<Sources>>);

impl SourceFilter {
    /// Returns a filter that lets these sources through.
    pub fn new(sources: Sources) -> SourceFilter {
        SourceFilter(Arc::new(Mutex::new(sources)))
    }

    /// Lets other addresses through from now on.
    pub fn set_addresses(&self, addresses: Vec<IpAddr>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).addresses = addresses;
    }

    /// Judges a packet by its first [`HEAD_MAX`] bytes, or as many as it has. An error says what is not the interface's.
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
        let arp = packet.get(..ARP_LEN).ok_or("ARP cut short")?;
        // Ethernet, IPv4, and the lengths of their addresses.
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
        let ip = packet.get(..IPV4_LEN).ok_or("IPv4 cut short")?;
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
        let ip = packet.get(..IPV6_LEN).ok_or("IPv6 cut short")?;
        if ip[0] >> 4 != 6 {
            return Err("IPv6 header");
        }
        let source = address(&ip[8..24]).ok_or("IPv6 cut short")?;
        let own = self.has(source.into());
        if !own && !source.is_unspecified() {
            return Err("IPv6 source");
        }
        let Chain { last, at, fragment } = Chain::follow(packet)?;
        if fragment == Some(Part::Later) {
            // The part that has the transport header has been judged, or will be.
            return if own { Ok(Transport::None) } else { Err("IPv6 source") };
        }
        if last != ICMPV6 {
            return if own { Ok(Transport::At(ETHERNET_LEN + at)) } else { Err("IPv6 source") };
        }
        let message = packet.get(at..).filter(|message| message.len() >= 4).ok_or("ICMPv6 cut short")?;
        let is_whole = HEADER_LEN + ETHERNET_LEN + packet.len() < HEAD_MAX;
        if (ROUTER_SOLICITATION..=REDIRECT).contains(&message[0]) && (fragment.is_some() || !is_whole) {
            return Err("neighbour discovery in fragments, or too long");
        }
        self.check_icmpv6(message, own)?;
        Ok(Transport::Icmpv6At(ETHERNET_LEN + at))
    }

    /// Judges a message of ICMPv6. `own`: it comes from an address of the interface's, else from none.
    fn check_icmpv6(&self, message: &[u8], own: bool) -> Result<(), Refusal> {
        let target = || message.get(8..24).and_then(address).ok_or("neighbour discovery cut short");
        match message[0] {
            NEIGHBOUR_SOLICITATION if !own && !self.has(target()?.into()) => Err("IPv6 source"),
            NEIGHBOUR_SOLICITATION => self.check_options(message.get(24..).unwrap_or_default()),
            NEIGHBOUR_ADVERTISEMENT if !own || !self.has(target()?.into()) => {
                Err("neighbour advertisement's target")
            }
            NEIGHBOUR_ADVERTISEMENT => self.check_options(message.get(24..).unwrap_or_default()),
            // These speak for routers.
            ROUTER_SOLICITATION if own => self.check_options(message.get(8..).unwrap_or_default()),
            ROUTER_SOLICITATION..=REDIRECT => Err("router's part in neighbour discovery"),
            LISTENER_REPORT_V2 => Ok(()),
            _ if own => Ok(()),
            _ => Err("IPv6 source"),
        }
    }

    /// Judges neighbour discovery's options: type, length in units of eight bytes, and what it says.
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

/// What the header of a checksum is measured against.
enum Transport {
    /// There is no header of a transport's: no checksum of one is to be computed.
    None,
    /// It begins at so many bytes of the frame.
    At(usize),
    /// The same, and what follows has been judged, too.
    Icmpv6At(usize),
}

/// Refuses a checksum that would be written over what has been judged. `header` is the packet's virtio header (5.1.6).
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

/// Which part of a packet a fragment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    First,
    Later,
}

/// Where an IPv6 packet's extension headers end.
struct Chain {
    /// The header that is no extension.
    last: u8,
    /// Where it begins.
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
                (HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT, _) => return Err("IPv6 headers cut short"),
                _ if chain.at > packet.len() => return Err("IPv6 headers cut short"),
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

/// The link-local address that is made of a hardware address (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

#[cfg(test)]
mod tests;
