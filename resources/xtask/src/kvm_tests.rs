//! Test programs that start `vmm`: runs them natively, or in the emulated KVM host.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::checkout::top;
use crate::host::{self, Host};
use crate::steps::say;

/// A run of a test program.
pub struct KvmTests<'a> {
    /// Name in messages.
    pub name: &'a str,
    /// The `vmm` program, which the tests find as `$VMM_PROGRAM`.
    pub program: &'a Path,
    /// The test program and its arguments.
    pub words: Vec<OsString>,
    pub environment: Vec<(&'static str, OsString)>,
}

impl KvmTests<'_> {
    /// Runs the tests natively if this machine's KVM is usable, otherwise in the emulated KVM host with the options of
    /// `host`.
    pub fn run(&self, host: Host) -> anyhow::Result<()> {
        let code = if host::kvm_usable() { self.run_natively()? } else { self.run_emulated(host, &[])? };
        self.check(code)
    }

    /// Runs the tests with this machine's KVM and returns the exit code.
    pub fn run_natively(&self) -> anyhow::Result<i32> {
        say(&format!("{}, on this machine's KVM", self.name));
        let program = &self.words[0];
        let mut command = Command::new(program);
        command.args(&self.words[1..]).env("VMM_PROGRAM", self.program);
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        let status = command.status().with_context(|| format!("start {}", program.display()))?;
        Ok(status.code().unwrap_or(1))
    }

    /// Runs the tests in the emulated KVM host and returns the exit code. `wrapper` is a command that prepares the host
    /// and then runs its arguments.
    pub fn run_emulated(&self, host: Host, wrapper: &[OsString]) -> anyhow::Result<i32> {
        say(&format!("{}, in the emulated KVM host", self.name));
        let mut words = wrapper.to_vec();
        words.extend(emulated(self.program, &self.words));
        let set = |host: Host, (key, value): &(&str, OsString)| host.env(*key, value);
        self.environment.iter().fold(host, set).run(&words)
    }

    pub fn check(&self, code: i32) -> anyhow::Result<()> {
        ensure!(code == 0, "{}: exit code {code}", self.name);
        Ok(())
    }
}

/// Returns a command for the emulated KVM host. It prepares an ext4 file system for temporary files, and runs `words`
/// with a copy of `program` as `$VMM_PROGRAM`.
pub fn emulated(program: &Path, words: &[OsString]) -> Vec<OsString> {
    let script = top().join("tests/host/tests.sh");
    let mut command = vec!["bash".into(), script.into(), program.into()];
    command.extend_from_slice(words);
    command
}
