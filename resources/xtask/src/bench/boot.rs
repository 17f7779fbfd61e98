//! `cargo xtask bench boot`, `rate`, `shape`, `bundles` and `pods`: starts of `vmm`, beside other runtimes and monitors.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::{ClockArg, folder, plot, print_groups, report_in, series, trivial_initramfs, write_report};
use crate::checkout::top;
use crate::executable::static_program;
use crate::host::{self, Clock, Host};
use crate::steps::{output, run, say};
use crate::{apt, bundle, kernel, program};

/// Timeout of a bench in seconds.
const DEADLINE_SECONDS: u64 = 3600;
/// Longest start in a series, as a multiple of the median, that is not reported as an outlier.
const OUTLIER: f64 = 5.0;

/// The contenders beside `vmm`, and the clock.
#[derive(clap::Args, Default)]
pub struct Contenders {
    /// Another `vmm` program to measure in the same run, such as that of an earlier commit
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,
    /// Firecracker's program
    #[arg(long, value_name = "PROGRAM")]
    firecracker: Option<PathBuf>,
    /// Cloud Hypervisor's program
    #[arg(long, value_name = "PROGRAM")]
    cloud_hypervisor: Option<PathBuf>,
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
    /// Mount the emulated host's cgroup tree with favordynmods
    #[arg(long)]
    favordynmods: bool,
    #[command(flatten)]
    contenders: Contenders,
}

/// Options for measuring many starts.
#[derive(clap::Args)]
pub struct RateArgs {
    /// Starts one after the other
    #[arg(long, default_value_t = 100)]
    in_a_row: usize,
    /// Starts at the same time
    #[arg(long, default_value_t = 20)]
    at_once: usize,
    /// How often containers are started at the same time
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only starts from a template
    #[arg(long)]
    templates: bool,
    #[command(flatten)]
    contenders: Contenders,
}

/// Options for measuring idle containers.
#[derive(clap::Args)]
pub struct DensityArgs {
    /// Containers at the same time, as far as memory reaches
    #[arg(long, default_value_t = 100)]
    count: usize,
    /// Memory of the emulated host in MiB
    #[arg(long, default_value_t = 6144)]
    memory: u32,
    #[command(flatten)]
    contenders: Contenders,
}

/// Options for measuring starts over the size of the machine.
#[derive(clap::Args)]
pub struct ShapeArgs {
    /// Boots of each machine
    #[arg(long, default_value_t = 3)]
    runs: usize,
    #[command(flatten)]
    contenders: Contenders,
}

/// Options for measuring pods.
#[derive(clap::Args)]
pub struct PodsArgs {
    /// Pods of each contender
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Clock: seconds, or instructions (in the emulated KVM host)
    #[arg(long, value_enum, default_value = "instructions")]
    clock: ClockArg,
    /// Another `vmm` program to measure in the same run, such as that of an earlier commit
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,
}

/// Options for measuring starts of bundles that ask for more than a program.
#[derive(clap::Args)]
pub struct BundlesArgs {
    /// Boots of each kind
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Clock: seconds, or instructions (in the emulated KVM host)
    #[arg(long, value_enum, default_value = "instructions")]
    clock: ClockArg,
}

/// Boots each contender in turn. Prints a table, and writes JSON, a plot of the starts and one of their parts.
pub fn boot(args: &BootArgs) -> anyhow::Result<()> {
    say(&format!("booting each contender {} times in turn", args.runs));
    let report = in_turn("boot", args)?;
    let unit = args.clock.unit();
    let [starts, parts] = groups(&report)?;
    print_groups(&report)?;
    let name = format!("boot-{:?}", args.clock).to_lowercase();
    write_report(&format!("{name}.json"), &series::json(&starts, unit).to_string())?;
    write_report(&format!("{name}.svg"), &plot::bars(&starts, unit))?;
    write_report(&format!("{name}-parts.svg"), &plot::stack(&parts, unit))
}

