//! A container of `vmm run` in the foreground: other commands reach it, and its end leaves nothing.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{Bundle, Running, StateDir, program};

use crate::hooks::{RecordingHooks, with_failing_hook};

const DEADLINE: Duration = Duration::from_secs(60);

/// A bundle, and the state directory in which it runs as container `c`.
struct Foreground {
    state: StateDir,
    bundle: Bundle,
}

impl Foreground {
    fn sh(script: &str) -> Foreground {
        Foreground::new(Bundle::sh(script))
    }

    fn new(bundle: Bundle) -> Foreground {
        Foreground { state: StateDir::new(), bundle }
    }

    /// `vmm run` of the bundle as container `c`.
    fn run(&self) -> Command {
        self.bundle.write();
        let mut command = self.state.command(&["run", "--bundle"]);
        command.arg(self.bundle.path()).arg("c");
        command
    }

    /// Waits until `vmm state` reports this status. Output of the container may arrive before its state is written.
    #[track_caller]
    fn wait_for_status(&self, status: &str) -> Value {
        let until = Instant::now() + DEADLINE;
        loop {
            let state: Value =
                serde_json::from_str(&self.state.out(&["state", "c"])).expect("parse the state");
            if state["status"] == status {
                return state;
            }
            assert!(Instant::now() < until, "{state}");
        }
    }
}

#[test]
fn other_commands_reach_it_and_nothing_is_left() {
    // `up` comes after the trap: init processes ignore signals for which they have no handler.
    let container = Foreground::sh("trap 'exit 7' TERM; echo up; while :; do read x; done");
    let mut run = Running::start(container.run());
    run.wait_for("up");
    let state = container.wait_for_status("running");
    assert_eq!(state["pid"].as_u64(), Some(run.pid().into()));
    let state = &container.state;
    assert_eq!(state.out(&["list", "--quiet"]), "c\n");
    assert_eq!(state.out(&["exec", "c", "echo", "hello"]), "hello\n");
    state.out(&["pause", "c"]);
    container.wait_for_status("paused");
    state.out(&["resume", "c"]);
    assert!(state.out(&["ps", "c"]).contains(&run.pid().to_string()));
    assert!(state.out(&["events", "--stats", "c"]).contains("\"memory\""));
    state.out(&["kill", "c", "TERM"]);
    // The shell runs its trap when `read` returns, here or at the end of the input.
    run.write(b"\n");
    run.finish().code(7);
    assert_eq!(state.names(), [""; 0]);
}

#[test]
fn run_passes_hooks_the_state_in_the_specification_s_order() {
    let hooks = RecordingHooks::new();
    let container = Foreground::new(hooks.of(Bundle::sh("exit 3")));
    Running::start(container.run()).finish().code(3);
    assert_eq!(hooks.statuses(), ["creating", "creating", "creating", "created", "running", "stopped"]);
    assert_eq!(container.state.names(), [""; 0]);
}

#[test]
fn a_failed_hook_ends_the_run_and_leaves_nothing() {
    let container = Foreground::new(with_failing_hook());
    Running::start(container.run()).finish().code(125).says(&["createRuntime hook /bin/busybox", "no"]);
    assert_eq!(container.state.names(), [""; 0]);
}

#[test]
fn a_given_id_is_unique_and_a_container_without_one_is_not_registered() {
    let container = Foreground::sh("echo up; read x");
    let start = |command| {
        let mut run = Running::start(command);
        run.wait_for("up");
        run
    };
    let named = start(container.run());
    Running::start(container.run()).finish().code(125).says(&["container with id exists: c"]);
    let unnamed = || {
        let mut command = container.state.command(&["run"]);
        command.arg(container.bundle.path());
        command
    };
    let (first, second) = (start(unnamed()), start(unnamed()));
    assert_eq!(container.state.names(), ["c"]);
    for mut run in [named, first, second] {
        run.write(b"\n");
        run.finish().code(0);
    }
    assert_eq!(container.state.names(), [""; 0]);
}

#[test]
fn a_container_without_an_id_needs_no_state_directory() {
    let container = Foreground::sh("echo up");
    container.bundle.write();
    let mut command = Command::new(program());
    command.args(["--root", "/proc/no/such/place", "run"]).arg(container.bundle.path());
    Running::start(command).finish().code(0).stdout("up\n").stderr("");
}

#[test]
fn list_removes_a_container_whose_process_was_killed() {
    let container = Foreground::sh("echo up; read x");
    let mut run = Running::start(container.run());
    run.wait_for("up");
    run.stop();
    assert_eq!(container.state.names(), ["c"]);
    assert_eq!(container.state.out(&["list", "--quiet"]), "");
    assert_eq!(container.state.names(), [""; 0]);
}
