//! Implementations of the subcommands, one file for each.

use std::fs;

use anyhow::{Context, Result};
use plan::Inherited;

pub mod check;
pub mod container;
pub mod events;
pub mod features;
pub mod pod;
pub mod run;
pub mod spec;
pub mod update;

/// Reads what the containers of a new machine have from this process and the host.
fn inherited() -> Result<Inherited> {
    let limits = host::sys::inherited::resource_limits().context("read the resource limits")?;
    Ok(Inherited::new(&limits, |path| fs::read_to_string(path).ok()))
}