/// Starts containers from a template, cold, and with other runtimes in turn. Prints tables, and writes JSON and a plot of the
/// starts.
pub fn restore(args: &BootArgs) -> anyhow::Result<()> {
    say(&format!("starting each contender {} times in turn", args.runs));
    let report = in_turn("restore", args)?;
    let unit = args.clock.unit();
    let starts = series::read(&report["groups"][0])?;
    let groups = print_groups(&report)?;
    let name = format!("restore-{:?}", args.clock).to_lowercase();
    write_report(&format!("{name}.json"), &Value::from(groups).to_string())?;
    write_report(&format!("{name}.svg"), &plot::bars(&starts, unit))
}

/// Runs the bench `what` with `args` and returns its report.
fn in_turn(what: &str, args: &BootArgs) -> anyhow::Result<Value> {
    ensure!(args.runs > 0, "--runs is 0");
    let mut words = vec![what.to_owned(), args.runs.to_string()];
    if args.favordynmods {
        ensure!(
            args.clock == ClockArg::Instructions || !host::kvm_usable(),
            "--favordynmods changes the host's cgroup tree: only in the emulated KVM host"
        );
        words.push("favordynmods".into());
    }
    measure(&args.contenders, args.clock, Host::new().memory(4096).cpus(1), &words)
}

/// Starts many containers of each contender. Fails if a start fails, and names series with outliers.
pub fn rate(args: &RateArgs) -> anyhow::Result<()> {
    ensure!(args.in_a_row > 0 && args.at_once > 0 && args.rounds > 0, "a count of starts is 0");
    let counts = [args.in_a_row, args.at_once, args.rounds].map(|count| count.to_string());
    let only = args.templates.then(|| "templates".to_owned());
    let words: Vec<String> = ["rate".to_owned()].into_iter().chain(counts).chain(only).collect();
    say("starting many containers");
    let report = measure(&args.contenders, ClockArg::Wall, Host::new().memory(6144), &words)?;
    let groups = print_groups(&report)?;
    write_report("rate.json", &Value::from(groups).to_string())?;
    for group in &report["groups"].as_array().context("no groups in the bench's report")?[..2] {
        for one in series::read(group)? {
            let times = one.spread().1 / one.median();
            let verdict = if times > OUTLIER { "too long" } else { "ok" };
            println!("{}, {}: longest start {times:.1} medians: {verdict}", group["title"], one.name);
        }
    }
    for failures in report["failures"].as_array().context("no failures in the bench's report")? {
        println!("{}: {} failures", failures["name"], failures["failures"]);
        let is_own = failures["name"].as_str().is_some_and(|name| name.starts_with("vmm"));
        if is_own && failures["failures"] != 0 {
            bail!("starts of vmm failed");
        }
    }
    Ok(())
}

/// Starts idle containers, and measures the memory of each. Prints a table, and writes JSON and a plot.
pub fn density(args: &DensityArgs) -> anyhow::Result<()> {
    ensure!(args.count > 0, "--count is 0");
    let words = ["density".to_owned(), args.count.to_string()];
    let host = Host::new().memory(args.memory);
    let report = measure(&args.contenders, ClockArg::Wall, host, &words)?;
    let memory = series::read(&report["groups"][0])?;
    let groups = print_groups(&report)?;
    write_report("density.json", &Value::from(groups).to_string())?;
    write_report("density.svg", &plot::bars(&memory, "MiB"))
}

/// Starts machines of several sizes: over memory on the instruction clock, over vCPUs on the wall clock, because a vCPU
/// that waits for another one counts instructions.
pub fn shape(args: &ShapeArgs) -> anyhow::Result<()> {
    ensure!(args.runs > 0, "--runs is 0");
    for (axis, clock, label) in
        [("memory", ClockArg::Instructions, "MiB of memory"), ("cpus", ClockArg::Wall, "vCPUs")]
    {
        say(&format!("starting machines over {label}"));
        let words = [axis.to_owned(), args.runs.to_string()];
        let report = measure(&args.contenders, clock, Host::new().memory(6144), &words)?;
        let unit = clock.unit();
        let [first, end] = groups(&report)?;
        print_groups(&report)?;
        let all = json!({"first output": series::json(&first, unit), "exit": series::json(&end, unit)});
        write_report(&format!("shape-{axis}.json"), &all.to_string())?;
        write_report(&format!("shape-{axis}.svg"), &plot::curves(&first, label, unit))?;
    }
    Ok(())
}

