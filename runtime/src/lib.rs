//! The container runtime: command line, pods and containers.
//!
//! This is the only crate that knows containers, virtual machines and descriptors. Its parts are crates of their own:
//! [`oci`] reads bundles, [`plan`] decides about machine and container, [`link`] speaks to the agent, and [`host`]
//! works on the host. Here [`cli`] and [`config`] read the user's settings, [`commands`] has one file for a subcommand,
//! [`sandbox`] creates the machine, [`pod`] supervises the processes in it, [`clock`] keeps its time, and [`state`] and
//! [`control`] let other processes find it. Start at [`commands::run`], the straight-line version of a run. The binary
//! is `vmm`; the crate of that name is the virtual machine monitor.

pub mod assembly;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod console;
pub mod control;
pub mod deadlines;
pub mod exit;
pub mod image;
pub mod logging;
pub mod marks;
pub mod network;
pub mod pod;
pub mod report;
pub mod sandbox;
pub mod session;
pub mod state;
