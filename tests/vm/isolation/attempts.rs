//! The attempts of `tests/guest/attempts.rs`, from a container with Docker's default capabilities and from one with all.

use serde_json::{Value, json};
use tests::{Bundle, check_output, program};

use super::privileged;

/// What becomes of the attempts on the agent and the kernel in every container, whatever its capabilities.
const ALWAYS: [(&str, &str); 20] = [
    ("agent by ptrace", "EPERM"),
    ("memory of process 1", "EPERM"),
    ("/proc/1/mem", "EACCES"),
    ("/proc/1/environ", "EACCES"),
    ("/proc/1/root/etc", "EACCES"),
    ("/proc/1/cwd/etc", "EACCES"),
    ("/proc/1/fd/3", "ENOENT"),
    ("/proc/1/ns/mnt", "EACCES"),
    ("/proc/1/exe", "EACCES"),
    ("/proc/kcore", "ENOENT"),
    ("/dev/mem", "ENOENT"),
    ("/dev/kmsg", "ENOENT"),
    ("/dev/vport0p1", "ENOENT"),
    ("/dev/hvc0", "ENOENT"),
    ("/sys/kernel/debug/sched", "ENOENT"),
    ("/proc/sys/kernel/modprobe", "ENOENT"),
    ("/sys/kernel/uevent_helper", "ENOENT"),
    ("load a module", "ENOSYS"),
    ("remove a module", "ENOSYS"),
    ("load another kernel", "ENOSYS"),
];

/// Attempts that need more than Docker's default capabilities, which change only the container's own machine: what
/// becomes of them with the default, and with all.
const PRIVILEGED: [(&str, &str, &str); 18] = [
    ("/proc/kmsg", "EPERM", "done"),
    ("/proc/sysrq-trigger", "EROFS", "done"),
    ("/proc/sys/kernel/core_pattern", "EROFS", "done"),
    ("/proc/sys/vm/drop_caches", "EROFS", "done"),
    ("/sys/fs/cgroup/cgroup.procs", "EROFS", "EROFS"),
    ("/sys/fs/cgroup/pids.max", "EROFS", "EROFS"),
    ("mount a tmpfs", "EPERM", "done"),
    ("new mount namespace", "EPERM", "done"),
    ("new cgroup namespace", "EPERM", "done"),
    ("I/O privilege level", "EPERM", "done"),
    ("performance counter of the kernel", "EACCES", "ENOENT"),
    ("fault handler for the kernel", "EPERM", "done"),
    ("BPF program", "ENOSYS", "done"),
    ("kernel log", "EPERM", "done"),
    ("clear the kernel log", "EPERM", "done"),
    ("set the clock", "EPERM", "EINVAL"),
    ("swap", "ENOSYS", "error 21"),
    // The file server's nodes have no handles that can be opened.
    ("root of the share by handle", "EPERM", "ESTALE"),
];

/// Makes all attempts in the pod's PID namespace, whose process 1 is the pod's, and checks them. `wanted` selects the
/// outcome of those that depend on capabilities.
#[track_caller]
fn check(bundle: Bundle, wanted: impl Fn(&(&str, &'static str, &'static str)) -> &'static str) {
    bundle.copy_guest_program();
    let bundle = bundle.share("pid").with(|c| c["process"]["args"] = json!(["/bin/guest", "attempts"]));
    let run = bundle.run().code(0);
    let text = run.text();
    let depending = PRIVILEGED.iter().map(|row| (row.0, wanted(row)));
    for (name, outcome) in ALWAYS.into_iter().chain(depending) {
        let got = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        assert_eq!(got, Some(outcome), "{name}: {run}");
    }
}

#[test]
fn a_container_with_the_default_capabilities_reaches_neither_agent_nor_kernel() {
    check(Bundle::sh(""), |row| row.1);
}

#[test]
fn a_container_with_all_capabilities_reaches_no_agent() {
    let mut features = std::process::Command::new(program());
    let features: Value = serde_json::from_str(&check_output(features.arg("features"))).unwrap();
    let bundle = privileged("").with(|c| {
        for set in ["bounding", "effective", "permitted"] {
            c["process"]["capabilities"][set] = features["linux"]["capabilities"].clone();
        }
    });
    check(bundle, |row| row.2);
}
