//! The memory and CPUs of the host for a machine: the memory of the host, or the lowest limit of the cgroups around the
//! machine, and the CPUs on which this process may run.

use std::fs;
use std::path::Path;

use rustix::thread::CpuSet;

use super::hierarchies::Hierarchies;
use super::limits::machine_mib;
use crate::sys;

/// Returns the guest memory in MiB of the largest machine that fits into the host, and into the limits of the cgroup of
/// this process and those above it. `None` if the host refuses to reserve memory that it may not have.
pub fn memory_mib() -> Option<u64> {
    // proc_sys_vm(5): with mode 2 address space counts, whether it is touched or not.
    let overcommit = fs::read("/proc/sys/vm/overcommit_memory").unwrap_or_default();
    if overcommit.starts_with(b"2") {
        return None;
    }
    let limit = Hierarchies::find().ok().and_then(|trees| lowest_limit(&trees));
    let host = sys::total_memory();
    Some(machine_mib(limit.map_or(host, |limit| limit.min(host))))
}

/// Returns the number of CPUs on which this thread may run, which the CPU set of its cgroup limits.
pub fn cpus() -> usize {
    // It fails only if the host has more CPUs than the set.
    rustix::thread::sched_getaffinity(None).map_or(CpuSet::MAX_CPU, |set| set.count() as usize)
}

/// Returns the lowest memory limit in bytes of the own cgroup of each tree and those above it.
fn lowest_limit(trees: &Hierarchies) -> Option<u64> {
    trees
        .all()
        .filter_map(|tree| {
            let file = if tree.controllers.is_empty() { "memory.max" } else { "memory.limit_in_bytes" };
            tree.own.ancestors().filter_map(|path| limit_in(&tree.mount.join(path).join(file))).min()
        })
        .min()
}

/// Reads a limit; `None` for `max`, and for the root cgroup, which has no such file.
fn limit_in(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::hierarchies::Hierarchy;
    use super::*;

    #[test]
    fn lowest_limit_of_the_own_cgroup_and_those_above_counts() {
        let folder = tempfile::tempdir().unwrap();
        let limit = |path: &str, text: &str| {
            fs::create_dir_all(folder.path().join(path)).unwrap();
            let legacy = path.starts_with("one");
            let file = if legacy { "memory.limit_in_bytes" } else { "memory.max" };
            fs::write(folder.path().join(path).join(file), text).unwrap();
        };
        let tree = |mount: &str, controllers: &[&str], own: &str| Hierarchy {
            mount: folder.path().join(mount),
            controllers: controllers.iter().map(|&name| name.to_owned()).collect(),
            own: own.into(),
        };
        let two = |own: &str| Some(tree("two", &[], own));
        let one = vec![tree("one", &["cpu"], "a"), tree("one", &["memory"], "a")];
        let lowest = |unified, legacy| lowest_limit(&Hierarchies { unified, legacy });

        assert_eq!(lowest(two("a/b"), vec![]), None);
        limit("two/a/b", "max\n");
        assert_eq!(lowest(two("a/b"), vec![]), None);
        limit("two/a", "3000000\n");
        limit("two/a/b", "4000000\n");
        limit("two/a/b/c", "100\n");
        limit("two/other", "200\n");
        assert_eq!(lowest(two("a/b"), vec![]), Some(3_000_000));
        assert_eq!(lowest(two(""), vec![]), None);
        limit("two", "1000\n");
        assert_eq!(lowest(two("a/b"), vec![]), Some(1000));
        limit("one/a", "9223372036854771712\n");
        assert_eq!(lowest(None, one.clone()), Some(9_223_372_036_854_771_712));
        assert_eq!(lowest(two("a/b"), one), Some(1000));
    }
}
