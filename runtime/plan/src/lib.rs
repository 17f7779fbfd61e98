//! Decides what a virtual machine is and what runs in it.
//!
//! A [`VmPlan`] is the machine: memory, vCPUs, kernel command line, share protocol, cgroup and network namespace on the host,
//! and the pod that the agent is told of. A [`ContainerPlan`] is a container in it: the binds of the share and the agent's
//! words for its mounts, namespaces, limits and init process. Both are made from a bundle ([`oci::Bundle`]) and
//! [`VmSettings`], are plain data, and are complete when made: no file is read, nothing is logged, no thread is started.
//! What a user should be warned of is in the plan ([`ContainerPlan::notices`]).
//!
//! Reading order: [`vm`], [`container`], [`mounts`], [`process`]; then the translations: [`limits`], [`devices`],
//! [`users`], [`capabilities`], [`scheduling`], [`seccomp`]. [`api4244`] takes out what hyperstart's base protocol cannot say.

pub mod api4244;
pub mod capabilities;
pub mod container;
pub mod device_filter;
pub mod device_rules;
pub mod devices;
pub mod limits;
pub mod mounts;
pub mod process;
pub mod scheduling;
pub mod seccomp;
pub mod users;
pub mod vm;

pub use container::ContainerPlan;
pub use mounts::ShareBind;
pub use process::INIT_PROCESS;
pub use vm::{Console, ShareType, VhostNet, VmPlan, VmSettings};

#[cfg(test)]
mod tests;
