//! `cargo xtask bench streams`: bytes, messages and exec processes, compared with pipes and runc.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::{ClockArg, print_groups, report_in, write_file, write_initramfs, write_report};
use crate::checkout::{target_dir, top};
use crate::executable::static_program;
use crate::host::{self, Clock, Host};
use crate::steps::{cargo, output, run, say};
use crate::{apt, bundle, initramfs, kernel, newc, program};

/// Number of round trips per run.
const ROUND_TRIPS: usize = 2000;
/// Timeout of the bench in seconds.
const DEADLINE_SECONDS: u64 = 1800;

/// Options for measuring streams.
#[derive(clap::Args)]
pub struct StreamsArgs {
    /// Transfers of each contender; four times as many exec processes
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// MiB of each transfer
    #[arg(long, default_value_t = 64)]
    mib: usize,
    /// Clock: seconds, or instructions (in the emulated KVM host)
    #[arg(long, value_enum, default_value = "wall")]
    clock: ClockArg,
}

/// Runs both benches on one host, prints their tables and writes the samples.
pub fn streams(args: &StreamsArgs) -> anyhow::Result<()> {
    ensure!(args.runs > 0 && args.mib > 0, "--runs or --mib is 0");
    apt::install(&["runc", "busybox-static"])?;
    let program = program::program()?;
    let bundle = bundle::busybox(&program, &["true"])?;
    let bench = static_program("tests", "stream-bench")?;
    run(cargo().args(["build", "--release", "--package", "runtime", "--example", "round_trips"]))?;
    let words = [
        "bash".to_owned(),
        top().join("tests/bench/streams.sh").display().to_string(),
        bench.display().to_string(),
        target_dir().join("release/examples/round_trips").display().to_string(),
        program.display().to_string(),
        bundle.display().to_string(),
        kernel::kernel(kernel::Variant::Base)?.vmlinux.display().to_string(),
        initramfs_with_busybox()?,
        echo_initramfs()?.display().to_string(),
        args.mib.to_string(),
        args.runs.to_string(),
        ROUND_TRIPS.to_string(),
    ];
    say(&format!(
        "moving {} MiB {} times in each direction, with each contender in turn",
        args.mib, args.runs
    ));
    let text = match args.clock {
        ClockArg::Wall if host::kvm_usable() => output(Command::new(&words[0]).args(&words[1..]))?,
        ClockArg::Wall => report_in(&Host::new().deadline(DEADLINE_SECONDS), &words)?,
        ClockArg::Instructions => {
            let host = Host::new().clock(Clock::Instructions).stage_opened(true);
            report_in(&host.deadline(DEADLINE_SECONDS), &words)?
        }
    };
    let mut groups = Vec::new();
    // Each bench prints a line.
    for line in text.lines() {
        let report: Value = serde_json::from_str(line).context("parse the bench's report")?;
        groups.extend(print_groups(&report)?);
    }
    write_report(&format!("streams-{:?}.json", args.clock).to_lowercase(), &Value::from(groups).to_string())
}

/// Returns the path of the initramfs with the agent, followed by an initramfs with busybox, which prints the agent's
/// memory.
fn initramfs_with_busybox() -> anyhow::Result<String> {
    let agent = initramfs::initramfs()?;
    let mut archive = fs::read(&agent).with_context(|| format!("read {}", agent.display()))?;
    let mut busybox = Vec::new();
    let bytes = fs::read("/bin/busybox").context("read /bin/busybox")?;
    newc::append(&mut busybox, "busybox", 0o100_755, &bytes);
    newc::finish(&mut busybox);
    archive.extend(busybox);
    Ok(write_file("agent-busybox.cpio", &archive)?.display().to_string())
}

/// Returns the path of an initramfs whose PID 1 echoes its input.
fn echo_initramfs() -> anyhow::Result<PathBuf> {
    write_initramfs("echo.cpio", "guest", &static_program("tests", "guest")?)
}
