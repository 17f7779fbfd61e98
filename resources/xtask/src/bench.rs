//! `cargo xtask bench`: measures vmm and alternatives in one run.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::checkout::{target_dir, top};
use crate::host::Host;
use crate::newc;
use crate::steps::run;

mod boot;
mod docker;
mod files;
mod network;
mod operations;
mod plot;
mod series;
mod streams;

use boot::{BootArgs, BundlesArgs, DensityArgs, PodsArgs, RateArgs, ShapeArgs};
use docker::DockerArgs;
use files::FilesArgs;
use network::NetworkArgs;
use streams::StreamsArgs;

#[derive(Subcommand)]
pub enum Bench {
    /// Cold boots, compared with runc, crun, QEMU's microvm machine and other monitors
    Boot(BootArgs),
    /// Starts from a template, compared with cold ones, runc and crun; memory of an idle container
    Restore(BootArgs),
    /// Many starts, in a row and at once, compared with runc and crun
    Rate(RateArgs),
    /// Memory of many idle containers at the same time, from a template and cold
    Density(DensityArgs),
    /// Cold boots over memory and vCPUs, compared with other monitors
    Shape(ShapeArgs),
    /// Cold boots of vmm with bundles that ask for the full kernel, a cgroup, a memory limit
    Bundles(BundlesArgs),
    /// Pods as containerd makes them, and further containers in them, compared with runc
    Pods(PodsArgs),
    /// Bytes, messages and exec processes, compared with pipes and runc
    Streams(StreamsArgs),
    /// Operations on files in a container's root, compared with runc
    Files(FilesArgs),
    /// Traffic of containers over a bridge, compared with runc and with QEMU and vhost-net
    Network(NetworkArgs),
    /// Containers of Docker with vmm and with runc: time, memory, files and network
    Docker(DockerArgs),
}

/// Name of a clock on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ClockArg {
    Wall,
    Instructions,
}

impl ClockArg {
    /// Unit of the times that a bench reports as milliseconds.
    fn unit(self) -> &'static str {
        match self {
            ClockArg::Wall => "ms",
            ClockArg::Instructions => "million instructions",
        }
    }
}

/// Runs the bench, prints its table, and writes JSON and a plot.
pub fn bench(which: &Bench) -> anyhow::Result<()> {
    match which {
        Bench::Boot(args) => boot::boot(args),
        Bench::Restore(args) => boot::restore(args),
        Bench::Rate(args) => boot::rate(args),
        Bench::Density(args) => boot::density(args),
        Bench::Shape(args) => boot::shape(args),
        Bench::Bundles(args) => boot::bundles(args),
        Bench::Pods(args) => boot::pods(args),
        Bench::Streams(args) => streams::streams(args),
        Bench::Files(args) => files::files(args),
        Bench::Network(args) => network::network(args),
        Bench::Docker(args) => docker::docker(args),
    }
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

/// Returns the path of an initramfs for the other monitors. Its init prints one line and resets the machine.
fn trivial_initramfs() -> anyhow::Result<PathBuf> {
    let init = folder()?.join("init");
    let flags = ["-static", "-nostdlib", "-O2", "-s", "-fno-stack-protector", "-o"];
    run(Command::new("cc").args(flags).arg(&init).arg(top().join("tests/bench/init.c")))?;
    write_initramfs("init.cpio", "init", &init)
}

/// Writes an initramfs with the executable `program` as `name`. Returns its path.
fn write_initramfs(file: &str, name: &str, program: &Path) -> anyhow::Result<PathBuf> {
    let bytes = fs::read(program).with_context(|| format!("read {}", program.display()))?;
    let mut archive = Vec::new();
    newc::append(&mut archive, "dev", 0o040_755, &[]);
    // The kernel opens the device for init's standard streams.
    newc::append_node(&mut archive, "dev/console", 0o020_600, (5, 1));
    newc::append(&mut archive, name, 0o100_755, &bytes);
    newc::finish(&mut archive);
    write_file(file, &archive)
}
