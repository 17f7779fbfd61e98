//! Routes of the main table (linux/rtnetlink.h, `struct rtmsg`).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::attributes::{self, Attributes, Nest, kind, number};
use crate::message::{IPV4, IPV6, Message, Object, Operation, Verb, family};

/// Length of rtmsg.
const FIXED: usize = 12;
/// RT_TABLE_MAIN.
const TABLE_MAIN: u8 = 254;
/// RTN_UNICAST.
const UNICAST: u8 = 1;
/// RTNH_F_ONLINK.
const ON_LINK: u32 = 0x4;

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Number of the link. 0 if there are several, or if the kernel must find the link by the gateway.
    pub link: u32,
    /// Network and prefix length.
    pub destination: (IpAddr, u8),
    /// Address of the next hop.
    pub gateway: Option<IpAddr>,
    /// The next hop is on the link, even if the link's addresses do not include it.
    pub on_link: bool,
    /// Source address of packets.
    pub source: Option<IpAddr>,
    /// Metric; the lowest one is preferred. 0 means the kernel's default.
    pub metric: u32,
    /// MTU of the route in bytes. 0 means the link's MTU.
    pub mtu: u32,
    /// A property of a parsed route that the other fields cannot express, so that the route cannot be reproduced.
    /// Requests do not contain it.
    pub unsupported: Option<&'static str>,
}

impl Route {
    /// Returns a request for the routes of all tables.
    pub fn list_request() -> Message {
        Message::new(Verb::LIST, Object::Route, &[0; FIXED])
    }

    /// Returns a request that adds this route and replaces one to the same network with the same metric
    /// ([`Operation::Put`]), or deletes this route.
    pub fn request(&self, operation: Operation) -> Message {
        /// RTPROT_BOOT: the route was added by an administrator.
        const BY_BOOT: u8 = 3;
        /// RT_SCOPE_UNIVERSE and RT_SCOPE_LINK.
        const SCOPE_UNIVERSE: u8 = 0;
        const SCOPE_LINK: u8 = 253;
        let (network, bits) = self.destination;
        let direct = self.gateway.is_none() && network.is_ipv4();
        let scope = if direct { SCOPE_LINK } else { SCOPE_UNIVERSE };
        let [a, b, c, d] = if self.on_link { ON_LINK } else { 0 }.to_ne_bytes();
        let fixed = [family(network), bits, 0, 0, TABLE_MAIN, BY_BOOT, scope, UNICAST, a, b, c, d];
        let mut message = Message::new(operation, Object::Route, &fixed);
        if bits > 0 {
            message = message.with_address(kind::ROUTE_DESTINATION, network);
        }
        if let Some(gateway) = self.gateway {
            message = message.with_address(kind::ROUTE_GATEWAY, gateway);
        }
        if self.link > 0 {
            message = message.with_number(kind::ROUTE_LINK, self.link);
        }
        if let Some(source) = self.source {
            message = message.with_address(kind::ROUTE_SOURCE, source);
        }
        if self.metric > 0 {
            message = message.with_number(kind::ROUTE_PRIORITY, self.metric);
        }
        if self.mtu > 0 {
            let metrics = Nest::default().with(kind::ROUTE_METRICS_MTU, &self.mtu.to_ne_bytes());
            message = message.nest(kind::ROUTE_METRICS, &metrics);
        }
        message
    }

    /// Parses an entry of the list. `None` for routes of other tables, routes that the kernel derives from addresses,
    /// and routes that routers advertise.
    pub fn parse(body: &[u8]) -> Option<Route> {
        /// RTPROT_KERNEL and RTPROT_RA.
        const BY_KERNEL: u8 = 2;
        const BY_ADVERTISEMENT: u8 = 9;
        /// RTM_F_CLONED.
        const CLONED: u32 = 0x200;
        let (fixed, rest) = body.split_first_chunk::<FIXED>()?;
        let [family, bits, _, tos, table, protocol, _, route_type, ..] = *fixed;
        let flags = number(&fixed[8..]);
        let everything = match family {
            IPV4 => Ipv4Addr::UNSPECIFIED.into(),
            IPV6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => return None,
        };
        let mut table = u32::from(table);
        let mut route = Route {
            link: 0,
            destination: (everything, bits),
            gateway: None,
            on_link: flags & ON_LINK != 0,
            source: None,
            metric: 0,
            mtu: 0,
            unsupported: (tos != 0).then_some("a type of service"),
        };
        if route_type != UNICAST {
            route.unsupported = Some("a type other than unicast");
        }
        for (attribute, data) in Attributes::new(rest) {
            match attribute {
                kind::ROUTE_DESTINATION => route.destination.0 = attributes::address(data)?,
                kind::ROUTE_LINK => route.link = number(data),
                kind::ROUTE_GATEWAY => route.gateway = attributes::address(data),
                kind::ROUTE_PRIORITY => route.metric = number(data),
                kind::ROUTE_SOURCE => route.source = attributes::address(data),
                kind::ROUTE_METRICS => route.read_metrics(data),
                kind::ROUTE_MULTIPATH => route.unsupported = Some("several next hops"),
                kind::ROUTE_TABLE => table = number(data),
                kind::ROUTE_VIA => route.unsupported = Some("a next hop of another address family"),
                kind::ROUTE_ENCAPSULATION => route.unsupported = Some("an encapsulation"),
                _ => {}
            }
        }
        let configured = ![BY_KERNEL, BY_ADVERTISEMENT].contains(&protocol) && flags & CLONED == 0;
        (configured && table == u32::from(TABLE_MAIN)).then_some(route)
    }

