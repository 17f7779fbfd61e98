//! What other commands see of a container that `vmm run` has in the foreground, and what is left of it.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{Bundle, Running, program};

const DEADLINE: Duration = Duration::from_secs(60);

/// A container in the foreground with a state directory of its own.
struct Foreground {
    root: TempDir,
    bundle: Bundle,
}

impl Foreground {
    fn sh(script: &str) -> Foreground {
        Foreground::new(Bundle::sh(script))
    }

    fn new(bundle: Bundle) -> Foreground {
        Foreground { root: TempDir::new().expect("make a folder"), bundle }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.arg("--root").arg(self.root.path().join("state")).args(words).stdin(Stdio::null());
        command
    }

    /// `vmm run` as container `c`.
    fn run(&self) -> Command {
        self.bundle.command();
        let mut command = self.command(&["run", "--bundle"]);
        command.arg(self.bundle.path()).arg("c");
        command
    }

    /// The output of a command that succeeds.
    #[track_caller]
    fn out(&self, words: &[&str]) -> String {
        let output = tests::output(&mut self.command(words));
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words:?}: {} {error}", output.status);
        String::from_utf8(output.stdout).expect("output is text")
    }

    /// Waits until `vmm state` has this status. The container's output may arrive before the state is written.
    #[track_caller]
    fn awaits(&self, status: &str) -> Value {
        let until = Instant::now() + DEADLINE;
        loop {
            let state: Value = serde_json::from_str(&self.out(&["state", "c"])).expect("a state");
            if state["status"] == status {
                return state;
            }
            assert!(Instant::now() < until, "{state}");
        }
    }

    /// The names of the containers that are left.
    fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root.path().join("state")).into_iter().flatten();
        let names = entries.map(|entry| entry.expect("list").file_name().into_string().expect("a name"));
        names.filter(|name| !name.starts_with('.')).collect()
    }
}

#[test]
fn other_commands_reach_it_and_nothing_is_left() {
    let container = Foreground::sh("echo up; trap 'exit 7' TERM; while :; do read x; done");
    let mut run = Running::start(container.run());
    run.wait_for("up");
    let state = container.awaits("running");
    assert_eq!(state["pid"].as_u64(), Some(run.pid().into()));
    assert_eq!(container.out(&["list", "--quiet"]), "c\n");
    assert_eq!(container.out(&["exec", "c", "echo", "hello"]), "hello\n");
    container.out(&["pause", "c"]);
    container.awaits("paused");
    container.out(&["resume", "c"]);
    assert!(container.out(&["ps", "c"]).contains(&run.pid().to_string()));
    assert!(container.out(&["events", "--stats", "c"]).contains("\"memory\""));
    container.out(&["kill", "c", "TERM"]);
    // A trap runs between two commands of the shell.
    run.write(b"\n");
    run.finish().code(7);
    assert_eq!(container.left(), [""; 0]);
}

#[test]
fn hooks_run_in_the_specification_s_order_with_the_state() {
    let folder = TempDir::new().expect("make a folder");
    let out = folder.path().join("out");
    let hook = |name: &str| {
        let script = format!("echo {name} $(grep -o '\"status\":\"[a-z]*\"') >> {}", out.display());
        json!([{"path": "/bin/busybox", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}])
    };
    let kinds = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    let hooks: Value = kinds.iter().map(|kind| ((*kind).to_owned(), hook(kind))).collect();
    let container = Foreground::new(Bundle::sh("exit 3").with(|config| config["hooks"] = hooks));
    Running::start(container.run()).finish().code(3);
    let text = fs::read_to_string(&out).expect("read what the hooks wrote");
    let states = ["creating", "creating", "creating", "created", "running", "stopped"];
    let expected: String =
        kinds.iter().zip(states).map(|(kind, state)| format!("{kind} \"status\":\"{state}\"\n")).collect();
    assert_eq!(text, expected);
    assert_eq!(container.left(), [""; 0]);
}

#[test]
fn a_hook_that_fails_ends_the_run_and_nothing_is_left() {
    let hook =
        json!({"createRuntime": [{"path": "/bin/busybox", "args": ["sh", "-c", "echo no >&2; exit 4"]}]});
    let container = Foreground::new(Bundle::sh("true").with(|config| config["hooks"] = hook));
    Running::start(container.run()).finish().code(125).says(&["createRuntime hook /bin/busybox", "no"]);
    assert_eq!(container.left(), [""; 0]);
}

#[test]
fn an_id_is_taken_once_and_one_that_nobody_chose_is_nobody_s() {
    let container = Foreground::sh("echo up; read x");
    let start = |command| {
        let mut run = Running::start(command);
        run.wait_for("up");
        run
    };
    let named = start(container.run());
    Running::start(container.run()).finish().code(125).says(&["container with id exists: c"]);
    let unnamed = || {
        let mut command = container.command(&["run"]);
        command.arg(container.bundle.path());
        command
    };
    let (first, second) = (start(unnamed()), start(unnamed()));
    assert_eq!(container.left(), ["c"]);
    for mut run in [named, first, second] {
        run.write(b"\n");
        run.finish().code(0);
    }
    assert_eq!(container.left(), [""; 0]);
}

#[test]
fn without_a_place_for_its_state_it_runs_all_the_same() {
    let container = Foreground::sh("echo up");
    container.bundle.command();
    let mut command = Command::new(program());
    command.args(["--root", "/proc/no/such/place", "run"]).arg(container.bundle.path());
    Running::start(command).finish().code(0).stdout("up\n").stderr("");
}

#[test]
fn one_that_was_killed_is_gone_with_the_next_look() {
    let container = Foreground::sh("echo up; read x");
    let mut run = Running::start(container.run());
    run.wait_for("up");
    run.stop();
    assert_eq!(container.left(), ["c"]);
    assert_eq!(container.out(&["list", "--quiet"]), "");
    assert_eq!(container.left(), [""; 0]);
}
