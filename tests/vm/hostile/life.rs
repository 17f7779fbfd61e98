//! A container whose guest does not answer can be managed all the same: each command ends in time, with a code and a text that
//! names the silence, and nothing is left.

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tests::{Initrd, check_output};

use super::PATIENCE;
use crate::lifecycle::faults::{in_cgroup, processes};
use crate::lifecycle::{Container, reap};

/// How long anything may take here: the agent's patience, the bounds above it, and a busy host.
const BOUND: Duration = Duration::from_secs(60);
/// How long what needs nobody's answer may take.
const AT_ONCE: Duration = Duration::from_secs(8);
/// How a command says that the guest does not answer.
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
        let guest =
            std::env::var_os("VMM_TEST_GUEST").expect("VMM_TEST_GUEST names the program for the guest");
        static PLAYS: AtomicU32 = AtomicU32::new(0);
        let number = PLAYS.fetch_add(1, Ordering::Relaxed);
        let (container, cgroup) = in_cgroup(&format!("hostile-{scenario}-{number}"));
        Play { container, cgroup, initrd: Initrd::new(Path::new(&guest), "guest"), scenario }
    }

    /// Creates it; returns the exit code.
    fn create(&self) -> i32 {
        let cmdline = format!("rdinit=/guest -- hostile {}", self.scenario);
        let mut command = self.container.command(&["create"]);
        command.env("VMM_INITRD", self.initrd.path()).env("VMM_CMDLINE", cmdline).env("VMM_MEMORY", "64");
        self.container.run_create(command.env("VMM_AGENT_TIMEOUT", PATIENCE))
    }

    /// One that runs, and its process.
    #[track_caller]
    fn running(scenario: &'static str) -> (Play, Pid) {
        let play = Play::new(scenario);
        assert_eq!(play.create(), 0, "{}", play.container.read("stderr"));
        play.container.out(&["start", "c"]);
        let pid = play.container.pid("pid");
        (play, pid)
    }

    /// Asserts that nothing of it is left on the host.
    #[track_caller]
    fn is_gone(&self) {
        assert_eq!(processes(&self.container), [""; 0]);
        assert!(self.container.is_gone() && !self.cgroup.exists());
    }

    /// Deletes it after its end, and looks for what is left.
    #[track_caller]
    fn is_deleted(&self) {
        assert_eq!(self.container.status(), "stopped");
        self.container.out(&["delete", "c"]);
        self.is_gone();
    }

    /// What can be known without anybody's answer is told at once.
    #[track_caller]
    fn is_told(&self, status: &str) {
        let start = Instant::now();
        assert_eq!(self.container.status(), status);
        assert!(self.container.out(&["list"]).contains(status));
        assert!(!self.container.out(&["ps", "--format", "json", "c"]).is_empty());
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    }

    /// Runs all of these commands at once; each fails in time, with its code, and says `part`.
    #[track_caller]
    fn fail(&self, commands: &[&[&str]], part: &str) {
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
fn a_creation_that_the_guest_does_not_answer_fails_and_leaves_nothing() {
    let play = Play::new("silent-at-pod");
    assert_eq!(play.create(), 1);
    let error = play.container.read("stderr");
    assert!(error.contains("start the pod") && error.contains(SILENT), "{error}");
    play.is_gone();
}

#[test]
fn a_start_that_the_guest_does_not_answer_fails_and_leaves_nothing() {
    for scenario in ["silent-at-start", "trickle-at-start"] {
        let play = Play::new(scenario);
        assert_eq!(play.create(), 0, "{}", play.container.read("stderr"));
        play.is_told("created");
        play.fail(&[&["start", "c"]], SILENT);
        reap(play.container.pid("pid")).unwrap_or_default();
        play.is_deleted();
    }
}

#[test]
fn what_is_asked_of_a_silent_guest_is_told_of_its_silence() {
    for scenario in ["silent", "trickle"] {
        let (play, pid) = Play::running(scenario);
        play.is_told("running");
        let mut commands: Vec<&[&str]> =
            vec![&["exec", "c", "true"], &["exec", "--detach", "c", "true"], &["events", "--stats", "c"]];
        commands.push(&["update", "--pids-limit", "9", "c"]);
        if scenario == "trickle" {
            commands.push(&["pause", "c"]);
        }
        play.fail(&commands, SILENT);
        assert_eq!(reap(pid), Ok(125));
        play.is_deleted();
    }
}

#[test]
fn a_silent_guest_is_not_paused_for_ever() {
    let (play, pid) = Play::running("silent");
    play.container.out(&["pause", "c"]);
    play.is_told("paused");
    play.fail(&[&["exec", "--ignore-paused", "c", "true"], &["resume", "c"]], SILENT);
    assert_eq!(reap(pid), Ok(125));
    play.is_deleted();
}

#[test]
fn a_guest_that_does_not_heed_a_kill_loses_its_machine() {
    for scenario in ["silent", "trickle", "acks"] {
        let (play, pid) = Play::running(scenario);
        let start = Instant::now();
        play.container.out(&["kill", "c", "KILL"]);
        assert!(start.elapsed() < AT_ONCE);
        assert_eq!(reap(pid), Ok(137), "{scenario}");
        assert!(start.elapsed() < BOUND);
        let error = play.container.read("stderr");
        assert!(error.contains("killed, and no answer from the guest's agent for 10 s"), "{error}");
        play.is_deleted();
    }
}

#[test]
fn a_paused_container_that_does_not_heed_a_kill_loses_its_machine() {
    let (play, pid) = Play::running("silent");
    play.container.out(&["pause", "c"]);
    play.container.out(&["kill", "c", "KILL"]);
    assert_eq!(reap(pid), Ok(137));
    play.is_deleted();
}

#[test]
fn a_deletion_by_force_asks_nobody() {
    for scenario in ["silent", "trickle", "acks"] {
        let (play, pid) = Play::running(scenario);
        let start = Instant::now();
        play.container.out(&["delete", "--force", "c"]);
        assert!(start.elapsed() < BOUND);
        assert_eq!(reap(pid), Err(9));
        play.is_gone();
    }
}

#[test]
fn a_flood_from_a_container_s_guest_is_its_end() {
    let (play, pid) = Play::running("flood-later");
    assert_eq!(reap(pid), Ok(125));
    let error = play.container.read("stderr");
    assert!(error.contains("events"), "{error}");
    play.is_deleted();
}

/// A process that is stopped says as little as one that a guest has found a way to hold up.
#[test]
fn a_process_that_is_stopped_is_told_of_and_taken_away() {
    let (play, pid) = Play::running("acks");
    kill_process(pid, Signal::STOP).expect("stop the container's process");
    play.is_told("running");
    let silent = "c: no answer from its machine within 10 s";
    let commands: [&[&str]; 4] = [
        &["kill", "c", "TERM"],
        &["pause", "c"],
        &["update", "--pids-limit", "9", "c"],
        &["events", "--stats", "c"],
    ];
    play.fail(&commands, silent);
    // What it has sent of its descriptors stays open in the socket as long as that is there: a pipe would have no end.
    let said = play.container.path("said");
    let mut exec = play.container.command(&["exec", "c", "true"]);
    exec.stdout(Stdio::null()).stderr(File::create(&said).expect("make a file"));
    assert_eq!(tests::status(&mut exec).code(), Some(255));
    assert!(play.container.read("said").contains(silent), "{}", play.container.read("said"));
    play.container.out(&["delete", "--force", "c"]);
    assert_eq!(reap(pid), Err(9));
    play.is_gone();

    let (play, pid) = Play::running("acks");
    kill_process(pid, Signal::STOP).expect("stop the container's process");
    play.container.out(&["kill", "c", "KILL"]);
    assert_eq!(reap(pid), Err(9));
    play.is_deleted();
}

/// What a pod says to whoever only connects, up to the connection's end.
fn told(mut socket: UnixStream) -> String {
    let mut text = Vec::new();
    socket.set_read_timeout(Some(BOUND)).expect("set a deadline");
    socket.read_to_end(&mut text).expect("read to the end");
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn a_process_without_further_descriptors_says_so_and_can_be_ended() {
    let (play, pid) = Play::running("acks");
    let number = pid.as_raw_nonzero().to_string();
    let open = std::fs::read_dir(format!("/proc/{number}/fd")).expect("list descriptors").count();
    check_output(Command::new("prlimit").args(["--pid", &number, &format!("--nofile={open}:{open}")]));
    let socket = play.container.path("state/c/sandbox.sock");
    // Those that find a place among the numbers below the limit are let go of in time, since they ask for nothing.
    let all: Vec<_> = (0..32).map(|_| UnixStream::connect(&socket).expect("connect")).collect();
    let answers: Vec<_> = all.into_iter().map(told).collect();
    assert!(answers.iter().any(|answer| answer.contains("no free file descriptors")), "{answers:?}");
    play.is_told("running");
    play.container.out(&["delete", "--force", "c"]);
    assert_eq!(reap(pid), Err(9));
    play.is_gone();
}
