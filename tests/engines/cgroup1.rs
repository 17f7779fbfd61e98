//! Docker on a host with cgroups of version 1, which have a tree per controller.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::case::{Case, case};
use crate::engine::Engine;
use crate::life::{pause_holds_it, stats_are_of_the_container};
use crate::limits::memory_beyond_the_limit_kills;

pub const CASES: &[Case] = &[
    case!(a_container_is_in_every_tree_with_its_limits).core(),
    case!(update_changes_limits_up_and_down),
    case!(pause_holds_it),
    case!(stats_are_of_the_container),
    case!(memory_beyond_the_limit_kills),
];

/// Mount point of the trees.
const TREES: &str = "/sys/fs/cgroup";

/// Whether the host has cgroups of version 1.
pub fn is_host() -> bool {
    Path::new(TREES).join("memory").is_dir()
}

/// The cgroup of a container's process in each tree, by the tree's controllers.
fn cgroups(engine: &Engine, name: &str) -> BTreeMap<String, PathBuf> {
    let path = format!("/proc/{}/cgroup", engine.inspect(name, ".State.Pid"));
    let text = fs::read_to_string(path).expect("read its cgroups");
    let lines = text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    // The tree of version 2 has no controllers, so its name is empty.
    let lines = lines.filter(|(tree, _)| !tree.is_empty());
    lines
        .map(|(tree, path)| (tree.to_owned(), Path::new(TREES).join(tree).join(path.trim_start_matches('/'))))
        .collect()
}

fn number(cgroups: &BTreeMap<String, PathBuf>, tree: &str, file: &str) -> i64 {
    let path = cgroups[tree].join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim().parse().unwrap_or_else(|error| panic!("{}: {error}: {text}", path.display()))
}

fn a_container_is_in_every_tree_with_its_limits(engine: &Engine) {
    assert_eq!(engine.ok(&["info", "--format", "{{.CgroupDriver}} {{.CgroupVersion}}"]), "cgroupfs 1");
    let limits =
        ["-m", "64m", "--cpus", "1.5", "--pids-limit", "50", "--cpuset-cpus", "1", "--cpu-shares", "300"];
    let program = ["box", "sh", "-c", "echo up; exec sleep 1000"];
    engine.start_container("inner", &[&limits[..], &program].concat(), "up");
    let cgroups = cgroups(engine, "inner");
    let trees = fs::read_dir(TREES).expect("list the trees").filter_map(Result::ok);
    let trees = trees.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).count();
    assert_eq!(cgroups.len(), trees, "{cgroups:?}");
    let id = engine.inspect("inner", ".Id");
    for (tree, path) in &cgroups {
        assert_eq!(path, &Path::new(TREES).join(tree).join("docker").join(&id));
    }
    // The limit of a machine includes an allowance for its monitor.
    let memory = number(&cgroups, "memory", "memory.limit_in_bytes");
    assert!((64 << 20..512 << 20).contains(&memory), "{memory}");
    assert!((50..500).contains(&number(&cgroups, "pids", "pids.max")));
    assert_eq!(number(&cgroups, "cpuset", "cpuset.cpus"), 1);
    assert_eq!(number(&cgroups, "cpu,cpuacct", "cpu.shares"), 300);
    let (quota, period) = ("cpu.cfs_quota_us", "cpu.cfs_period_us");
    let (quota, period) = (number(&cgroups, "cpu,cpuacct", quota), number(&cgroups, "cpu,cpuacct", period));
    assert_eq!(quota * 2, period * 3);
    engine.ok(&["exec", "inner", "true"]);
    engine.ok(&["rm", "-f", "inner"]);
    for path in cgroups.values() {
        assert!(!path.exists(), "{} is left", path.display());
    }
}

fn update_changes_limits_up_and_down(engine: &Engine) {
    let words = ["-m", "64m", "--memory-swap", "64m", "box", "sh", "-c", "echo up; exec sleep 1000"];
    engine.start_container("inner", &words, "up");
    let cgroups = cgroups(engine, "inner");
    // In version 1 the memory limit must never exceed the limit of memory and swap, not even between two writes.
    for (size, bytes) in [("48m", 48 << 20), ("60m", 60 << 20)] {
        engine.ok(&["update", "--memory", size, "--memory-swap", size, "inner"]);
        // The host limits the machine; the guest, with cgroups of version 2, limits the container. On such a host
        // Docker creates no cgroup namespaces.
        let inside = "cat /sys/fs/cgroup$(cut -d : -f 3 /proc/self/cgroup)/memory.max";
        let limit = match engine.is_vm() {
            true => engine.ok(&["exec", "inner", "sh", "-c", inside]).parse().expect("a number"),
            false => number(&cgroups, "memory", "memory.limit_in_bytes"),
        };
        assert_eq!(limit, bytes);
    }
    engine.ok(&["update", "--cpus", "0.25", "inner"]);
    let quota = number(&cgroups, "cpu,cpuacct", "cpu.cfs_quota_us");
    assert_eq!(quota * 4, number(&cgroups, "cpu,cpuacct", "cpu.cfs_period_us"));
}
