//! `cargo xtask bench`: measures vmm and alternatives in one run.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
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

#[derive(Subcommand)]
pub enum Bench {
    /// Cold boots, compared with QEMU's microvm machine, runc and crun
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
    ensure!(args.runs > 0, "--runs is 0");
    apt::install(&["runc", "crun", "gcc", "qemu-system-x86"])?;
    let program = program::program()?;
    let bundle = bundle::busybox(&program, &["echo", "hello"])?;
    let bench = static_program("tests", "boot-bench")?;
    let mut words = vec![
        "bash".to_owned(),
        top().join("tests/bench/boot.sh").display().to_string(),
        bench.display().to_string(),
        program.display().to_string(),
        bundle.display().to_string(),
        kernel::kernel(kernel::Variant::Base)?.vmlinux.display().to_string(),
        trivial_initramfs()?,
        args.runs.to_string(),
    ];
    if let Some(other) = &args.against {
        let other = other.canonicalize().with_context(|| format!("resolve {}", other.display()))?;
        words.push(other.display().to_string());
    }
    say(&format!("booting each contender {} times in turn", args.runs));
    let text = match args.clock {
        ClockArg::Wall if host::kvm_usable() => output(Command::new(&words[0]).args(&words[1..]))?,
        clock => {
            let counted = clock == ClockArg::Instructions;
            let host = Host::new().clock(if counted { Clock::Instructions } else { Clock::Wall });
            // The contenders read files through 9p; staged files do not add its latency to the result.
            report_in(&host.memory(4096).deadline(3600).stage_opened(counted), &words)?
        }
    };
    let report: Value = serde_json::from_str(&text).context("parse the bench's report")?;
    let unit = if args.clock == ClockArg::Wall { "ms" } else { "million instructions" };
    let series = series::read(&report)?;
    print!("{}", series::table(&series, unit));
    write_reports(&series, unit, args)
}

/// Writes the samples as JSON and the medians as a plot.
fn write_reports(series: &[Series], unit: &str, args: &BootArgs) -> anyhow::Result<()> {
    let name = format!("boot-{:?}", args.clock).to_lowercase();
    write_report(&format!("{name}.json"), &series::json(series, unit).to_string())?;
    write_report(&format!("{name}.svg"), &plot::bars(series, unit))
}

/// Writes a report to `target/bench` and prints its path.
fn write_report(name: &str, text: &str) -> anyhow::Result<()> {
    println!("{}", write_file(name, text.as_bytes())?.display());
    Ok(())
}

/// Writes a file to `target/bench` and returns its path.
fn write_file(name: &str, bytes: &[u8]) -> anyhow::Result<PathBuf> {
    let path = folder()?.join(name);
    fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// Returns the folder `target/bench` and creates it.
fn folder() -> anyhow::Result<PathBuf> {
    let folder = target_dir().join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder)
}

/// Prints each group of a report, `{"groups": [{"title", "unit", "series"}]}`. Returns the groups with statistics.
fn print_groups(report: &Value) -> anyhow::Result<Vec<Value>> {
    let groups = report["groups"].as_array().context("no groups in the bench's report")?;
    let print = |group: &Value| {
        let [title, unit] = ["title", "unit"].map(|key| group[key].as_str().unwrap_or_default());
        let series = series::read(group)?;
        println!("{title}");
        print!("{}", series::table(&series, unit));
        Ok(json!({"title": title, "report": series::json(&series, unit)}))
    };
    groups.iter().map(print).collect()
}

/// Runs a bench in the emulated KVM host and returns its report.
fn report_in<S: AsRef<OsStr>>(host: &Host, words: &[S]) -> anyhow::Result<String> {
    let done = host.output(words)?;
    let stderr = String::from_utf8_lossy(&done.stderr);
    ensure!(
        done.status == 0,
        "bench in the emulated KVM host: exit code {}\n{}",
        done.status,
        stderr.trim_end()
    );
    String::from_utf8(done.stdout).context("decode the bench's report")
}

/// Returns the path of an initramfs for the other VMMs. Its init prints one line and resets the machine.
fn trivial_initramfs() -> anyhow::Result<String> {
    let init = folder()?.join("init");
    let flags = ["-static", "-nostdlib", "-O2", "-s", "-fno-stack-protector", "-o"];
    run(Command::new("cc").args(flags).arg(&init).arg(top().join("tests/bench/init.c")))?;
    write_initramfs("init.cpio", "init", &init)
}

/// Writes an initramfs with the executable `program` as `name`. Returns its path.
fn write_initramfs(file: &str, name: &str, program: &Path) -> anyhow::Result<String> {
    let bytes = fs::read(program).with_context(|| format!("read {}", program.display()))?;
    let mut archive = Vec::new();
    newc::append(&mut archive, "dev", 0o040_755, &[]);
    // The kernel opens the device for init's standard streams.
    newc::append_node(&mut archive, "dev/console", 0o020_600, (5, 1));
    newc::append(&mut archive, name, 0o100_755, &bytes);
    newc::finish(&mut archive);
    Ok(write_file(file, &archive)?.display().to_string())
}
