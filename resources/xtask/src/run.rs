//! `cargo xtask run`: builds everything and runs a bundle.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

use crate::host::{self, Host};
use crate::steps::say;
use crate::{bundle, program};

/// The bundle and its options.
#[derive(clap::Args)]
pub struct Args {
    /// The bundle; a Debian root file system is created by default
    bundle: Option<PathBuf>,
    /// Additional arguments of `vmm run`
    #[arg(last = true)]
    options: Vec<String>,
}

/// Runs the bundle with `vmm run` and returns its exit code; without a usable KVM it runs in the emulated KVM host.
pub fn run(args: &Args) -> anyhow::Result<i32> {
    let program = program::program()?;
    let bundle = match &args.bundle {
        Some(bundle) => bundle.canonicalize().with_context(|| format!("find {}", bundle.display()))?,
        None => bundle::debian(&program)?,
    };
    let mut words = vec![program.display().to_string(), "run".to_owned()];
    words.extend(args.options.iter().cloned());
    words.push(bundle.display().to_string());
    if host::kvm_usable() {
        say(&words.join(" "));
        let status = Command::new(&words[0]).args(&words[1..]).status().context("start vmm")?;
        return Ok(status.code().unwrap_or(1));
    }
    say(&format!("no KVM here can run a guest: in the emulated KVM host: {}", words.join(" ")));
    Host::new().run(&words)
}
