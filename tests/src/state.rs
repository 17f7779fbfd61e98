//! A state directory, and `vmm` commands that use it.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::{output, program};

/// A state directory that no other test uses, in a directory for the test's other files. Both are removed on drop.
pub struct StateDir(TempDir);

impl Default for StateDir {
    fn default() -> StateDir {
        StateDir::new()
    }
}

impl StateDir {
    /// Returns a state directory that `vmm` has not created yet.
    pub fn new() -> StateDir {
        StateDir(TempDir::new().expect("create a directory"))
    }

    /// The state directory's path.
    pub fn path(&self) -> PathBuf {
        self.beside("state")
    }

    /// The path of a file next to the state directory.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Names of the containers and pods that have a directory, in their order.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path()).into_iter().flatten();
        let names = entries.map(|entry| {
            entry.expect("list the state directory").file_name().into_string().expect("the name is UTF-8")
        });
        let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    }

    /// `vmm` with this state directory and these arguments.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.arg("--root").arg(self.path()).args(words).stdin(Stdio::null());
        command
    }

    /// Runs a command and returns its output.
    #[track_caller]
    pub fn output(&self, words: &[&str]) -> Output {
        output(&mut self.command(words))
    }

    /// Returns what a command that succeeds prints.
    #[track_caller]
    pub fn out(&self, words: &[&str]) -> String {
        let output = self.output(words);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words:?}: {} {error}", output.status);
        String::from_utf8(output.stdout).expect("the output is UTF-8")
    }

    /// Returns the error message of a command that fails with `code`.
    #[track_caller]
    pub fn error(&self, code: i32, words: &[&str]) -> String {
        let output = self.output(words);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {text}");
        text
    }
}
