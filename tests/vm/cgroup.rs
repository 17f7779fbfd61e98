//! A machine's cgroup on the host.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tests::Bundle;

/// Where the host has its tree.
const TREE: &str = "/sys/fs/cgroup";
/// A container's limit, and what a machine of 64 MiB more 1 MiB for pages and 32 MiB for its kernel may take on the host.
const LIMIT: u64 = 64 << 20;
const MACHINE: u64 = (97 + 2 + 48) << 20;

/// A cgroup of a test's own, which goes with it.
struct Parent(String);

impl Parent {
    fn new(name: &str) -> Parent {
        Parent(format!("vmm-test-{name}-{}", std::process::id()))
    }

    fn path(&self) -> PathBuf {
        Path::new(TREE).join(&self.0)
    }

    fn bundle(&self, script: &str, resources: Value) -> Bundle {
        Bundle::sh(script).with(|c| {
            c["linux"]["cgroupsPath"] = json!(format!("/{}/c", self.0));
            c["linux"]["resources"] = resources;
        })
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path().join("c").join(file)).expect(file).trim().to_owned()
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        let _ = fs::remove_dir(self.path());
    }
}

#[test]
fn the_monitor_with_all_its_threads_is_in_the_cgroup_with_its_limits() {
    let parent = Parent::new("limits");
    let resources = json!({
        "memory": {"limit": LIMIT, "reservation": 1 << 20},
        "cpu": {"shares": 2048, "quota": 150_000, "cpus": "1"},
        "pids": {"limit": 100},
        "blockIO": {"weight": 500},
    });
    let script = "nproc; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max; read x";
    let bundle = parent.bundle(script, resources);
    let mut running = bundle.start();
    // One CPU of the host's is one of the machine's; what the container may use is kept in the guest.
    assert!(running.wait_for("\n100\n").starts_with(&format!("1\n{LIMIT}\n")));
    let tasks = fs::read_dir(format!("/proc/{}/task", running.pid())).unwrap();
    let cgroups: Vec<String> =
        tasks.map(|task| fs::read_to_string(task.unwrap().path().join("cgroup")).unwrap()).collect();
    assert!(cgroups.len() >= 4, "{cgroups:?}");
    assert!(cgroups.iter().all(|cgroup| cgroup.trim() == format!("0::/{}/c", parent.0)), "{cgroups:?}");
    assert_eq!(parent.read("memory.max"), MACHINE.to_string());
    assert_eq!(parent.read("memory.low"), (MACHINE - LIMIT + (1 << 20)).to_string());
    assert_eq!(parent.read("cpu.weight"), "174");
    assert_eq!(parent.read("cpu.max"), "150000 100000");
    assert_eq!(parent.read("cpuset.cpus"), "1");
    assert_eq!(parent.read("pids.max"), "128");
    let used: u64 = parent.read("memory.current").parse().unwrap();
    assert!((8 << 20..MACHINE).contains(&used), "{used}");
    running.finish().code(1);
    assert!(!parent.path().join("c").exists());
}

#[test]
fn a_container_that_uses_all_its_memory_leaves_its_monitor_alive() {
    let parent = Parent::new("memory");
    let script = "tail -n 1 /dev/zero; echo $? is the code; read x";
    let bundle = parent.bundle(script, json!({"memory": {"limit": LIMIT}}));
    let mut running = bundle.start();
    assert!(running.wait_for("code").contains("137"));
    assert!(parent.read("memory.events").contains("oom_kill 0"));
    let peak: u64 = parent.read("memory.peak").parse().unwrap();
    assert!(peak > LIMIT && peak <= MACHINE, "{peak}");
    running.finish().code(1);
}

#[test]
fn what_the_host_cannot_keep_is_named_and_leaves_nothing() {
    let parent = Parent::new("refused");
    let run = parent.bundle("true", json!({"unified": {"misc.wonder": "1"}})).run().code(125);
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(
        errors.contains("linux.resources.unified[\"misc.wonder\"]: not supported: the host has no"),
        "{run}"
    );
    assert!(!parent.path().join("c").exists());
}

#[test]
fn a_cgroup_with_processes_is_not_taken() {
    let parent = Parent::new("busy");
    let bundle = parent.bundle("echo here; read x", json!({}));
    let mut first = bundle.start();
    first.wait_for("here");
    let run = parent.bundle("true", json!({})).run().code(125);
    assert!(String::from_utf8_lossy(&run.stderr).contains("has processes already"), "{run}");
    first.finish().code(1);
}
