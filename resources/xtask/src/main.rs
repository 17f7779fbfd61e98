//! `cargo xtask`: the project's task runner. Each subcommand is a module of its own.

mod apt;
mod cache;
mod kernel;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, runs, tests and measures vmm")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Builds the guest kernel, or finds the one that is built already, and prints where its files are.
    Kernel,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Kernel => {
            let files = kernel::kernel()?;
            for path in [files.vmlinux, files.bzimage, files.config] {
                println!("{}", path.display());
            }
            Ok(())
        }
    }
}
