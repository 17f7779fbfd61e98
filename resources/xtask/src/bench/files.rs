//! `cargo xtask bench files`: operations on files in a container's root, compared with runc.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::{ClockArg, report_in, write_report};
use crate::checkout::top;
use crate::executable::static_program;
use crate::host::{self, Clock, Host};
use crate::steps::{output, say};
use crate::{apt, bundle, program};

/// Timeout of the bench in seconds.
const DEADLINE_SECONDS: u64 = 3600;

/// Options for measuring files.
#[derive(clap::Args)]
pub struct FilesArgs {
    /// Clock: seconds, or instructions (in the emulated KVM host)
    #[arg(long, value_enum, default_value = "instructions")]
    clock: ClockArg,
    /// Containers of each runtime
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Only these kinds of operations: writes, reads, small-files, attributes, programs
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    only: Vec<String>,
    /// Another `vmm` program to measure in the same run, such as that of an earlier commit
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,
}

/// Runs the bench, prints its table and writes the samples.
pub fn files(args: &FilesArgs) -> anyhow::Result<()> {
    ensure!(args.runs > 0, "--runs is 0");
    apt::install(&["runc", "busybox-static"])?;
    let program = program::program()?;
    let mut words = vec![
        "bash".to_owned(),
        top().join("tests/bench/files.sh").display().to_string(),
        static_program("tests", "file-bench")?.display().to_string(),
        bundle::busybox(&program, &["true"])?.display().to_string(),
        args.runs.to_string(),
        args.only.join(","),
        program.display().to_string(),
    ];
    if let Some(other) = &args.against {
        let other = other.canonicalize().with_context(|| format!("resolve {}", other.display()))?;
        words.push(other.display().to_string());
    }
    say(&format!("running containers with each runtime {} times in turn", args.runs));
    let text = match args.clock {
        ClockArg::Wall if host::kvm_usable() => output(Command::new(&words[0]).args(&words[1..]))?,
        clock => {
            let counted = clock == ClockArg::Instructions;
            let host = Host::new().clock(if counted { Clock::Instructions } else { Clock::Wall });
            // The contenders read files through 9p; staged files do not add its latency to the result.
            report_in(&host.memory(4096).deadline(DEADLINE_SECONDS).stage_opened(counted), &words)?
        }
    };
    let report: Value = serde_json::from_str(&text).context("parse the bench's report")?;
    print!("{}", tables(&report)?);
    write_report(&format!("files-{:?}.json", args.clock).to_lowercase(), &report.to_string())
}

/// Returns two tables for people: medians in µs with their ratios to runc, and counts for each operation.
fn tables(report: &Value) -> anyhow::Result<String> {
    let rows = report["rows"].as_array().context("no rows in the bench's report")?;
    let names = names(rows);
    let machines = &names[1..];
    let mut text = format!("{:<30} {:>10}", "µs for one operation", "runc");
    text += &machines.iter().map(|name| format!(" {name:>10} {:>7}", "ratio")).collect::<String>();
    text.push('\n');
    for row in rows {
        let of = |name: &str| median(&row["contenders"][name]["us"]).context("no samples");
        let base = of("runc")?;
        text += &format!("{:<30} {base:>10.1}", operation(row)?);
        for name in machines {
            let time = of(name)?;
            text += &format!(" {time:>10.1} {:>7.2}", time / base);
        }
        text.push('\n');
    }
    text += &format!("\n{:<30}", "counts for one operation");
    text += &machines.iter().map(|name| format!(" {name:>10}{:>33}", "")).collect::<String>();
    text += &format!("\n{:<30}", "");
    text += &machines.iter().map(|_| COUNTS.map(|what| format!(" {what:>10}")).concat()).collect::<String>();
    text.push('\n');
    for row in rows {
        text += &format!("{:<30}", operation(row)?);
        for name in machines {
            for what in COUNTS {
                let number = median(&row["contenders"][name][what]);
                text += &number.map_or_else(|| format!(" {:>10}", "-"), |number| format!(" {number:>10.2}"));
            }
        }
        text.push('\n');
    }
    Ok(text)
}

/// What is counted for each operation: requests to the file server, exits of the machine, interrupts of its devices, and
/// switches of its threads.
const COUNTS: [&str; 4] = ["requests", "exits", "interrupts", "switches"];

fn operation(row: &Value) -> anyhow::Result<&str> {
    row["operation"].as_str().context("a row without an operation")
}

/// Returns the contenders, runc first.
fn names(rows: &[Value]) -> Vec<&str> {
    let known = ["runc", "vmm", "other"];
    known
        .into_iter()
        .filter(|name| rows.first().is_some_and(|row| !row["contenders"][name].is_null()))
        .collect()
}

/// Returns the median of samples, if there are any.
fn median(samples: &Value) -> Option<f64> {
    let mut samples: Vec<f64> = samples.as_array()?.iter().filter_map(Value::as_f64).collect();
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied()
}
