//! Ten thousand exec processes, one after the other, leak nothing on either side.

use std::fs;
use std::io::PipeWriter;
use std::os::fd::AsRawFd;
use std::process::Command;

use agent_proto::payload::ExecCommand;

use super::*;
use crate::streams::StreamSpec;

const EXECS: u64 = 10_000;
/// Number of processes after which buffers have reached their final size.
const WARM: u64 = 500;
/// Permitted growth of the allocator's memory after warm-up, in KiB.
const GROWTH_KIB: u64 = 512;
/// Environment variable: set in the process that runs only this test, in which no other test opens descriptors.
const ALONE: &str = "VMM_TEST_ALONE";

/// Returns the number of descriptors and children of this process, and its memory in KiB.
fn held() -> (usize, usize, u64) {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().count();
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let children = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap());
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    let memory = line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    (descriptors, children.map(|pids| pids.split_ascii_whitespace().count()).sum(), memory)
}

fn exec(pair: &mut Pair, number: u64, sink: &PipeWriter) {
    let (stdout, stderr) = (2 * number + 3, 2 * number + 4);
    for seq in [stdout, stderr] {
        pair.host
            .streams
            .handle
            .open(&StreamSpec { seq, source: None, sink: Some(sink.as_raw_fd()) })
            .unwrap();
    }
    let process = Process {
        id: format!("exec{number}"),
        stdio: stdout,
        stderr,
        args: vec!["/bin/true".into()],
        workdir: "/".into(),
        oci: Some(OciProcess::default()),
        ..Process::default()
    };
    let id = process.id.clone();
    let command = ExecCommand { container: "c1".into(), process };
    let reply = pair.host.link.send(Code::ExecCmd, "start a process", &command).unwrap();
    pair.host.link.flush().unwrap();
    pair.until(|pair| pair.host.link.reply(reply)).unwrap();
    let event = pair.until(|pair| pair.host.link.event());
    assert_eq!((event.process, event.exit.unwrap().code), (id, Some(0)));
    pair.host.streams.handle.close(stdout);
    pair.host.streams.handle.close(stderr);
}

#[test]
fn ten_thousand_processes_leave_nothing_behind() {
    if std::env::var_os(ALONE).is_none() {
        let name = format!("{}::ten_thousand_processes_leave_nothing_behind", module_path!());
        let name = name.split_once("::").unwrap().1;
        let this = std::env::current_exe().unwrap();
        let output = Command::new(this).args(["--exact", name]).env(ALONE, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let mut pair = Pair::running("exec cat");
    let (_reader, sink) = pipe().unwrap();
    for number in 0..WARM {
        exec(&mut pair, number, &sink);
    }
    let before = held();
    for number in WARM..EXECS {
        exec(&mut pair, number, &sink);
    }
    let after = held();
    assert_eq!((before.0, before.1), (after.0, after.1));
    assert!(after.2 < before.2 + GROWTH_KIB, "{before:?} became {after:?}");
}
