//! `cargo xtask`: the project's task runner. Each subcommand is a module of its own.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod apt;
mod audit;
mod bench;
mod bundle;
mod cache;
mod check;
mod checkout;
mod dist;
mod engines;
mod executable;
mod fuzz;
mod host;
mod initramfs;
mod kernel;
mod kvm_tests;
mod newc;
mod packages;
mod program;
mod run;
mod steps;
mod suites;
mod test;
mod tools;

use kernel::Variant;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, runs, tests and measures vmm")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build vmm and run a bundle, by default a minimal Debian
    Run(run::Args),
    /// Run the tests: checks, unit tests, whole-VM tests, container engines, release files
    Test(test::Args),
    /// Measure vmm and alternatives in one run
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Fuzz the code that parses input from guests and bundles
    Fuzz(fuzz::Args),
    /// Check format, lints, dependencies between crates, licenses, sizes, and links in documents
    Check,
    /// Check the dependencies for known vulnerabilities (cargo-deny)
    Audit(audit::Args),
    /// Build `target/vmm`: the static program with guest kernel and agent
    Build,
    /// Build a Debian package and a tarball with the manual and the documentation, in `target/dist`
    Dist(dist::Args),
    /// Build a guest kernel if it is not cached, and print the paths of its files
    Kernel {
        /// The kernel for containers with CAP_SYS_ADMIN or CAP_NET_ADMIN
        #[arg(long)]
        full: bool,
    },
    /// Build an initramfs with the guest's agent, and print its path
    Initramfs,
    /// Run a command in the emulated KVM host
    Host(host::HostArgs),
}

fn main() -> ExitCode {
    let task = Cli::parse().task;
    if let Err(error) = checkout::find_top() {
        return exit(Err(error));
    }
    let done = match task {
        Task::Run(args) => return exit(run::run(&args)),
        Task::Host(args) => return host::main(args),
        Task::Test(args) => test::test(&args),
        Task::Bench(which) => bench::bench(&which),
        Task::Fuzz(args) => fuzz::fuzz(&args),
        Task::Audit(args) => audit::audit(&args),
        Task::Check => check::check(),
        Task::Build => program::program().map(|path| println!("{}", path.display())),
        Task::Dist(args) => args.maintainer().and_then(|maintainer| dist::dist(&maintainer)).map(|dist| {
            for path in [dist.package, dist.tarball, dist.sums] {
                println!("{}", path.display());
            }
        }),
        Task::Initramfs => initramfs::initramfs().map(|path| println!("{}", path.display())),
        Task::Kernel { full } => {
            kernel::kernel(if full { Variant::Full } else { Variant::Base }).map(|files| {
                for path in [files.vmlinux, files.bzimage, files.config] {
                    println!("{}", path.display());
                }
            })
        }
    };
    exit(done.map(|()| 0))
}

/// Returns the exit code. Prints the error of a failed task.
fn exit(done: anyhow::Result<i32>) -> ExitCode {
    match done {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
