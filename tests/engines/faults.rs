//! Faults: nothing is lost, nothing is left, and the engine reports the reason.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::case::{Case, case};
use crate::engine::Engine;
use crate::leftovers;

pub const CASES: &[Case] = &[
    case!(twenty_at_once),
    case!(death_of_what_stands_for_the_container).core(),
    case!(engine_restarted_with_live_restore),
    case!(engine_killed),
    case!(engine_killed_while_a_container_is_made),
    case!(shim_killed),
    case!(root_that_cannot_be_read_is_named),
    case!(mount_that_cannot_be_made_is_named),
    case!(stop_of_many_at_once),
    case!(full_disk_is_told),
];

/// Maximum time for the engine to start the runtime.
const DEADLINE: Duration = Duration::from_secs(120);
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
    // containerd, a child of dockerd, survives the SIGKILL, and the next dockerd finds it.
    engine.start_daemon(&[]);
    // Without live-restore the new daemon stops the containers that it finds.
    engine.ok(&["start", "orphan"]);
    engine.wait_log("orphan", "ready\nready");
}

fn engine_killed_while_a_container_is_made(engine: &Engine) {
    // When the runtime was started, and when it has a state of the container.
    let reached: [fn(&Engine) -> bool; 2] = [|engine| engine.runtime_runs(), |engine| engine.has_state()];
    for (moment, reached) in ["early", "late"].into_iter().zip(reached) {
        let creating = engine.start_command(&["run", "-d", "--name", moment, "box", "sh", "-c", WAITER]);
        let until = Instant::now() + DEADLINE;
        while !reached(engine) {
            assert!(Instant::now() < until, "the engine does not start the runtime");
            std::thread::yield_now();
        }
        engine.end_daemon(Signal::KILL);
        assert!(!creating.finish().status.success());
        engine.start_daemon(&[]);
        engine.ok(&["rm", "-f", moment]);
        engine.clean();
    }
    engine.start_container("after", &["box", "sh", "-c", WAITER], "ready");
}

fn full_disk_is_told(engine: &Engine) {
    engine.ok(&["create", "--name", "patient", "box", "sh", "-c", WAITER]);
    let filler = engine.dir().join("filler");
    let mut file = File::create(&filler).expect("create a file");
    let free = rustix::fs::statvfs(engine.dir()).expect("ask for free space");
    // First the space that any user can use, then the space that is reserved for root.
    let available = (free.f_bavail * free.f_frsize).saturating_sub(16 << 20);
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, available).expect("fill the disk");
    file.seek(SeekFrom::End(0)).expect("go to the end");
    let full = std::iter::repeat_with(|| file.write_all(&[0; 1 << 16])).find_map(Result::err);
    let done = engine.run(&["start", "patient"]);
    // The disk frees the blocks when the file is closed.
    drop(file);
    std::fs::remove_file(&filler).expect("remove the file");
    assert_eq!(full.expect("the disk is full").kind(), std::io::ErrorKind::StorageFull);
    assert!(!done.status.success(), "{done}");
    assert!(done.to_string().to_lowercase().contains("no space left on device"), "{done}");
    engine.ok(&["start", "patient"]);
    engine.wait_log("patient", "ready");
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
