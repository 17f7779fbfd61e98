//! The container runtime: command line, pods and containers.
//!
//! This is the only crate that knows containers, virtual machines and descriptors. Its parts are crates of their own:
//! [`oci`] reads bundles, [`plan`] decides about machine and container, [`link`] speaks to the agent, and [`host`]
//! works on the host. Here `cli` and `config` read the user's settings, `dispatch` chooses a subcommand, `commands` has
//! one file for each, `assembly` creates the machine, `sandbox` and `session` speak to its guest, `pod` supervises the
//! processes in it, `clock` keeps its time, `template` lets it start without a boot, `checkpoint` saves it while it runs, and `state` and `control` let other processes find it. Start at
//! `commands/run.rs`, the straight-line version of a run. The binary is `vmm`; the crate of that name is the virtual
//! machine monitor.
//!
//! The modules are private, so that the compiler reports code without a caller. Only the binary and the generator of man
//! pages use this crate.

mod assembly;
mod checkpoint;
mod cli;
mod clock;
mod commands;
mod config;
mod console;
mod control;
mod deadlines;
mod dispatch;
mod exit;
mod image;
mod logging;
mod marks;
mod network;
mod pod;
mod report;
mod sandbox;
mod session;
mod sockets;
mod state;
mod template;

pub use cli::tree::command as command_line;
pub use dispatch::main;
