//! `cargo xtask`: the project's task runner. Each subcommand is a module of its own.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod apt;
mod cache;
mod host;
mod kernel;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, runs, tests and measures vmm")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run a command in the emulated KVM host
    Host(host::HostArgs),
    /// Build the guest kernel, or find the one that is built already, and print where its files are
    Kernel,
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Host(args) => return host::main(args),
        Task::Kernel => kernel::kernel().map(|files| {
            for path in [files.vmlinux, files.bzimage, files.config] {
                println!("{}", path.display());
            }
        }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
