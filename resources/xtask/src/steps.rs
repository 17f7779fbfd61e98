//! What every task does: say a step, run a command, find the checkout.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};

/// Returns the checkout's top folder.
pub fn top() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).expect("xtask lies two folders below the top").to_owned()
}

/// Says what happens next, on standard error, so that standard output stays the command's own.
pub fn say(step: &str) {
    eprintln!("==> {step}");
}

/// Runs `command` to its end and fails with its name and status if it did not succeed.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = shown(command);
    let status = command.status().with_context(|| format!("start {name}"))?;
    if !status.success() {
        bail!("{name}: {status}");
    }
    Ok(())
}

/// Runs `command` and returns its standard output as text.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = shown(command);
    let output = command.output().with_context(|| format!("start {name}"))?;
    if !output.status.success() {
        bail!("{name}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{name}: read its output"))
}

/// A `cargo` command in the checkout, with the toolchain that runs this one.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(top());
    cargo
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}
