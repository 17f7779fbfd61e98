//! Debian packages: what a task needs is installed without being asked, and nothing happens when it is there.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use anyhow::{Context, ensure};

/// Installs those of `packages` that dpkg does not know as installed; refreshes apt's lists once if it must.
pub fn install(packages: &[&str]) -> anyhow::Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !installed(package)).collect();
    if missing.is_empty() { Ok(()) } else { install_with(&[], &missing) }
}

/// Refreshes apt's lists.
pub fn update() -> anyhow::Result<()> {
    run(as_root("apt-get").args(["-qq", "update"]))
}

fn installed(package: &str) -> bool {
    let output = Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]).output();
    output.is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

fn install_with(options: &[&str], packages: &[&str]) -> anyhow::Result<()> {
    eprintln!("xtask: installing {}", packages.join(" "));
    let attempt = || {
        let mut command = as_root("apt-get");
        command.args(["-qq", "-y", "--no-install-recommends"]).args(options).arg("install").args(packages);
        run(&mut command)
    };
    attempt().or_else(|_| update().and_then(|()| attempt()))
}

/// `program` with the rights to install; apt waits its turn, asks nothing, and its chatter goes to stderr.
fn as_root(program: &str) -> Command {
    let root = fs::metadata("/proc/self").is_ok_and(|this| this.uid() == 0);
    let mut command = Command::new(if root { "env" } else { "sudo" });
    command.args(["DEBIAN_FRONTEND=noninteractive", program, "-o", "DPkg::Lock::Timeout=600"]);
    command
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdout(std::io::stderr()).status().with_context(|| format!("start {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
