//! Faults: nothing is lost, nothing is left, and the engine's own words say why.

use rustix::process::Signal;

use crate::case::{Case, case};
use crate::engine::Engine;
use crate::leftovers;

pub const CASES: &[Case] = &[
    case!(twenty_at_once),
    case!(death_of_what_stands_for_the_container).core(),
    case!(engine_restarted_with_live_restore),
    case!(engine_killed),
    case!(shim_killed),
    case!(root_that_cannot_be_read_is_named),
    case!(mount_that_cannot_be_made_is_named),
    case!(stop_of_many_at_once),
];

const WAITER: &str = "echo ready; exec sleep 1000";

fn twenty_at_once(engine: &Engine) {
    let start = |n: usize| {
        engine.start_command(&[
            "run",
            "--rm",
            "--net",
            "none",
            "box",
            "sh",
            "-c",
            &format!("echo {n}; exit {n}"),
        ])
    };
    let all: Vec<_> = (0..20).map(start).collect();
    for (n, one) in all.into_iter().enumerate() {
        one.finish().code(i32::try_from(n).expect("a small number")).stdout(&format!("{n}\n"));
    }
}

fn death_of_what_stands_for_the_container(engine: &Engine) {
    engine.start_container("victim", &["box", "sh", "-c", WAITER], "ready");
    let pid = engine.inspect("victim", ".State.Pid");
    tests::check_output(std::process::Command::new("/bin/busybox").args(["kill", "-9", &pid]));
    assert_eq!(engine.ok(&["wait", "victim"]), "137");
    engine.ok(&["start", "victim"]);
    engine.wait_log("victim", "ready\nready");
    assert_eq!(engine.inspect("victim", ".State.Running"), "true");
}

fn engine_restarted_with_live_restore(engine: &Engine) {
    engine.end_daemon(Signal::TERM);
    engine.start_daemon(&["--live-restore"]);
    engine.start_container(
        "survivor",
        &["box", "sh", "-c", "echo ready; read x </dev/null; exec sleep 1000"],
        "ready",
    );
    engine.end_daemon(Signal::TERM);
    engine.start_daemon(&["--live-restore"]);
    assert_eq!(engine.inspect("survivor", ".State.Running"), "true");
    assert_eq!(engine.ok(&["exec", "survivor", "echo", "still here"]), "still here");
    engine.ok(&["stop", "-t", "0", "survivor"]);
    assert_eq!(engine.inspect("survivor", ".State.ExitCode"), "137");
    engine.end_daemon(Signal::TERM);
    engine.start_daemon(&[]);
}

fn engine_killed(engine: &Engine) {
    engine.start_container("orphan", &["box", "sh", "-c", WAITER], "ready");
    engine.end_daemon(Signal::KILL);
    // containerd is a child of its own that outlives dockerd's death by SIGKILL; the next dockerd finds it.
    engine.start_daemon(&[]);
    // Without live-restore the new daemon ends what it finds.
    engine.ok(&["start", "orphan"]);
    engine.wait_log("orphan", "ready\nready");
}

fn shim_killed(engine: &Engine) {
    engine.start_container("orphan", &["box", "sh", "-c", WAITER], "ready");
    let id = engine.inspect("orphan", ".Id");
    let shims = tests::check_output(
        std::process::Command::new("pgrep").args(["-f", &format!("containerd-shim.*{id}")]),
    );
    tests::check_output(std::process::Command::new("/bin/busybox").arg("kill").arg("-9").args(shims.lines()));
    engine.ok(&["wait", "orphan"]);
    engine.ok(&["rm", "-f", "orphan"]);
    if engine.is_vm() {
        leftovers::assert_none(engine.dir());
    }
}

fn root_that_cannot_be_read_is_named(engine: &Engine) {
    let done = engine.run(&["run", "--rm", "-w", "/etc/passwd/x", "box", "true"]);
    assert!(!done.status.success(), "{done}");
    assert!(String::from_utf8_lossy(&done.stderr).contains("/etc/passwd"), "{done}");
}

fn mount_that_cannot_be_made_is_named(engine: &Engine) {
    let file = engine.dir().join("plain");
    std::fs::write(&file, "").expect("write a file");
    let bind = format!("{}:/etc", file.display());
    let done = engine.run(&["run", "--rm", "-v", &bind, "box", "true"]);
    assert!(!done.status.success(), "{done}");
    assert!(String::from_utf8_lossy(&done.stderr).to_lowercase().contains("not a directory"), "{done}");
}

fn stop_of_many_at_once(engine: &Engine) {
    for name in ["one", "two", "three", "four"].map(|n| format!("stop-{n}")) {
        engine.start_container(&name, &["--net", "none", "box", "sh", "-c", WAITER], "ready");
    }
    engine.ok(&["stop", "-t", "0", "stop-one", "stop-two", "stop-three", "stop-four"]);
    assert_eq!(engine.ok(&["ps", "-q"]), "");
}