/// Starts bundles that ask for more than a program.
pub fn bundles(args: &BundlesArgs) -> anyhow::Result<()> {
    ensure!(args.runs > 0, "--runs is 0");
    let words = ["bundles".to_owned(), args.runs.to_string()];
    let report = measure(&Contenders::default(), args.clock, Host::new().memory(4096).cpus(1), &words)?;
    let groups = print_groups(&report)?;
    write_report("bundles.json", &Value::from(groups).to_string())
}

/// Makes pods as containerd does.
pub fn pods(args: &PodsArgs) -> anyhow::Result<()> {
    ensure!(args.runs > 0, "--runs is 0");
    apt::install(&["iproute2"])?;
    let words = ["pods".to_owned(), args.runs.to_string()];
    let contenders = Contenders { against: args.against.clone(), ..Contenders::default() };
    let report = measure(&contenders, args.clock, Host::new().memory(4096).cpus(1), &words)?;
    let groups = print_groups(&report)?;
    write_report("pods.json", &Value::from(groups).to_string())
}

/// Runs the boot bench with `words` and returns its report. `host` is the emulated KVM host, if this machine's KVM is not
/// used.
fn measure(contenders: &Contenders, clock: ClockArg, host: Host, words: &[String]) -> anyhow::Result<Value> {
    let staged = staged(contenders)?;
    let mut command: Vec<String> = ["bash".to_owned()].into();
    command.extend([top().join("tests/bench/staged.sh"), staged].map(|path| path.display().to_string()));
    command.extend_from_slice(words);
    let text = if clock == ClockArg::Wall && host::kvm_usable() {
        output(Command::new(&command[0]).args(&command[1..]))?
    } else {
        let counted = clock == ClockArg::Instructions;
        let host = if counted { host.clock(Clock::Instructions) } else { host };
        // The contenders read files through 9p; staged files do not add its latency to the result.
        report_in(&host.deadline(DEADLINE_SECONDS).stage_opened(counted), &command)?
    };
    let mut report: Value = serde_json::from_str(&text).context("parse the bench's report")?;
    for group in report["groups"].as_array_mut().context("no groups in the bench's report")? {
        if group["unit"].is_null() {
            group["unit"] = clock.unit().into();
        }
    }
    Ok(report)
}

/// Makes the folder with the bench's program and all its contenders.
fn staged(contenders: &Contenders) -> anyhow::Result<PathBuf> {
    apt::install(&["runc", "crun", "gcc", "qemu-system-x86"])?;
    let staged = folder()?.join("staged");
    if staged.exists() {
        fs::remove_dir_all(&staged).with_context(|| format!("remove {}", staged.display()))?;
    }
    fs::create_dir_all(&staged).with_context(|| format!("create {}", staged.display()))?;
    let program = program::program()?;
    let bundle = bundle::busybox(&program, &["echo", "hello"])?;
    let copy = |from: &Path, name: &str| {
        let from = from.canonicalize().with_context(|| format!("resolve {}", from.display()))?;
        run(Command::new("cp").arg("-a").arg(from).arg(staged.join(name)))
    };
    copy(&static_program("tests", "boot-bench")?, "bench")?;
    copy(&program, "vmm")?;
    copy(&bundle, "bundle")?;
    copy(&kernel::kernel(kernel::Variant::Base)?.vmlinux, "kernel")?;
    copy(&trivial_initramfs()?, "initramfs")?;
    let others = [
        ("other", &contenders.against),
        ("firecracker", &contenders.firecracker),
        ("cloud-hypervisor", &contenders.cloud_hypervisor),
    ];
    for (name, other) in others {
        other.as_deref().map_or(Ok(()), |other| copy(other, name))?;
    }
    Ok(staged)
}

/// Returns the two groups of a report.
fn groups(report: &Value) -> anyhow::Result<[Vec<series::Series>; 2]> {
    let groups = report["groups"].as_array().context("no groups in the bench's report")?;
    let all = groups.iter().map(series::read).collect::<anyhow::Result<Vec<_>>>()?;
    all.try_into().ok().context("the bench's report does not have two groups")
}
