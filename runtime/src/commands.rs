//! Implementations of the subcommands, one file for each.

pub mod check;
pub mod container;
pub mod events;
pub mod features;
pub mod pod;
pub mod run;
pub mod spec;
pub mod update;
