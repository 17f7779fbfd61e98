//! A container whose guest does not answer can be managed: each command ends in time, with an exit code and a message
//! that names the silence, and nothing is left on the host.

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tests::{Initrd, check_output, guest_program};

use super::PATIENCE;
use crate::lifecycle::faults::{in_cgroup, processes};
use crate::lifecycle::{Container, reap};

/// Maximum time for a command: the agent's time limit, the limits above it, and an allowance for a busy host.
const BOUND: Duration = Duration::from_secs(60);
/// Maximum time for a command that needs no answer of the guest.
const AT_ONCE: Duration = Duration::from_secs(8);
/// The message of a command whose guest does not answer.
const SILENT: &str = "no answer from the guest's agent for";

/// A container in a cgroup, whose agent plays a scenario of tests/guest/hostile.rs.
struct Play {
    container: Container,
    cgroup: PathBuf,
    initrd: Initrd,
    scenario: &'static str,
}

impl Play {
    fn new(scenario: &'static str) -> Play {
        static PLAYS: AtomicU32 = AtomicU32::new(0);
        let number = PLAYS.fetch_add(1, Ordering::Relaxed);
        let (container, cgroup) = in_cgroup(&format!("hostile-{scenario}-{number}"));
        Play { container, cgroup, initrd: Initrd::new(&guest_program(), "guest"), scenario }
    }

    /// Creates the container. Returns the exit code.
    fn create(&self) -> i32 {
        let cmdline = format!("rdinit=/guest -- hostile {}", self.scenario);
        let mut command = self.container.command(&["create"]);
        command.env("VMM_INITRD", self.initrd.path()).env("VMM_CMDLINE", cmdline).env("VMM_MEMORY", "64");
        self.container.run_create(command.env("VMM_AGENT_TIMEOUT", PATIENCE))
    }

    /// A running container, and its process.
    #[track_caller]
    fn running(scenario: &'static str) -> (Play, Pid) {
        let play = Play::new(scenario);
        assert_eq!(play.create(), 0, "{}", play.container.read("stderr"));
        play.container.out(&["start", "c"]);
        let pid = play.container.pid("pid");
        (play, pid)
    }

    /// Asserts that nothing of the container is left on the host.
    #[track_caller]
    fn assert_gone(&self) {
        assert_eq!(processes(&self.container), [""; 0]);
        assert!(self.container.is_gone() && !self.cgroup.exists());
    }

    /// Deletes the stopped container, and asserts that nothing is left.
    #[track_caller]
    fn delete(&self) {
        assert_eq!(self.container.status(), "stopped");
        self.container.out(&["delete", "c"]);
        self.assert_gone();
    }

    /// Asserts that commands which need no answer of the guest report `status` at once.
    #[track_caller]
    fn assert_status(&self, status: &str) {
        let start = Instant::now();
        assert_eq!(self.container.status(), status);
        assert!(self.container.out(&["list"]).contains(status));
        assert!(!self.container.out(&["ps", "--format", "json", "c"]).is_empty());
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    }

    /// Runs these commands concurrently. Asserts that each fails in time, with its exit code and a message with `part`.
    #[track_caller]
    fn assert_fail(&self, commands: &[&[&str]], part: &str) {
        let start = Instant::now();
        let outputs: Vec<Output> = thread::scope(|scope| {
            let run = |words: &[&str]| {
                let mut command = self.container.command(words);
                scope.spawn(move || tests::output(&mut command))
            };
            let all: Vec<_> = commands.iter().map(|words| run(words)).collect();
            all.into_iter().map(|one| one.join().expect("the command ends")).collect()
        });
        for (words, output) in commands.iter().zip(outputs) {
            let error = String::from_utf8_lossy(&output.stderr);
            let code = match words[0] {
                "exec" => 255,
                "update" | "events" => 125,
                _ => 1,
            };
            assert_eq!(output.status.code(), Some(code), "{words:?}: {error}");
            assert!(error.contains(part), "{words:?}: {error}");
        }
        assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    }
}

#[test]
fn a_create_that_the_guest_does_not_answer_fails_and_leaves_nothing() {
    let play = Play::new("silent-at-pod");
    assert_eq!(play.create(), 1);
    let error = play.container.read("stderr");
    assert!(error.contains("start the pod") && error.contains(SILENT), "{error}");
    play.assert_gone();
}

#[test]
fn a_start_that_the_guest_does_not_answer_fails_and_leaves_nothing() {
    for scenario in ["silent-at-start", "trickle-at-start"] {
        let play = Play::new(scenario);
        assert_eq!(play.create(), 0, "{}", play.container.read("stderr"));
        play.assert_status("created");
        play.assert_fail(&[&["start", "c"]], SILENT);
        reap(play.container.pid("pid")).unwrap_or_default();
        play.delete();
    }
}

