//! Host side of the runtime: system calls, cgroups, network namespaces, hooks, terminals and signals.
//!
//! This crate does not depend on the virtual machine or the agent. Of OCI bundles it uses only the types of host
//! settings: resources, hooks and namespaces. Only [`sys`] and its modules have unsafe code.

// A part of the command, not a library: only items whose names and types do not explain them have a comment.
#![allow(missing_docs)]

pub mod cgroup;
pub mod confine;
pub mod environment;
mod error;
pub mod hooks;
pub mod network;
pub mod signals;
pub mod sockets;
pub mod steal;
pub mod subordinate;
pub mod sys;
pub mod terminal;
pub mod text;
pub mod user;
pub mod user_namespace;

pub use error::HostError;
