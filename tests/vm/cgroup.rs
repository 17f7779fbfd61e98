//! A machine's cgroup on the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{Bundle, Running, check_output, program};

use crate::lifecycle::Container;

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
    assert!(String::from_utf8_lossy(&run.stderr).contains("already has processes"), "{run}");
    first.finish().code(1);
}

/// A pod of one container in the background.
struct One {
    dir: TempDir,
    _image: Bundle,
}

impl One {
    fn start() -> One {
        let (one, image) = (TempDir::new().unwrap(), Bundle::new(&["true"]));
        let container = json!({
            "name": "c", "image": image.rootfs(), "command": ["sleep", "1000"],
            "envs": [{"env": "PATH", "value": "/bin"}]
        });
        let pod = json!({"id": "c", "resource": {"memory": 128}, "containers": [container]});
        fs::write(one.path().join("pod.json"), pod.to_string()).unwrap();
        let one = One { dir: one, _image: image };
        let file = one.dir.path().join("pod.json");
        check_output(one.command(&["pod"]).args(["run", "-d"]).arg(file));
        one
    }

    /// `vmm` with these words and then the state's directory.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(words).arg("--root").arg(self.dir.path().join("state"));
        command
    }

    fn update(&self, words: &[&str]) -> Output {
        tests::output(self.command(&["update"]).args(words).arg("c"))
    }

    fn exec(&self, script: &str) -> String {
        check_output(self.command(&["pod"]).args(["exec", "c", "c", "sh", "-c", script]))
    }
}

impl Drop for One {
    fn drop(&mut self) {
        tests::output(self.command(&["pod"]).args(["rm", "--force", "c"]));
    }
}

#[test]
fn a_period_alone_leaves_the_quota() {
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
fn a_container_that_runs_gets_other_limits_and_tells_what_it_uses() {
    let one = One::start();
    let updated = one.update(&["--pids-limit", "9", "--memory", "32m", "--cpu-quota", "70000"]);
    assert!(updated.status.success(), "{updated:?}");
    let files = "cd /sys/fs/cgroup; cat pids.max memory.max cpu.max";
    assert_eq!(one.exec(files), "9\n33554432\n70000 100000\n");
    assert!(one.update(&["--pids-limit", "-1"]).status.success());
    assert_eq!(one.exec(files), "max\n33554432\n70000 100000\n");
    let refused = one.update(&["--memory", "1g"]);
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("are more than the 128 MiB of the container's virtual machine"), "{text}");

    let report: Value =
        serde_json::from_str(&check_output(one.command(&["events"]).args(["--stats", "c"]))).unwrap();
    assert_eq!((&report["type"], &report["id"]), (&json!("stats"), &json!("c")));
    let data = &report["data"];
    assert_eq!(data["memory"]["usage"]["limit"], 32 << 20);
    let used = data["memory"]["usage"]["usage"].as_u64().unwrap();
    assert!((4096..32 << 20).contains(&used), "{report}");
    assert!(data["cpu"]["usage"]["total"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(data["pids"]["current"], 1);
}

#[test]
fn a_container_whose_memory_was_short_is_told_of() {
    let one = One::start();
    assert!(one.update(&["--memory", "16m"]).status.success());
    let mut command = one.command(&["events"]);
    command.args(["--interval", "100ms", "c"]);
    let mut events = Running::start(command);
    events.wait_for("stats");
    assert_eq!(one.exec("tail -n 1 /dev/zero; echo $?"), "137\n");
    events.wait_for(r#"{"id":"c","type":"oom"}"#);
    check_output(one.command(&["pod"]).args(["rm", "--force", "c"]));
    events.finish().code(0).stderr("");
}
