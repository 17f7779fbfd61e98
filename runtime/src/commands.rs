//! Implementations of the subcommands, one file for each, and what several of them do.

use std::io::{self, Write};

use anyhow::{Context, Result};

mod attached;
pub mod check;
pub mod container;
pub mod events;
pub mod features;
pub mod pod;
mod request;
pub mod run;
pub mod spec;
pub mod update;

/// Prints a line to stdout. A closed pipe is not an error.
fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("write stdout"),
        _ => Ok(()),
    }
}
