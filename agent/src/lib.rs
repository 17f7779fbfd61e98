//! The guest agent: PID 1 of a pod's machine.
//!
//! The agent speaks hyperstart's API 4244 and its extension (`agent-proto`) over two ports. It starts containers,
//! carries their streams and reports their exits. It has one thread, one loop ([`agent`]) and no globals. All memory
//! whose size the host determines has a named limit.
//!
//! The agent does not support port mapping and block devices, and refuses them by name.
//!
//! Read in this order: [`boot`], [`agent`], [`commands`], [`start`], [`process`], [`container`], [`streams`]; then
//! [`network`], [`files`], [`hotplug`], [`usage`], [`clock`]. Only [`boot`] must run as PID 1; tests run the rest of the
//! agent on a host.
#![no_std]

extern crate alloc;
#[cfg(test)]
#[macro_use]
extern crate std;

pub mod agent;
pub mod boot;
pub mod channel;
pub mod clock;
pub mod commands;
pub mod container;
pub mod destroy;
pub mod error;
pub mod files;
pub mod forward;
pub mod hotplug;
pub mod listening;
#[cfg(feature = "init")]
pub mod memory;
pub mod network;
pub mod pod;
pub mod ports;
pub mod process;
pub mod pty;
pub mod reaper;
pub mod relay;
pub mod resolver;
pub mod revival;
pub mod sockets;
pub mod start;
mod state;
pub mod streams;
pub mod sys;
pub mod timeline;
pub mod usage;
