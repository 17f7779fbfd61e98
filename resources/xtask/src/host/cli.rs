//! `cargo xtask host`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use super::{Clock, FAILED, Host, check};

/// Runs a command as root in the emulated KVM host: a machine with a working /dev/kvm that sees this machine's files
#[derive(clap::Args)]
pub struct HostArgs {
    /// Share this folder for writing, and create it if it is missing; at most 4
    #[arg(short, long, value_name = "DIR")]
    out: Vec<PathBuf>,
    /// Copy this file or folder into the machine's memory before the command starts
    #[arg(long, value_name = "PATH")]
    stage: Vec<PathBuf>,
    /// Run the command once before, in a temporary machine, and stage every file that it opened
    #[arg(long)]
    stage_opened: bool,
    /// Memory, in MiB
    #[arg(short, long, value_name = "MIB", default_value_t = super::MEMORY_MIB)]
    memory: u32,
    /// CPUs that the command may use
    #[arg(short = 's', long, value_name = "N")]
    cpus: Option<u32>,
    /// Timeout in seconds; the exit code is then 124
    #[arg(short = 't', long, value_name = "SECONDS", default_value_t = super::DEADLINE.as_secs())]
    deadline: u64,
    /// Clock of the machine: the wall clock, or the number of executed instructions
    #[arg(long, value_enum, default_value = "wall")]
    clock: Clock,
    /// Pass standard input to the command
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Print the duration of each step
    #[arg(short, long)]
    verbose: bool,
    /// Only create the snapshot of the booted machine
    #[arg(long)]
    prepare: bool,
    /// Check that the machine works as documented
    #[arg(long)]
    check: bool,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required_unless_present_any = ["prepare", "check"])]
    command: Vec<OsString>,
}

/// Runs the command and returns its exit code, or 125 with one line on stderr if the machine failed.
pub fn main(args: HostArgs) -> ExitCode {
    match run(args) {
        Ok(status) => ExitCode::from(u8::try_from(status).expect("an exit code has eight bits")),
        Err(error) => {
            eprintln!("xtask host: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn run(args: HostArgs) -> anyhow::Result<i32> {
    if args.check {
        return check::run().map(|()| 0);
    }
    let mut host = Host::new().memory(args.memory).clock(args.clock).deadline(args.deadline);
    host = host.stdin(args.stdin).stage_opened(args.stage_opened).verbose(args.verbose);
    if let Some(cpus) = args.cpus {
        host = host.cpus(cpus);
    }
    for folder in args.out {
        host = host.out(folder);
    }
    for path in args.stage {
        host = host.stage(path);
    }
    if args.prepare {
        return host.prepare().map(|()| 0);
    }
    host.run(&args.command)
}
