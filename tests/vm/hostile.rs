//! A guest whose agent means no good: the host ends with a reason, in time, and without having grown.

use std::io::Read;
use std::path::Path;
use std::process::Command;

use tests::{Bundle, Finished, Initrd, Running};

mod life;

/// Memory of the machine, MiB.
const GUEST_MIB: u64 = 64;
/// What `vmm` may have in private memory above it: its threads' stacks are most of that.
const OWN_MIB: u64 = 48;
/// Seconds that an agent may be silent here; long enough for a boot on a busy emulated host.
const PATIENCE: &str = "20";

/// A `vmm` whose guest plays a scenario of tests/guest/hostile.rs, and what it stands on.
struct Play {
    _bundle: Bundle,
    _initrd: Initrd,
    command: Command,
}

impl Play {
    fn new(scenario: &str) -> Play {
        let guest =
            std::env::var_os("VMM_TEST_GUEST").expect("VMM_TEST_GUEST names the program for the guest");
        let initrd = Initrd::new(Path::new(&guest), "guest");
        let cmdline = format!("rdinit=/guest -- hostile {scenario}");
        let bundle = Bundle::sh("true").flag("--memory").flag(&GUEST_MIB.to_string());
        let bundle = bundle.flag("--initrd").flag(initrd.path()).flag("--cmdline").flag(&cmdline);
        let run = bundle.command();
        // A host that grows meets the limit, and aborts where it should have given a reason.
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
fn noise_is_no_ready() {
    play("noise").code(125).stdout("").says(&["agent"]);
}

#[test]
fn noise_in_place_of_replies_is_told() {
    play("noise-after-ready").code(125).stdout("").says(&["the agent's control channel"]);
}

#[test]
fn a_length_of_four_gigabytes_is_refused() {
    play("length").code(125).says(&["control channel", "4294967295"]);
}

#[test]
fn a_reply_to_nothing_is_refused() {
    play("order").code(125).says(&["4711"]);
}

#[test]
fn half_a_frame_meets_the_deadline() {
    play("half-a-frame").code(125).says(&["no answer", PATIENCE]);
}

#[test]
fn a_byte_a_second_meets_the_deadline() {
    play("trickle-at-start").code(125).says(&["start the container", "no answer", PATIENCE]);
}

#[test]
fn silence_names_what_was_asked_for() {
    play("silent-at-pod").code(125).says(&["start the pod: no answer from the guest's agent", PATIENCE]);
}

#[test]
fn a_flood_of_events_ends_the_run() {
    play("flood").code(125).says(&["events"]);
}

#[test]
fn noise_on_the_stream_channel_ends_the_run() {
    play("stream-noise").code(125).says(&["the agent's stream channel"]);
}

#[test]
fn output_that_was_reported_and_never_comes_meets_the_deadline() {
    play("owed-output").code(125).says(&["the container's output", "no answer"]);
}

/// The reply may be lost in the reset; the pod has ended all the same.
#[test]
fn a_reset_without_a_reply_is_an_end_that_was_asked_for() {
    play("no-farewell").code(3).stderr("");
}

#[test]
fn output_without_end_or_credit_costs_no_memory() {
    let Play { command, _bundle, _initrd } = Play::new("endless-output");
    let mut run = Running::start(command);
    let mut stdout = run.take_stdout();
    let mut buffer = vec![0; 1 << 20];
    // With a reader it all goes through; without one the guest runs on into a host that takes no more than it may.
    for _ in 0..16 {
        stdout.read_exact(&mut buffer).unwrap();
        assert!(buffer.iter().all(|byte| *byte == b'x'));
    }
    // A signal that the agent leaves unanswered ends the run when its patience is over.
    run.signal("TERM");
    run.finish().code(125).says(&["no answer"]);
}
