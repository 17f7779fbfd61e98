//! `cargo xtask bench`: measures vmm and alternatives in one run.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail, ensure};
use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::checkout::{target_dir, top};
use crate::executable::static_program;
use crate::host::{self, Clock, Host};
use crate::steps::{output, run, say};
use crate::{apt, bundle, kernel, newc, program};

mod docker;
mod plot;
mod series;
mod streams;

use docker::DockerArgs;
use series::Series;
use streams::StreamsArgs;

/// Subject of the measurement.
#[derive(Subcommand)]
pub enum Bench {
    /// Cold boots, compared with QEMU's microvm machine and runc
    Boot(BootArgs),
    /// Bytes, messages and exec processes, compared with pipes and runc
    Streams(StreamsArgs),
    /// Containers of Docker with vmm and with runc: time, memory, files and network
    Docker(DockerArgs),
}

/// Options for measuring boots.
#[derive(clap::Args)]
pub struct BootArgs {
    /// Clock: seconds, or instructions (in the emulated KVM host)
    #[arg(long, value_enum, default_value = "instructions")]
    clock: ClockArg,
    /// Boots of each contender
    #[arg(long, default_value_t = 10)]
    runs: usize,
    /// Another `vmm` program to measure in the same run, such as that of an earlier commit
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,
}

/// Name of a clock on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ClockArg {
    Wall,
    Instructions,
}

/// Runs the bench, prints its table, and writes JSON and a plot.
pub fn bench(which: &Bench) -> anyhow::Result<()> {
    match which {
        Bench::Boot(args) => boot(args),
        Bench::Streams(args) => streams::streams(args),
        Bench::Docker(args) => docker::docker(args),
    }
}

fn boot(args: &BootArgs) -> anyhow::Result<()> {
    ensure!(args.runs > 0, "--runs 0 measures nothing");
    apt::install(&["runc", "gcc"])?;
    apt::install(&["qemu-system-x86"])?;
    let program = program::program()?;
    let bundle = bundle::busybox(&program, &["echo", "hello"])?;
    let bench = static_program("tests", "boot-bench")?;
    let mut words = vec![
        "bash".to_owned(),
        top().join("tests/bench/boot.sh").display().to_string(),
        bench.display().to_string(),
        program.display().to_string(),
        bundle.display().to_string(),
        kernel::kernel()?.vmlinux.display().to_string(),
        trivial_initramfs()?,
        args.runs.to_string(),
    ];
    if let Some(other) = &args.against {
        let other = other.canonicalize().with_context(|| format!("open {}", other.display()))?;
        words.push(other.display().to_string());
    }
    say(&format!("booting each contender {} times in turn", args.runs));
    let text = match args.clock {
        ClockArg::Wall if host::kvm_usable() => output(Command::new(&words[0]).args(&words[1..]))?,
        clock => {
            let counted = clock == ClockArg::Instructions;
            let host = Host::new().clock(if counted { Clock::Instructions } else { Clock::Wall });
            // QEMU reads its libraries and modules from the shared folder, whose latency would add to the result.
            let done = host.memory(4096).deadline(3600).stage_opened(counted).output(&words)?;
            if done.status != 0 {
                bail!(
                    "the bench failed: exit code {}\n{}",
                    done.status,
                    String::from_utf8_lossy(&done.stderr)
                );
            }
            String::from_utf8(done.stdout).context("read the bench's report")?
        }
    };
    let report: Value = serde_json::from_str(&text).context("parse the bench's report")?;
    let unit = if args.clock == ClockArg::Wall { "ms" } else { "million instructions" };
    let series = series::read(&report)?;
    print!("{}", series::table(&series, unit));
    keep(&series, unit, args)
}

/// Writes the samples as JSON and the medians as a plot.
fn keep(series: &[Series], unit: &str, args: &BootArgs) -> anyhow::Result<()> {
    let name = format!("boot-{:?}", args.clock).to_lowercase();
    write_report(&format!("{name}.json"), &series::json(series, unit).to_string())?;
    write_report(&format!("{name}.svg"), &plot::bars(series, unit))
}

/// Writes a file of a bench into the target folder, and prints its path.
fn write_report(name: &str, text: &str) -> anyhow::Result<()> {
    let dir = target_dir().join("bench");
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let path = dir.join(name);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

/// Prints each group of a report, `{"groups": [{"title", "unit", "series"}]}`, and returns the groups to store.
fn print_groups(report: &Value) -> anyhow::Result<Vec<Value>> {
    let groups = report["groups"].as_array().context("the report has no groups")?;
    let print = |group: &Value| {
        let [title, unit] = ["title", "unit"].map(|key| group[key].as_str().unwrap_or_default());
        let series = series::read(group)?;
        println!("{title}");
        print!("{}", series::table(&series, unit));
        Ok(json!({"title": title, "report": series::json(&series, unit)}))
    };
    groups.iter().map(print).collect()
}

/// Returns an initramfs for the other VMMs, whose init prints one line and resets.
fn trivial_initramfs() -> anyhow::Result<String> {
    let dir = target_dir().join("bench");
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let (init, path) = (dir.join("init"), dir.join("init.cpio"));
    let flags = ["-static", "-nostdlib", "-O2", "-s", "-fno-stack-protector", "-o"];
    run(Command::new("cc").args(flags).arg(&init).arg(top().join("tests/bench/init.c")))?;
    let mut archive = Vec::new();
    newc::append(&mut archive, "dev", 0o040_755, &[]);
    // The kernel opens the device for init's standard streams.
    newc::append_node(&mut archive, "dev/console", 0o020_600, (5, 1));
    newc::append(&mut archive, "init", 0o100_755, &fs::read(&init).context("read the trivial init")?);
    newc::finish(&mut archive);
    fs::write(&path, archive).with_context(|| format!("write {}", path.display()))?;
    Ok(path.display().to_string())
}
