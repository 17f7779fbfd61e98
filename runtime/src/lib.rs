//! The container runtime: the command line, pods and containers, and what happens to each.
//!
//! The only crate that knows containers, virtual machines and descriptors alike. Its rooms are crates of their own: [`oci`]
//! reads bundles, [`plan`] decides what machine and container come of them, [`link`] talks to the agent, and [`host`] does
//! what there is to do on the host. Here they meet: [`cli`] and [`config`] read what the user wants, [`commands`] has a file
//! for each subcommand, [`sandbox`] makes the machine, [`pod`] supervises what runs in it, and [`state`] and [`control`] let
//! other processes find it. Start at [`commands::run`], which reads as the story of a run. The binary is `vmm`; the crate of
//! that name is the virtual machine monitor below.

pub mod assembly;
pub mod cli;
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