    fn read_metrics(&mut self, data: &[u8]) {
        for (attribute, data) in Attributes::new(data) {
            match attribute {
                kind::ROUTE_METRICS_MTU => self.mtu = number(data),
                _ => self.unsupported = Some("metrics other than an MTU"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(network: &str, bits: u8, gateway: Option<&str>, link: u32) -> Route {
        Route {
            link,
            destination: (network.parse().unwrap(), bits),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            on_link: false,
            source: None,
            metric: 0,
            mtu: 0,
            unsupported: None,
        }
    }

    /// rtmsg of IPv4: bits, table, protocol, kind, flags.
    fn rtmsg(bits: u8, table: u8, protocol: u8, kind: u8, flags: u32) -> [u8; FIXED] {
        let [a, b, c, d] = flags.to_ne_bytes();
        [2, bits, 0, 0, table, protocol, 0, kind, a, b, c, d]
    }

    fn parse(fixed: [u8; FIXED], rest: &Nest) -> Option<Route> {
        Route::parse(&[&fixed, rest.bytes()].concat())
    }

    #[test]
    fn a_route_has_its_gateway_and_its_link() {
        let default = route("0.0.0.0", 0, Some("10.0.0.1"), 7);
        #[rustfmt::skip]
        assert_eq!(default.request(Operation::Put).into_bytes(0), [
            44, 0, 0, 0, 24, 0, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0,
            2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0,
            8, 0, 5, 0, 10, 0, 0, 1,
            8, 0, 4, 0, 7, 0, 0, 0,
        ]);
        let removed = default.request(Operation::Delete).into_bytes(0);
        assert_eq!(&removed[4..8], [25, 0, 5, 0]);
        let near = route("10.9.0.0", 16, None, 1).request(Operation::Put).into_bytes(0);
        assert_eq!(&near[16..36], [2, 16, 0, 0, 254, 3, 253, 1, 0, 0, 0, 0, 8, 0, 1, 0, 10, 9, 0, 0]);
        let near = route("fd00:9::", 48, None, 1).request(Operation::Put).into_bytes(0);
        assert_eq!(&near[16..28], [10, 48, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0]);
        assert_eq!(&Route::list_request().into_bytes(0)[..8], [28, 0, 0, 0, 26, 0, 1, 3]);
    }

    #[test]
    fn a_request_contains_all_parsed_fields() {
        let more = Route {
            on_link: true,
            source: Some([10, 0, 0, 2].into()),
            metric: 9,
            mtu: 1300,
            ..route("10.8.0.0", 16, Some("10.0.0.1"), 7)
        };
        let message = more.request(Operation::Put).into_bytes(0);
        assert_eq!(&message[24..28], [4, 0, 0, 0]);
        let attributes = [
            [8, 0, 1, 0, 10, 8, 0, 0],
            [8, 0, 5, 0, 10, 0, 0, 1],
            [8, 0, 4, 0, 7, 0, 0, 0],
            [8, 0, 7, 0, 10, 0, 0, 2],
            [8, 0, 6, 0, 9, 0, 0, 0],
        ];
        assert_eq!(message[28..68], attributes.concat());
        assert_eq!(message[68..], [12, 0, 8, 0, 8, 0, 2, 0, 20, 5, 0, 0]);
        assert_eq!(Route::parse(&message[16..]), Some(more));
    }

    #[test]
    fn a_route_is_parsed_with_all_its_fields() {
        let rest = Nest::default()
            .with(1, &[10, 8, 0, 0])
            .with(4, &3u32.to_ne_bytes())
            .with(5, &[10, 0, 0, 1])
            .with(6, &7u32.to_ne_bytes())
            .with(7, &[10, 0, 0, 2])
            .nest(8, &Nest::default().with(2, &1300u32.to_ne_bytes()));
        let expected = Route {
            on_link: true,
            source: Some([10, 0, 0, 2].into()),
            metric: 7,
            mtu: 1300,
            ..route("10.8.0.0", 16, Some("10.0.0.1"), 3)
        };
        assert_eq!(parse(rtmsg(16, 254, 3, 1, 4), &rest), Some(expected));
    }

    #[test]
    fn routes_of_kernel_routers_and_other_tables_are_left_out() {
        let link = Nest::default().with(4, &3u32.to_ne_bytes());
        for fixed in [rtmsg(0, 254, 2, 1, 0), rtmsg(0, 254, 9, 1, 0), rtmsg(0, 255, 3, 1, 0)] {
            assert_eq!(parse(fixed, &link), None);
        }
        assert_eq!(parse(rtmsg(0, 254, 3, 1, 0x200), &link), None);
        let elsewhere = Nest::default().with(15, &1000u32.to_ne_bytes());
        assert_eq!(parse(rtmsg(0, 254, 3, 1, 0), &elsewhere), None);
        assert_eq!(Route::parse(&[7, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0]), None);
    }

    #[test]
    fn unsupported_properties_of_a_route_are_named() {
        let none = Nest::default();
        let unsupported = |fixed, rest: &Nest| parse(fixed, rest).unwrap().unsupported;
        let plain = rtmsg(0, 254, 3, 1, 0);
        assert_eq!(unsupported(plain, &none), None);
        assert_eq!(unsupported(rtmsg(0, 254, 3, 6, 0), &none), Some("a type other than unicast"));
        assert_eq!(unsupported(plain, &Nest::default().with(9, &[])), Some("several next hops"));
        assert_eq!(
            unsupported(plain, &Nest::default().with(18, &[])),
            Some("a next hop of another address family")
        );
        assert_eq!(unsupported(plain, &Nest::default().with(22, &[])), Some("an encapsulation"));
        let metrics = Nest::default().nest(8, &Nest::default().with(4, &[0; 4]));
        assert_eq!(unsupported(plain, &metrics), Some("metrics other than an MTU"));
    }
}
