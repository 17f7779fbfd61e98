//! Steps of a task: says what comes next, and runs a command.

use std::env;
use std::io;
use std::process::Command;

use anyhow::{Context, bail};

use crate::checkout::top;

/// Prints the next step to standard error, so that standard output belongs to the command.
pub fn say(step: &str) {
    eprintln!("==> {step}");
}

/// Runs `command`. The error of a failed command has its words and its status.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = shown(command);
    let status = command.status().with_context(|| format!("start {name}"))?;
    if !status.success() {
        bail!("{name}: {status}");
    }
    Ok(())
}

/// Runs `command` like [`run`], with its standard output on standard error: a task prints only its result on standard
/// output.
pub fn run_aside(command: &mut Command) -> anyhow::Result<()> {
    run(command.stdout(io::stderr()))
}

/// Runs `command` and returns its standard output as text. The error of a failed command ends with its standard error.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = shown(command);
    let output = command.output().with_context(|| format!("start {name}"))?;
    if !output.status.success() {
        bail!("{name}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{name}: read its output"))
}

/// Returns a `cargo` command in the checkout, with the toolchain that runs this program.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(top());
    cargo
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}
