//! The guest agent: process 1 of the machine that a pod runs in.
//!
//! It speaks hyperstart's API 4244, and above it the extension (`agent-proto`), over two ports: starts containers, carries
//! their streams, tells of their ends. One thread, one loop ([`agent`]), no globals, nothing allocated that the host could
//! size without a named maximum.
//!
//! What it does not do: port mapping and block devices, which are refused by name.
//!
//! Reading order: [`boot`], [`agent`], [`commands`], [`start`], [`process`], [`container`], [`streams`]; beside them
//! [`network`], [`files`], [`hotplug`], [`usage`]. The library knows nothing of being process 1 but in [`boot`], so that
//! its tests, and its peer's, run it on a host.
#![no_std]

extern crate alloc;
#[cfg(test)]
#[macro_use]
extern crate std;

pub mod agent;
pub mod boot;
pub mod channel;
pub mod commands;
pub mod container;
pub mod destroy;
pub mod fault;
pub mod files;
pub mod hotplug;
#[cfg(feature = "init")]
pub mod memory;
pub mod network;
pub mod pod;
pub mod ports;
pub mod process;
pub mod reaper;
pub mod relay;
pub mod resolver;
pub mod start;
pub mod streams;
pub mod sys;
pub mod timeline;
pub mod usage;
