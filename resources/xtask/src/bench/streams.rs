//! `cargo xtask bench streams`: bytes, messages and exec processes, compared with the same without a machine.

use std::fs;
use std::process::Command;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::{print_groups, write_report};
use crate::checkout::{target_dir, top};
use crate::executable::static_program;
use crate::host::{self, Host};
use crate::steps::{cargo, output, run, say};
use crate::{apt, bundle, initramfs, kernel, newc, program};

/// Round trips per run.
const ROUND_TRIPS: usize = 2000;
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
}

/// Runs both benches in one host, prints their tables and stores the samples.
pub fn streams(args: &StreamsArgs) -> anyhow::Result<()> {
    ensure!(args.runs > 0 && args.mib > 0, "--runs 0 or --mib 0 measures nothing");
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
        kernel::kernel()?.vmlinux.display().to_string(),
        with_busybox()?,
        mirror()?,
        args.mib.to_string(),
        args.runs.to_string(),
        ROUND_TRIPS.to_string(),
    ];
    say(&format!("moving {} MiB {} times each way, by each contender in turn", args.mib, args.runs));
    let text = if host::kvm_usable() {
        output(Command::new(&words[0]).args(&words[1..]))?
    } else {
        let done = Host::new().deadline(DEADLINE_SECONDS).output(&words)?;
        if done.status != 0 {
            bail!("the bench failed: exit code {}\n{}", done.status, String::from_utf8_lossy(&done.stderr));
        }
        String::from_utf8(done.stdout).context("read the bench's report")?
    };
    let mut kept = Vec::new();
    for line in text.lines() {
        let report: Value = serde_json::from_str(line).context("parse the bench's report")?;
        kept.extend(print_groups(&report)?);
    }
    write_report("streams.json", &Value::from(kept).to_string())
}

/// Returns the initramfs with the agent, followed by one with a program that reads the agent's figures.
fn with_busybox() -> anyhow::Result<String> {
    let agent = initramfs::initramfs()?;
    let mut archive = fs::read(&agent).with_context(|| format!("read {}", agent.display()))?;
    let mut more = Vec::new();
    newc::append(&mut more, "busybox", 0o100_755, &fs::read("/bin/busybox").context("read /bin/busybox")?);
    newc::finish(&mut more);
    archive.extend(more);
    keep("agent-busybox.cpio", &archive)
}

/// Returns an initramfs whose process 1 echoes its input.
fn mirror() -> anyhow::Result<String> {
    let guest = static_program("tests", "guest")?;
    let mut archive = Vec::new();
    newc::append(&mut archive, "dev", 0o040_755, &[]);
    newc::append_node(&mut archive, "dev/console", 0o020_600, (5, 1));
    let program = fs::read(&guest).with_context(|| format!("read {}", guest.display()))?;
    newc::append(&mut archive, "guest", 0o100_755, &program);
    newc::finish(&mut archive);
    keep("mirror.cpio", &archive)
}

fn keep(name: &str, bytes: &[u8]) -> anyhow::Result<String> {
    let dir = target_dir().join("bench");
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let path = dir.join(name);
    fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
    Ok(path.display().to_string())
}
