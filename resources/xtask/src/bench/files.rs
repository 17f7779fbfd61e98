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
    print!("{}", table(&report)?);
    write_report(&format!("files-{:?}.json", args.clock).to_lowercase(), &report.to_string())
}

/// Returns a table for people: medians in µs, the ratio to runc, and interrupts for each operation.
fn table(report: &Value) -> anyhow::Result<String> {
    let rows = report["rows"].as_array().context("no rows in the bench's report")?;
    let mut text = format!("{:<30} {:>10}", "µs for one operation", "runc");
    for name in names(rows).iter().skip(1) {
        text += &format!(" {name:>10} {:>7} {:>10}", "ratio", "interrupts");
    }
    text.push('\n');
    for row in rows {
        let operation = row["operation"].as_str().context("a row without an operation")?;
        let of = |name: &str, what: &str| median(&row["contenders"][name][what]);
        let base = of("runc", "us")?;
        text += &format!("{operation:<30} {base:>10.1}");
        for name in names(rows).iter().skip(1) {
            let (time, interrupts) = (of(name, "us")?, of(name, "interrupts")?);
            text += &format!(" {time:>10.1} {:>7.2} {interrupts:>10.2}", time / base);
        }
        text.push('\n');
    }
    Ok(text)
}

/// Returns the contenders, runc first.
fn names(rows: &[Value]) -> Vec<&str> {
    let known = ["runc", "vmm", "other"];
    known
        .into_iter()
        .filter(|name| rows.first().is_some_and(|row| !row["contenders"][name].is_null()))
        .collect()
}

fn median(samples: &Value) -> anyhow::Result<f64> {
    let mut samples: Vec<f64> =
        samples.as_array().context("no samples")?.iter().filter_map(Value::as_f64).collect();
    ensure!(!samples.is_empty(), "no samples");
    samples.sort_by(f64::total_cmp);
    Ok(samples[samples.len() / 2])
}
