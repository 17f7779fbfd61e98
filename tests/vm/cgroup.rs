//! The cgroup of a machine on the host, and limits of its containers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tests::{Bundle, Running};

use crate::lifecycle::Container;
use crate::pods::Pod;

/// Mount point of the host's cgroups.
const TREE: &str = "/sys/fs/cgroup";
/// A container's memory limit.
const LIMIT: u64 = 64 << 20;
/// The memory limit of its machine on the host: guest memory (the container's limit, 1 MiB for page tables and 32 MiB
/// for the kernel), 2 MiB for the host's page tables, and 48 MiB for the monitor.
const MACHINE: u64 = (97 + 2 + 48) << 20;

/// A parent cgroup that no other test uses. It is removed on drop.
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
fn all_threads_of_the_monitor_are_in_the_limited_cgroup() {
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
    // The machine has as many vCPUs as the cgroup has CPUs. The guest enforces the container's limits.
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
fn a_limit_above_the_cgroup_sizes_the_machine() {
    let parent = Parent::new("above");
    fs::create_dir(parent.path()).unwrap();
    fs::write(parent.path().join("memory.max"), (512 << 20).to_string()).unwrap();
    let run = parent.bundle("awk '/MemTotal/ {print $2}' /proc/meminfo", json!({})).run().code(0);
    let total: u64 = run.text().parse().unwrap();
    assert!((400 << 10..(512 - 48) << 10).contains(&total), "{run}");
}

#[test]
fn a_container_over_its_memory_limit_does_not_kill_its_monitor() {
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

/// The boot alone takes longer than the agent may be silent.
#[test]
fn an_agent_has_more_time_on_a_host_with_little_cpu_time_for_its_machine() {
    let parent = Parent::new("busy-host");
    fs::create_dir(parent.path()).unwrap();
    fs::write(parent.path().join("cpu.max"), "8000 100000").unwrap();
    let bundle = Bundle::sh("echo hello");
    let run = bundle.command();
    let mut command = Command::new("sh");
    command.args(["-c", "echo $$ > $0/cgroup.procs && exec \"$@\""]).arg(parent.path());
    command.arg(run.get_program()).args(run.get_args()).env("VMM_AGENT_TIMEOUT", "8");
    assert_eq!(Running::start(command).finish().code(0).text(), "hello");
}

#[test]
fn a_limit_that_the_host_lacks_is_refused_and_leaves_nothing() {
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
fn a_cgroup_with_processes_is_refused() {
    let parent = Parent::new("busy");
    let bundle = parent.bundle("echo here; read x", json!({}));
    let mut first = bundle.start();
    first.wait_for("here");
    let run = parent.bundle("true", json!({})).run().code(125);
    assert!(String::from_utf8_lossy(&run.stderr).contains("already has processes"), "{run}");
    first.finish().code(1);
}

/// A pod in the background whose only container, `p`, sleeps.
fn sleeping_pod() -> Pod {
    let pod = Pod::new();
    let container = pod.container("p", "exec sleep 1000", json!({}));
    pod.detach(json!({"resource": {"memory": 128}, "containers": [container]}));
    pod
}

#[test]
fn a_new_period_keeps_the_quota() {
    let parent = Parent::new("period");
    let container = Container::new(parent.bundle("exec sleep 1000", json!({"cpu": {"quota": 70000}})));
    container.create();
    container.out(&["start", "c"]);
    for (words, host) in [
        (["--cpu-period", "50000"], "70000 50000"),
        (["--cpu-quota", "-1"], "max 100000"),
        (["--cpu-period", "20000"], "max 20000"),
    ] {
        container.out(&["update", words[0], words[1], "c"]);
        assert_eq!(parent.read("cpu.max"), host);
        assert_eq!(container.out(&["exec", "c", "cat", "/sys/fs/cgroup/cpu.max"]).trim(), host);
    }
    container.out(&["delete", "--force", "c"]);
}

#[test]
fn limits_of_a_running_container_are_updated_and_its_usage_is_reported() {
    let pod = sleeping_pod();
    pod.state.out(&["update", "--pids-limit", "9", "--memory", "32m", "--cpu-quota", "70000", "p"]);
    let files = "cd /sys/fs/cgroup; cat pids.max memory.max cpu.max";
    assert_eq!(pod.exec_out("p", files), "9\n33554432\n70000 100000\n");
    pod.state.out(&["update", "--pids-limit", "-1", "p"]);
    assert_eq!(pod.exec_out("p", files), "max\n33554432\n70000 100000\n");
    let error = pod.state.error(125, &["update", "--memory", "1g", "p"]);
    assert!(error.contains("are more than the 128 MiB of the container's virtual machine"), "{error}");

    let report: Value = serde_json::from_str(&pod.state.out(&["events", "--stats", "p"])).unwrap();
    assert_eq!((&report["type"], &report["id"]), (&json!("stats"), &json!("p")));
    let data = &report["data"];
    assert_eq!(data["memory"]["usage"]["limit"], 32 << 20);
    let used = data["memory"]["usage"]["usage"].as_u64().unwrap();
    assert!((4096..32 << 20).contains(&used), "{report}");
    assert!(data["cpu"]["usage"]["total"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(data["pids"]["current"], 1);
}

#[test]
fn an_out_of_memory_kill_is_reported_as_an_event() {
    let pod = sleeping_pod();
    pod.state.out(&["update", "--memory", "16m", "p"]);
    let mut events = Running::start(pod.state.command(&["events", "--interval", "100ms", "p"]));
    events.wait_for("stats");
    assert_eq!(pod.exec_out("p", "tail -n 1 /dev/zero; echo $?"), "137\n");
    events.wait_for(r#"{"id":"p","type":"oom"}"#);
    pod.state.out(&["pod", "rm", "--force", "p"]);
    events.finish().code(0).stderr("");
}
