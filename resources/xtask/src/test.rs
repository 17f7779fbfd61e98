//! `cargo xtask test`: everything that must pass.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::host::{self, Host};
use crate::steps::{cargo, output, run, say, top};
use crate::{apt, bundle, check, program};

/// The whole-VM tests' own deadline, seconds: several times what they take, well below CI's.
const VM_TESTS_SECONDS: u64 = 2400;

/// Which tests.
#[derive(clap::Args)]
pub struct Args {
    /// Only the unit tests
    #[arg(long)]
    unit: bool,
    /// Only the whole-VM tests
    #[arg(long, conflicts_with = "unit")]
    vm: bool,
    /// Only tests whose names hold this
    filter: Option<String>,
}

/// Runs checks, unit tests and whole-VM tests; the runners print their own closing lines.
pub fn test(args: &Args) -> anyhow::Result<()> {
    if !args.vm {
        if args.filter.is_none() {
            check::check()?;
        }
        unit(args)?;
    }
    if !args.unit {
        vm(args)?;
    }
    Ok(())
}

fn unit(args: &Args) -> anyhow::Result<()> {
    say("unit tests");
    let mut words = vec!["test", "--workspace", "--exclude", "tests"];
    words.extend(args.filter.as_deref());
    run(cargo().args(words))
}

/// Builds the whole-VM tests here and runs them where KVM is: natively, or in the emulated KVM host.
fn vm(args: &Args) -> anyhow::Result<()> {
    apt::install(&["busybox-static", "e2fsprogs", "iproute2"])?;
    let program = program::program()?;
    let debian = rootfs_archive(&bundle::debian(&program)?)?;
    say("building the whole-VM tests");
    let tests = test_program()?;
    let guest = program::static_program("tests", "guest")?;
    let mut words = vec![tests.display().to_string()];
    words.extend(args.filter.clone());
    if host::kvm_usable() {
        say("whole-VM tests, on this machine's KVM");
        return run(Command::new(&words[0])
            .args(&words[1..])
            .env("VMM_PROGRAM", &program)
            .env("VMM_TEST_GUEST", &guest)
            .env("VMM_TEST_DEBIAN", &debian));
    }
    say("whole-VM tests, in the emulated KVM host");
    let mut command = vec![
        "bash".to_owned(),
        top().join("tests/host/vm-tests.sh").display().to_string(),
        program.display().to_string(),
        guest.display().to_string(),
        debian.display().to_string(),
    ];
    command.extend(words);
    match Host::new().memory(6144).deadline(VM_TESTS_SECONDS).run(&command)? {
        0 => Ok(()),
        code => bail!("whole-VM tests: exit code {code}"),
    }
}

/// Packs the bundle's root file system, once: one file is read through a shared folder far quicker than ten thousand.
fn rootfs_archive(bundle: &Path) -> anyhow::Result<PathBuf> {
    let archive = bundle.join("rootfs.tar");
    if !archive.exists() {
        let fresh = bundle.join("rootfs.tar.new");
        run(Command::new("tar").arg("-C").arg(bundle.join("rootfs")).arg("-cf").arg(&fresh).arg("."))?;
        std::fs::rename(&fresh, &archive).with_context(|| format!("rename {}", fresh.display()))?;
    }
    Ok(archive)
}

/// Builds the package of whole-VM tests and returns its executable.
fn test_program() -> anyhow::Result<PathBuf> {
    let lines = output(
        cargo()
            .args(["test", "--package", "tests", "--test", "vm", "--no-run", "--message-format", "json"])
            .stderr(Stdio::inherit()),
    )?;
    lines
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|m| m["target"]["name"] == "vm" && m["executable"].is_string())
        .and_then(|m| m["executable"].as_str().map(PathBuf::from))
        .context("cargo named no test program")
}