#[test]
fn commands_to_a_silent_guest_fail_in_time_and_name_the_silence() {
    for scenario in ["silent", "trickle"] {
        let (play, pid) = Play::running(scenario);
        play.assert_status("running");
        let mut commands: Vec<&[&str]> =
            vec![&["exec", "c", "true"], &["exec", "--detach", "c", "true"], &["events", "--stats", "c"]];
        commands.push(&["update", "--pids-limit", "9", "c"]);
        if scenario == "trickle" {
            commands.push(&["pause", "c"]);
        }
        play.assert_fail(&commands, SILENT);
        assert_eq!(reap(pid), Ok(125));
        play.delete();
    }
}

#[test]
fn a_resume_of_a_silent_guest_fails_in_time() {
    let (play, pid) = Play::running("silent");
    play.container.out(&["pause", "c"]);
    play.assert_status("paused");
    play.assert_fail(&[&["exec", "--ignore-paused", "c", "true"], &["resume", "c"]], SILENT);
    assert_eq!(reap(pid), Ok(125));
    play.delete();
}

#[test]
fn a_kill_that_the_guest_ignores_ends_the_machine() {
    for scenario in ["silent", "trickle", "acks"] {
        let (play, pid) = Play::running(scenario);
        let start = Instant::now();
        play.container.out(&["kill", "c", "KILL"]);
        assert!(start.elapsed() < AT_ONCE);
        assert_eq!(reap(pid), Ok(137), "{scenario}");
        assert!(start.elapsed() < BOUND);
        let error = play.container.read("stderr");
        assert!(error.contains("killed, and no answer from the guest's agent for 10 s"), "{error}");
        play.delete();
    }
}

#[test]
fn a_kill_that_a_paused_guest_ignores_ends_the_machine() {
    let (play, pid) = Play::running("silent");
    play.container.out(&["pause", "c"]);
    play.container.out(&["kill", "c", "KILL"]);
    assert_eq!(reap(pid), Ok(137));
    play.delete();
}

#[test]
fn a_forced_delete_needs_no_answer_of_the_guest() {
    for scenario in ["silent", "trickle", "acks"] {
        let (play, pid) = Play::running(scenario);
        let start = Instant::now();
        play.container.out(&["delete", "--force", "c"]);
        assert!(start.elapsed() < BOUND);
        assert_eq!(reap(pid), Err(9));
        play.assert_gone();
    }
}

#[test]
fn a_flood_of_events_ends_the_container() {
    let (play, pid) = Play::running("flood-later");
    assert_eq!(reap(pid), Ok(125));
    let error = play.container.read("stderr");
    assert!(error.contains("events"), "{error}");
    play.delete();
}

/// A monitor that is suspended by SIGSTOP behaves like one that its guest has blocked.
#[test]
fn a_stopped_monitor_is_reported_and_can_be_killed_and_deleted() {
    let (play, pid) = Play::running("acks");
    kill_process(pid, Signal::STOP).expect("stop the container's process");
    play.assert_status("running");
    let silent = "c: no answer from its machine within 10 s";
    let commands: [&[&str]; 4] = [
        &["kill", "c", "TERM"],
        &["pause", "c"],
        &["update", "--pids-limit", "9", "c"],
        &["events", "--stats", "c"],
    ];
    play.assert_fail(&commands, silent);
    // Its stderr is a file: a pipe would have no end, since its descriptors stay open in the monitor's socket.
    let stderr = play.container.path("exec-stderr");
    let mut exec = play.container.command(&["exec", "c", "true"]);
    exec.stdout(Stdio::null()).stderr(File::create(&stderr).expect("create a file"));
    assert_eq!(tests::status(&mut exec).code(), Some(255));
    let error = play.container.read("exec-stderr");
    assert!(error.contains(silent), "{error}");
    play.container.out(&["delete", "--force", "c"]);
    assert_eq!(reap(pid), Err(9));
    play.assert_gone();

    let (play, pid) = Play::running("acks");
    kill_process(pid, Signal::STOP).expect("stop the container's process");
    play.container.out(&["kill", "c", "KILL"]);
    assert_eq!(reap(pid), Err(9));
    play.delete();
}

/// What the pod sends to a client without a request, up to the end of the connection.
fn answer_without_request(mut socket: UnixStream) -> String {
    let mut text = Vec::new();
    socket.set_read_timeout(Some(BOUND)).expect("set a deadline");
    socket.read_to_end(&mut text).expect("read to the end");
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn a_monitor_without_free_descriptors_says_so_and_can_be_deleted() {
    let (play, pid) = Play::running("acks");
    let number = pid.as_raw_nonzero().to_string();
    let open = std::fs::read_dir(format!("/proc/{number}/fd")).expect("list descriptors").count();
    check_output(Command::new("prlimit").args(["--pid", &number, &format!("--nofile={open}:{open}")]));
    let socket = play.container.path("state/c/sandbox.sock");
    // The pod disconnects clients that it could accept after a while, because they send no request.
    let all: Vec<_> = (0..32).map(|_| UnixStream::connect(&socket).expect("connect")).collect();
    let answers: Vec<_> = all.into_iter().map(answer_without_request).collect();
    assert!(answers.iter().any(|answer| answer.contains("no free file descriptors")), "{answers:?}");
    play.assert_status("running");
    play.container.out(&["delete", "--force", "c"]);
    assert_eq!(reap(pid), Err(9));
    play.assert_gone();
}
