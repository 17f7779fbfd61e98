//! The confinement of a machine's process on the host: what its threads may still do while the guest runs.

mod attempts;
mod tracer;

use std::collections::BTreeMap;
use std::fs;

use serde_json::json;
use tests::Bundle;

use crate::lifecycle::Container;
use crate::network::Nets;
use crate::pods::Pod;

/// Capabilities by number (linux/capability.h).
const CHOWN: u64 = 1;
const DAC_OVERRIDE: u64 = 1 << 1;
const DAC_READ_SEARCH: u64 = 1 << 2;
const NET_ADMIN: u64 = 1 << 12;
const SYS_ADMIN: u64 = 1 << 21;
/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, MKNOD and SETFCAP.
const FILE_SERVER: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 27 | 1 << 31;

/// Returns the fields of a file in the form of /proc/PID/status.
fn fields(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim())).collect()
}

/// Checks every thread of a machine's process. `main` are the capabilities of its main thread. Returns the threads' names.
#[track_caller]
fn check(pid: u32, main: u64) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("list the threads");
    let mut names = Vec::new();
    for task in tasks {
        let task = task.expect("a thread").path();
        let text = fs::read_to_string(task.join("status")).expect("read a status");
        let status = fields(&text);
        let name = status["Name"];
        // Threads of the host's kernel, which run no code of the process.
        if name.starts_with("vhost-") || name.starts_with("kvm-") {
            continue;
        }
        let set = |field: &str| u64::from_str_radix(status[field], 16).expect("a set of capabilities");
        let wanted = match name {
            "fs0" => FILE_SERVER,
            "devices" | "resolver" => 0,
            vcpu if vcpu.starts_with("vcpu") => 0,
            _ => main,
        };
        assert_eq!((set("CapEff"), set("CapPrm")), (wanted, wanted), "{name}");
        assert_eq!((set("CapBnd"), set("CapInh"), set("CapAmb")), (0, 0, 0), "{name}");
        assert_eq!(status["NoNewPrivs"], "1", "{name}");
        assert_eq!((status["Seccomp"], status["Seccomp_filters"]), ("2", "1"), "{name}");
        // Opening a file never waits for a grace period of the host's kernel.
        assert!(
            status["FDSize"].parse::<u32>().is_ok_and(|size| size >= 1024),
            "{name}: {}",
            status["FDSize"]
        );
        if name != "vmm" {
            let root: Vec<_> = fs::read_dir(task.join("root")).expect("list a root").collect();
            assert!(root.is_empty(), "{root:?}");
        }
        names.push(name.to_owned());
    }
    names.sort();
    names
}

#[test]
fn every_thread_of_a_container_is_confined() {
    let bundle = Bundle::sh("echo ready; exec sleep 100000").flag("--cpus").flag("2");
    let mut running = bundle.start();
    running.wait_for("ready");
    assert_eq!(check(running.pid(), DAC_OVERRIDE), ["devices", "fs0", "vcpu0", "vcpu1", "vmm"]);
    running.stop();
}

#[test]
fn every_thread_of_an_engine_s_container_is_confined_from_create_to_the_end() {
    let container = Container::new(Bundle::sh("exec sleep 100000"));
    let pid = container.create().as_raw_nonzero().get() as u32;
    check(pid, DAC_OVERRIDE | NET_ADMIN);
    container.out(&["start", "c"]);
    container.out(&["exec", "c", "true"]);
    container.out(&["pause", "c"]);
    container.out(&["resume", "c"]);
    container.out(&["update", "--pids-limit", "50", "c"]);
    assert_eq!(check(pid, DAC_OVERRIDE | NET_ADMIN), ["devices", "fs0", "vcpu0", "vmm"]);
}

#[test]
fn every_thread_of_a_pod_is_confined() {
    let pod = Pod::new();
    let container = pod.container("a", "exec sleep 100000", json!({}));
    pod.detach(json!({"containers": [container]}));
    let pid = pod.pid() as u32;
    pod.exec_out("a", "true");
    check(pid, CHOWN | DAC_OVERRIDE | DAC_READ_SEARCH | SYS_ADMIN);
}

#[test]
fn a_container_that_follows_a_network_keeps_the_right_to_change_it() {
    let nets = Nets::joined();
    let mut running = nets.bundle("echo ready; exec sleep 100000").start();
    running.wait_for("ready");
    check(running.pid(), DAC_OVERRIDE | NET_ADMIN);
    running.stop();
}
