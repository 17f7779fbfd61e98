//! The messages of rtnetlink(7) that the agent and the runtime exchange with the kernel: links, addresses, routes,
//! neighbours, and the traffic control that joins an interface to a tap.
//!
//! This crate has messages and parsers but no I/O: each side has its own socket. A request is a [`Message`]; the bytes
//! to send come from [`Message::into_bytes`]. [`replies`] reads the kernel's answer, and the `parse` function of the
//! requested type reads the body of an entry. No answer of the kernel, however short or malformed, makes this crate
//! panic.
//!
//! ```
//! use netlink::{Link, Reply, replies};
//!
//! let request = Link::list_request().into_bytes(1);
//! assert_eq!(request.len(), 32);
//! // The kernel's acknowledgement of request 1: NLMSG_ERROR with error number 0.
//! let answer = [[20, 0, 0, 0, 2, 0, 0, 0], [1, 0, 0, 0, 9, 9, 0, 0], [0; 8]].concat();
//! assert_eq!(replies(&answer[..20], 1).next(), Some(Reply::Done));
//! ```
//!
//! All numbers come from the kernel's headers: `linux/netlink.h` for headers and attributes, `linux/rtnetlink.h` for
//! message types, and for each type the header that its module names. Numbers are in the machine's byte order unless a
//! comment says otherwise.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod address;
mod attributes;
mod link;
mod message;
mod neighbour;
mod reply;
mod route;
pub mod traffic;

pub use address::Address;
pub use attributes::Attributes;
pub use link::{Link, LinkChange};
pub use message::{Message, Operation};
pub use neighbour::Neighbour;
pub use reply::{Reply, replies};
pub use route::Route;

#[cfg(test)]
mod tests;
