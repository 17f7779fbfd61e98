//! The container runtime: OCI bundles, the command line, the agent's link, and what `vmm run` decides and does.
//!
//! The only crate that knows containers, virtual machines and descriptors alike: policy is here. It reads a bundle
//! ([`bundle`], [`oci`]) and the configuration ([`cli`], [`config`]), decides ([`plan`]), makes the machine
//! ([`sandbox`], [`image`]), and talks to the agent ([`link`], [`session`], [`foreground`]). Start at [`commands::run`],
//! which reads as the story of a run. Pods ([`pod`]) are more of the same in one machine, and have a directory ([`state`])
//! and a socket ([`control`]). The binary is `vmm`; the crate of that name is the virtual machine monitor below.

pub mod bundle;
pub mod cgroup;
pub mod cli;
pub mod commands;
pub mod config;
pub mod console;
pub mod control;
pub mod deadlines;
pub mod exit;
pub mod foreground;
pub mod hooks;
pub mod image;
pub mod link;
pub mod logging;
pub mod marks;
pub mod network;
pub mod oci;
pub mod plan;
pub mod pod;
pub mod report;
pub mod sandbox;
pub mod session;
pub mod signals;
pub mod state;
pub mod surroundings;
mod sys;
pub mod terminal;
pub mod text;

/// The version of the OCI runtime specification whose config.json is read.
pub const OCI_VERSION: &str = "1.2.0";
