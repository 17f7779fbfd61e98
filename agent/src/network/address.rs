//! Addresses and networks in API 4244's notation.

use alloc::format;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::error::Error;

/// An address and its prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// The address, including host bits.
    pub address: IpAddr,
    /// Prefix length.
    pub bits: u8,
}

impl Network {
    /// Parses an address and its mask, which is a prefix length, or for IPv4 also a netmask in dotted form.
    pub fn with_mask(address: &str, mask: &str) -> Result<Network, Error> {
        let parsed = parse(address)?;
        let bits = bits(mask, parsed)
            .ok_or_else(|| Error::bad_request(format!("address {address}: invalid mask {mask:?}")))?;
        Ok(Network { address: parsed, bits })
    }

    /// Parses a route's destination: all addresses of the gateway's family, a network, or a single address.
    pub fn destination(text: &str, gateway: Option<IpAddr>) -> Result<Network, Error> {
        if matches!(text, "default" | "any" | "all") {
            let v6 = gateway.is_some_and(|gateway| gateway.is_ipv6());
            let address = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
            return Ok(Network { address, bits: 0 });
        }
        let Some((address, mask)) = text.split_once('/') else {
            let address = parse(text)?;
            return Ok(Network { address, bits: width(address) });
        };
        // The kernel refuses a network address with host bits.
        Ok(Network::with_mask(address, mask)?.network())
    }

    fn network(self) -> Network {
        let address = match self.address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                Ipv4Addr::from(u32::from(v4) & mask).into()
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                Ipv6Addr::from(u128::from(v6) & mask).into()
            }
        };
        Network { address, ..self }
    }
}

/// Parses an IP address.
pub fn parse(text: &str) -> Result<IpAddr, Error> {
    text.parse().map_err(|_| Error::bad_request(format!("invalid IP address {text:?}")))
}

/// Parses a hardware address: hexadecimal bytes, separated by colons.
pub fn parse_link(text: &str) -> Result<Vec<u8>, Error> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    bytes
        .collect::<Result<_, _>>()
        .map_err(|_| Error::bad_request(format!("invalid hardware address {text:?}")))
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn bits(mask: &str, address: IpAddr) -> Option<u8> {
    if let Ok(bits) = mask.parse::<u8>() {
        return (bits <= width(address)).then_some(bits);
    }
    if address.is_ipv6() {
        return None;
    }
    let mask = u32::from(mask.parse::<Ipv4Addr>().ok()?);
    (mask.leading_ones() + mask.trailing_zeros() == 32).then_some(mask.leading_ones() as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_mask(address: &str, mask: &str) -> Option<u8> {
        Network::with_mask(address, mask).ok().map(|network| network.bits)
    }

    #[test]
    fn masks_are_bits_or_dotted() {
        assert_eq!(with_mask("10.0.0.2", "24"), Some(24));
        assert_eq!(with_mask("10.0.0.2", "255.255.240.0"), Some(20));
        assert_eq!(with_mask("10.0.0.2", "0.0.0.0"), Some(0));
        assert_eq!(with_mask("10.0.0.2", "255.255.255.255"), Some(32));
        assert_eq!(with_mask("fd00::2", "64"), Some(64));
    }

    #[test]
    fn invalid_masks_and_addresses_are_refused_by_name() {
        for (address, mask) in
            [("10.0.0.2", "33"), ("10.0.0.2", "255.0.255.0"), ("10.0.0.2", ""), ("fd00::2", "129")]
        {
            assert_eq!(with_mask(address, mask), None, "{mask}");
        }
        let error = Network::with_mask("fd00::2", "255.255.0.0").unwrap_err();
        assert_eq!(error.text, "address fd00::2: invalid mask \"255.255.0.0\"");
        assert_eq!(parse("10.0.0").unwrap_err().text, "invalid IP address \"10.0.0\"");
        assert_eq!(parse_link("02:x").unwrap_err().text, "invalid hardware address \"02:x\"");
        assert_eq!(parse_link("02:fF").unwrap(), [2, 0xff]);
    }

    #[test]
    fn destinations_are_everything_networks_or_one_address() {
        let check = |text: &str, gateway: Option<&str>| {
            let gateway = gateway.map(|gateway| gateway.parse().unwrap());
            let network = Network::destination(text, gateway).unwrap();
            format!("{}/{}", network.address, network.bits)
        };
        for word in ["default", "any", "all"] {
            assert_eq!(check(word, None), "0.0.0.0/0");
        }
        assert_eq!(check("default", Some("fe80::1")), "::/0");
        assert_eq!(check("10.1.2.3/16", None), "10.1.0.0/16");
        assert_eq!(check("10.1.2.3/0", None), "0.0.0.0/0");
        assert_eq!(check("fd00:1:2::3/48", None), "fd00:1:2::/48");
        assert_eq!(check("10.1.2.3", None), "10.1.2.3/32");
        assert_eq!(check("fd00::1", None), "fd00::1/128");
    }
}
