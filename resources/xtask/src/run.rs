//! `cargo xtask run`: builds the program and runs a bundle.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

use crate::host::{self, Host};
use crate::steps::say;
use crate::{bundle, program};

/// The bundle and options of `vmm run`.
#[derive(clap::Args)]
pub struct Args {
    /// OCI bundle; by default a minimal Debian, created with debootstrap
    bundle: Option<PathBuf>,
    /// Additional options of `vmm run`
    #[arg(last = true)]
    options: Vec<String>,
}

/// Runs the bundle with `vmm run` and returns its exit code; without a usable KVM it runs in the emulated KVM host.
pub fn run(args: &Args) -> anyhow::Result<i32> {
    let program = program::program()?;
    let bundle = match &args.bundle {
        Some(bundle) => {
            bundle.canonicalize().with_context(|| format!("resolve bundle {}", bundle.display()))?
        }
        None => bundle::debian(&program)?,
    };
    let mut words = vec![program.display().to_string(), "run".to_owned()];
    words.extend(args.options.iter().cloned());
    words.push(bundle.display().to_string());
    if host::kvm_usable() {
        say(&words.join(" "));
        let status = Command::new(&words[0])
            .args(&words[1..])
            .status()
            .with_context(|| format!("start {}", words[0]))?;
        return Ok(status.code().unwrap_or(1));
    }
    say(&format!("{} (in the emulated KVM host: this machine has no usable KVM)", words.join(" ")));
    Host::new().run(&words)
}
