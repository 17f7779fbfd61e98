//! Attribute types. Names follow those of the kernel.

// IFLA_ (linux/if_link.h); the last one is inside IFLA_LINKINFO.
pub(crate) const LINK_MAC: u16 = 1;
pub(crate) const LINK_NAME: u16 = 3;
pub(crate) const LINK_MTU: u16 = 4;
pub(crate) const LINK_INFO: u16 = 18;
pub(crate) const LINK_FAMILIES: u16 = 26;
pub(crate) const LINK_NAMESPACE: u16 = 28;
pub(crate) const LINK_INFO_KIND: u16 = 1;

// IFA_ (linux/if_addr.h).
pub(crate) const ADDRESS: u16 = 1;
pub(crate) const ADDRESS_LOCAL: u16 = 2;
pub(crate) const ADDRESS_FLAGS: u16 = 8;

// RTA_ (linux/rtnetlink.h); the last one is RTAX_MTU, inside RTA_METRICS.
pub(crate) const ROUTE_DESTINATION: u16 = 1;
pub(crate) const ROUTE_LINK: u16 = 4;
pub(crate) const ROUTE_GATEWAY: u16 = 5;
pub(crate) const ROUTE_PRIORITY: u16 = 6;
pub(crate) const ROUTE_SOURCE: u16 = 7;
pub(crate) const ROUTE_METRICS: u16 = 8;
pub(crate) const ROUTE_MULTIPATH: u16 = 9;
pub(crate) const ROUTE_TABLE: u16 = 15;
pub(crate) const ROUTE_VIA: u16 = 18;
pub(crate) const ROUTE_ENCAPSULATION: u16 = 22;
pub(crate) const ROUTE_METRICS_MTU: u16 = 2;

// NDA_ (linux/neighbour.h).
pub(crate) const NEIGHBOUR_ADDRESS: u16 = 1;
pub(crate) const NEIGHBOUR_MAC: u16 = 2;

// TCA_ (linux/rtnetlink.h); inside an action TCA_ACT_KIND and TCA_ACT_OPTIONS (linux/pkt_cls.h) have the same numbers.
pub(crate) const TRAFFIC_KIND: u16 = 1;
pub(crate) const TRAFFIC_OPTIONS: u16 = 2;
