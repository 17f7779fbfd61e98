//! Hostile agents: `vmm run` ends in time, with a reason, and within its memory limit.

use std::io::Read;
use std::process::Command;

use tests::{Bundle, Finished, Initrd, Running, guest_program};

mod life;

/// Guest memory in MiB.
const GUEST_MIB: u64 = 64;
/// Limit of `vmm`'s private memory above guest memory, in MiB: mostly stacks of its threads.
const OWN_MIB: u64 = 48;
/// Time limit for the agent's answers in seconds. A busy emulated host boots a guest in less.
const PATIENCE: &str = "20";

/// A `vmm run` whose guest plays a scenario of tests/guest/hostile.rs, and the files that it needs.
struct Play {
    _bundle: Bundle,
    _initrd: Initrd,
    command: Command,
}

impl Play {
    fn new(scenario: &str) -> Play {
        let initrd = Initrd::new(&guest_program(), "guest");
        let cmdline = format!("rdinit=/guest -- hostile {scenario}");
        let bundle = Bundle::sh("true").flag("--memory").flag(&GUEST_MIB.to_string());
        let bundle = bundle.flag("--initrd").flag(initrd.path()).flag("--cmdline").flag(&cmdline);
        let run = bundle.command();
        // A `vmm` that needs more memory aborts instead of reporting a reason.
        let mut command = Command::new("prlimit");
        command.arg(format!("--data={}", (GUEST_MIB + OWN_MIB) << 20)).arg("--core=0");
        command.arg(run.get_program()).args(run.get_args()).env("VMM_AGENT_TIMEOUT", PATIENCE);
        Play { _bundle: bundle, _initrd: initrd, command }
    }
}

fn play(scenario: &str) -> Finished {
    let Play { command, _bundle, _initrd } = Play::new(scenario);
    Running::start(command).finish()
}

#[test]
fn random_bytes_instead_of_ready_end_the_run() {
    play("noise").code(125).stdout("").says(&["agent"]);
}

#[test]
fn random_bytes_instead_of_replies_end_the_run() {
    play("noise-after-ready").code(125).stdout("").says(&["the agent's control channel"]);
}

#[test]
fn a_frame_of_four_gigabytes_ends_the_run() {
    play("length").code(125).says(&["control channel", "4294967295"]);
}

#[test]
fn a_reply_without_a_command_ends_the_run() {
    play("order").code(125).says(&["4711"]);
}

#[test]
fn half_a_frame_ends_the_run_at_the_deadline() {
    play("half-a-frame").code(125).says(&["no answer", PATIENCE]);
}

#[test]
fn one_byte_per_second_ends_the_run_at_the_deadline() {
    play("trickle-at-start").code(125).says(&["start the container", "no answer", PATIENCE]);
}

#[test]
fn a_silent_agent_is_reported_with_the_command_it_did_not_answer() {
    play("silent-at-pod").code(125).says(&["start the pod: no answer from the guest's agent", PATIENCE]);
}

#[test]
fn a_flood_of_events_ends_the_run() {
    play("flood").code(125).says(&["events"]);
}

#[test]
fn random_bytes_on_the_stream_channel_end_the_run() {
    play("stream-noise").code(125).says(&["the agent's stream channel"]);
}

#[test]
fn reported_output_that_never_arrives_ends_the_run_at_the_deadline() {
    play("owed-output").code(125).says(&["the container's output", "no answer"]);
}

/// The reset may lose the reply, and the pod has ended.
#[test]
fn a_reset_instead_of_a_reply_to_destroypod_is_a_regular_end() {
    play("no-farewell").code(3).stderr("");
}

#[test]
fn endless_output_beyond_the_credit_uses_no_memory() {
    let Play { command, _bundle, _initrd } = Play::new("endless-output");
    let mut run = Running::start(command);
    let mut stdout = run.take_stdout();
    let mut buffer = vec![0; 1 << 20];
    // All output arrives while it is read. Then the guest continues to write, and the host must not buffer it.
    for _ in 0..16 {
        stdout.read_exact(&mut buffer).unwrap();
        assert!(buffer.iter().all(|byte| *byte == b'x'));
    }
    // The agent does not answer the signal, which ends the run at the deadline.
    run.signal("TERM");
    run.finish().code(125).says(&["no answer"]);
}
