//! Hooks for tests of `vmm create` and of `vmm run`: they record what they get.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::Bundle;

/// The kinds of hooks, in the order in which the specification runs them.
const KINDS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A hook of each kind. Each appends its kind and the status of the state on its standard input to a file.
pub struct RecordingHooks(TempDir);

impl RecordingHooks {
    pub fn new() -> RecordingHooks {
        RecordingHooks(TempDir::new().expect("create a directory"))
    }

    fn record(&self) -> PathBuf {
        self.0.path().join("record")
    }

    /// Adds the hooks to a bundle.
    pub fn of(&self, bundle: Bundle) -> Bundle {
        let hook = |kind: &str| {
            let script = format!(
                "echo {kind} $(sed 's/.*\"status\":\"\\([a-z]*\\)\".*/\\1/') >> {}",
                self.record().display()
            );
            json!([{"path": "/bin/busybox", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}])
        };
        let hooks: Value = KINDS.iter().map(|kind| ((*kind).to_owned(), hook(kind))).collect();
        bundle.with(|config| config["hooks"] = hooks)
    }

    /// Asserts that each hook has run once, in order. Returns the statuses that they got.
    #[track_caller]
    pub fn statuses(&self) -> Vec<String> {
        let text = fs::read_to_string(self.record()).expect("read the hooks' record");
        let (kinds, statuses): (Vec<&str>, Vec<String>) = text
            .lines()
            .map(|line| line.split_once(' ').expect("a kind and a status"))
            .map(|(kind, status)| (kind, status.to_owned()))
            .unzip();
        assert_eq!(kinds, KINDS, "{text}");
        statuses
    }
}

/// A bundle with a createRuntime hook that prints `no` and fails.
pub fn with_failing_hook() -> Bundle {
    let hook =
        json!({"createRuntime": [{"path": "/bin/busybox", "args": ["sh", "-c", "echo no >&2; exit 4"]}]});
    Bundle::sh("true").with(|config| config["hooks"] = hook)
}
