//! `cargo xtask bench docker`: the cost of a Docker container, with runc and with `vmm` in turn.

use std::ffi::OsString;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::{ClockArg, print_groups, report_in, write_report};
use crate::executable::test_program;
use crate::host::{Clock, Host};
use crate::steps::say;
use crate::{apt, bundle, engines, kvm_tests, program};

/// Timeout of the bench in seconds.
const DEADLINE_SECONDS: u64 = 3600;

/// Options for measuring containers of Docker.
#[derive(clap::Args)]
pub struct DockerArgs {
    /// Clock: seconds, or instructions, which measures only whole runs
    #[arg(long, value_enum, default_value = "wall")]
    clock: ClockArg,
    /// Samples of each figure
    #[arg(long, default_value_t = 5)]
    runs: usize,
}

/// Runs the bench in the emulated KVM host, even if this machine has a usable KVM: the bench starts a Docker daemon
/// with networks.
pub fn docker(args: &DockerArgs) -> anyhow::Result<()> {
    ensure!(args.runs > 0, "--runs is 0");
    apt::install(&engines::PACKAGES)?;
    apt::install(&["iperf3"])?;
    let program = program::program()?;
    let mut words: Vec<OsString> = vec![test_program("engines")?.into(), "--bench".into()];
    words.push(args.runs.to_string().into());
    let counted = args.clock == ClockArg::Instructions;
    let mut host = Host::new().memory(6144).deadline(DEADLINE_SECONDS);
    if counted {
        host = host.clock(Clock::Instructions).stage_opened(true);
    } else {
        words.push("--all".into());
        host = host.env("VMM_TEST_PROGRAMS", bundle::programs()?);
    }
    say(&format!("running containers of Docker {} times with each runtime in turn", args.runs));
    let report: Value = serde_json::from_str(&report_in(&host, &kvm_tests::emulated(&program, &words))?)
        .context("parse the bench's report")?;
    if counted {
        say("on the instruction clock, a millisecond is a million instructions");
    }
    let name = format!("docker-{:?}.json", args.clock).to_lowercase();
    write_report(&name, &Value::from(print_groups(&report)?).to_string())
}
