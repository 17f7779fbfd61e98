//! `cargo xtask bench files`: operations on files in a container's root, compared with runc.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::{ClockArg, operations, report_in, write_report};
use crate::checkout::top;
use crate::executable::static_program;
use crate::host::{self, Clock, Host};
use crate::steps::{output, say};
use crate::{apt, bundle, program};

/// Timeout of the bench in seconds.
const DEADLINE_SECONDS: u64 = 3600;

/// What is counted for each operation: requests to the file server, exits of the machine, interrupts of its devices, and
/// switches of its threads.
const COUNTS: [&str; 4] = ["requests", "exits", "interrupts", "switches"];

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
    print!("{}", operations::tables(&report, &COUNTS)?);
    write_report(&format!("files-{:?}.json", args.clock).to_lowercase(), &report.to_string())
}
