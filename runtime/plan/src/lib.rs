//! Plans virtual machines and their containers.
//!
//! A [`VmPlan`] describes a machine: memory, vCPUs, kernel command line, share protocol, cgroup and network namespace
//! on the host, and the payload that starts the pod. A [`ContainerPlan`] describes a container in it: the binds of the
//! share and the agent's payload with mounts, namespaces, limits and init process. Both are derived from a bundle
//! ([`oci::Bundle`]) and [`VmSettings`], and are plain data: this crate reads no file, logs nothing and starts no
//! thread. Warnings for the user are part of the plan ([`ContainerPlan::notices`]).
//!
//! Reading order: [`settings`], [`vm`], [`container`], [`member`], [`mounts`], [`process`], [`inherited`]; then the translations: [`limits`],
//! [`devices`], [`users`], [`capabilities`], [`scheduling`], [`seccomp`]. [`api4244`] removes what hyperstart's base
//! protocol cannot express.

// A part of the command, not a library: only items whose names and types do not explain them have a comment.
#![allow(missing_docs)]

pub mod api4244;
pub mod capabilities;
pub mod container;
pub mod device_filter;
pub mod device_rules;
pub mod devices;
pub mod hw_config;
pub mod inherited;
pub mod krun;
pub mod limits;
pub mod member;
pub mod mounts;
pub mod pod_size;
pub mod process;
pub mod rlimits;
pub mod scheduling;
pub mod seccomp;
pub mod settings;
pub mod users;
pub mod vm;

pub use container::ContainerPlan;
pub use inherited::Inherited;
pub use mounts::ShareBind;
pub use process::INIT_PROCESS;
pub use settings::{Console, ShareType, VhostNet, VmSettings};
pub use vm::VmPlan;

#[cfg(test)]
mod tests;
