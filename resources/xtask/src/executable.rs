//! Executables that cargo builds: static ones, which run in a guest and on any host, and test programs.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context;
use serde_json::Value;

use crate::checkout::{target_dir, top};
use crate::steps::{cargo, output, run};

/// Target of static executables. It is named explicitly so that its flags do not apply to build scripts and macros.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds an executable of `package` without run-time libraries, and returns its path.
pub fn static_program(package: &str, name: &str) -> anyhow::Result<PathBuf> {
    let flags = format!("target.{TARGET}.rustflags=['-Ctarget-feature=+crt-static']");
    let mut build = cargo();
    build.args(["build", "--release", "--package", package, "--bin", name]);
    build.args(["--target", TARGET, "--config", &flags]);
    // For `vmm --version`. Without git, in an unpacked archive for example, it prints that the commit is unknown.
    if let Ok(commit) = output(
        Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).current_dir(top()),
    ) {
        build.env("VMM_COMMIT", commit.trim());
    }
    run(&mut build)?;
    Ok(target_dir().join(TARGET).join("release").join(name))
}

/// Builds the test program `name` of package `tests`, and returns the path of its executable.
pub fn test_program(name: &str) -> anyhow::Result<PathBuf> {
    let lines = output(
        cargo()
            .args(["test", "--package", "tests", "--test", name, "--no-run", "--message-format", "json"])
            .stderr(Stdio::inherit()),
    )?;
    lines
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|m| m["target"]["name"] == name && m["executable"].is_string())
        .and_then(|m| m["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("no executable of test {name} in the output of cargo test"))
}
