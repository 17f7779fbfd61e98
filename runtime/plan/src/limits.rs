//! `linux.resources` to the VM's size and to what is written to the container's cgroup in the guest.
//!
//! The VM is as large as its container may become and somewhat larger; the cgroup keeps the container at its limit, so that
//! it is the one who pays for going over it, not the agent or the guest's kernel. CPUs and memory nodes are the
//! host's where the machine has a cgroup there, else the guest's.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use oci::bundle::{BundleError, Result, invalid, unsupported};
use oci::spec::resources::{Cpu, Memory, Resources, is_host_file, positive};

use crate::vm::{DEFAULT_MEMORY_MIB, GUEST_OVERHEAD_MIB, MAX_VCPUS, MIN_MEMORY_MIB};

/// The most times longer that a machine with little CPU time is waited for.
const PATIENCE_MAX: u32 = 20;
/// Controllers that the guest's kernel has.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];
/// Files of a cgroup that belong to no controller and limit something.
const LIMITS_OF_CGROUPS: [&str; 2] = ["cgroup.max.depth", "cgroup.max.descendants"];
/// The JSON path of a set of CPUs.
const CPUS: &str = "linux.resources.cpu.cpus";

/// Returns the guest's memory: what the container may use, and the guest's own needs on top.
pub fn memory_mib(resources: &Resources) -> u32 {
    let Some(limit) = positive(resources.memory.limit) else { return DEFAULT_MEMORY_MIB };
    let limit_mib = limit.div_ceil(1 << 20);
    let mib = limit_mib + limit_mib.div_ceil(64) + GUEST_OVERHEAD_MIB;
    u32::try_from(mib).unwrap_or(u32::MAX).max(MIN_MEMORY_MIB)
}

/// Whose CPUs and memory nodes a set names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sets {
    /// The guest's.
    Guest,
    /// The host's, whose cgroup keeps the machine there.
    Host,
}

/// Returns the number of CPUs that a quota can keep busy, and at least those that a set of the guest's names; of the host's
/// as many as the quota lets be busy, or else all.
pub fn vcpus(resources: &Resources, sets: Sets) -> Result<u8> {
    let cpu = &resources.cpu;
    let quota = positive(cpu.quota).map(|quota| quota.div_ceil(cpu.period_us()));
    let of_set = match sets {
        Sets::Guest => last_of(CPUS, &cpu.cpus)?.map_or(0, |last| u64::from(last) + 1),
        Sets::Host => {
            let most = u64::from(MAX_VCPUS);
            let all = ranges(CPUS, &cpu.cpus)?
                .iter()
                .map(|range| u64::from(range.end() - range.start()) + 1)
                .sum::<u64>();
            let busy = quota.unwrap_or(all.max(1));
            return Ok(busy.min(if all == 0 { most } else { all }).min(most) as u8);
        }
    };
    if of_set > MAX_VCPUS.into() {
        return Err(too_few_cpus(of_set - 1, MAX_VCPUS));
    }
    Ok(quota.unwrap_or(1).min(MAX_VCPUS.into()).max(of_set) as u8)
}

/// Returns the cgroup's files and their content, for a machine of `vcpus` CPUs.
pub fn files(resources: &Resources, vcpus: u8, sets: Sets) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    memory(&mut files, &resources.memory)?;
    cpu(&mut files, &resources.cpu);
    if sets == Sets::Guest {
        cpu_sets(&mut files, &resources.cpu, vcpus)?;
    }
    if let Some(limit) = positive(resources.pids.limit) {
        files.insert("pids.max".to_owned(), limit.to_string());
    }
    // What is named itself wins over what stands for it.
    let of_host = |name: &str| sets == Sets::Host && is_host_file(name);
    for (name, value) in resources.unified.iter().filter(|(name, _)| !of_host(name)) {
        files.insert(unified(name)?, value.clone());
    }
    Ok(files)
}

/// Returns what is written where a container that runs is to have other limits; what is not asked for stays. A container's
/// limit can not go above its machine, whose size was decided when it began.
pub fn changes(resources: &Resources, memory_mib: u32, sets: Sets) -> Result<BTreeMap<String, String>> {
    let limit = &resources.memory.limit;
    if positive(*limit).is_some_and(|limit| limit > u64::from(memory_mib) << 20) {
        let why =
            format!("{limit} bytes are more than the {memory_mib} MiB of the container's virtual machine");
        return Err(unsupported("linux.resources.memory.limit", why));
    }
    let cpu = &resources.cpu;
    if cpu.period != 0 && cpu.quota == 0 {
        return Err(invalid("linux.resources.cpu.period", "without a quota"));
    }
    let mut files = files(resources, MAX_VCPUS, sets)?;
    let lifted = [
        ("memory.max", *limit, "max".to_owned()),
        ("memory.low", resources.memory.reservation, "0".to_owned()),
        ("pids.max", resources.pids.limit, "max".to_owned()),
        ("cpu.max", cpu.quota, format!("max {}", cpu.period_us())),
    ];
    for (file, _, value) in lifted.into_iter().filter(|(_, asked, _)| *asked < 0) {
        files.insert(file.to_owned(), value);
    }
    Ok(files)
}

fn memory(files: &mut BTreeMap<String, String>, memory: &Memory) -> Result<()> {
    let limit = positive(memory.limit);
    if let Some(swap) = positive(memory.swap)
        && limit.is_none_or(|limit| limit > swap)
    {
        return Err(invalid("linux.resources.memory.swap", "less than the limit of memory alone"));
    }
    if let Some(limit) = limit {
        files.insert("memory.max".to_owned(), limit.to_string());
    }
    if let Some(reservation) = positive(memory.reservation) {
        files.insert("memory.low".to_owned(), reservation.to_string());
    }
    Ok(())
}

fn cpu(files: &mut BTreeMap<String, String>, cpu: &Cpu) {
    if cpu.shares != 0 {
        files.insert("cpu.weight".to_owned(), cpu.weight().to_string());
    }
    match positive(cpu.quota) {
        Some(quota) => files.insert("cpu.max".to_owned(), format!("{quota} {}", cpu.period_us())),
        None if cpu.period != 0 => files.insert("cpu.max".to_owned(), format!("max {}", cpu.period)),
        None => None,
    };
    if let Some(burst) = cpu.burst {
        files.insert("cpu.max.burst".to_owned(), burst.to_string());
    }
    if let Some(idle) = cpu.idle {
        files.insert("cpu.idle".to_owned(), idle.to_string());
    }
}

fn cpu_sets(files: &mut BTreeMap<String, String>, cpu: &Cpu, vcpus: u8) -> Result<()> {
    if let Some(last) = last_of(CPUS, &cpu.cpus)? {
        if last >= vcpus.into() {
            return Err(too_few_cpus(last.into(), vcpus));
        }
        files.insert("cpuset.cpus".to_owned(), cpu.cpus.clone());
    }
    if let Some(last) = last_of("linux.resources.cpu.mems", &cpu.mems)? {
        if last > 0 {
            return Err(unsupported(
                "linux.resources.cpu.mems",
                format!("the guest has no memory node {last}"),
            ));
        }
        files.insert("cpuset.mems".to_owned(), cpu.mems.clone());
    }
    Ok(())
}

/// How long an answer may take of a machine that is limited to this CPU time, where a whole CPU may take `patience`: a boot and
/// a start are the same work, whatever a machine is given to do it.
pub fn patience(cpu: &Cpu, patience: Duration) -> Duration {
    let quota = positive(cpu.quota).unwrap_or(u64::MAX).max(1);
    patience * (cpu.period_us().div_ceil(quota) as u32).clamp(1, PATIENCE_MAX)
}

/// Returns the largest number of a list such as `0-2,5`; none of an empty one.
fn last_of(path: &str, list: &str) -> Result<Option<u32>> {
    Ok(ranges(path, list)?.iter().map(|range| *range.end()).max())
}

/// Reads a list such as `0-2,5`.
fn ranges(path: &str, list: &str) -> Result<Vec<RangeInclusive<u32>>> {
    let wrong = || invalid(path, format!("{list:?} is no list of numbers"));
    let parts = list.split(',').filter(|_| !list.is_empty());
    parts
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first = first.trim().parse::<u32>().map_err(|_| wrong())?;
            let last = last.trim().parse::<u32>().map_err(|_| wrong())?;
            if first > last { Err(wrong()) } else { Ok(first..=last) }
        })
        .collect()
}

fn unified(name: &str) -> Result<String> {
    let path = format!("linux.resources.unified[{name:?}]");
    let Some((controller, _)) = name.split_once('.').filter(|_| !name.contains('/')) else {
        return Err(invalid(&path, "not the name of a cgroup's file"));
    };
    if CONTROLLERS.contains(&controller) || LIMITS_OF_CGROUPS.contains(&name) {
        return Ok(name.to_owned());
    }
    Err(unsupported(path, "the guest has nothing that it would limit"))
}

fn too_few_cpus(asked: u64, vcpus: u8) -> BundleError {
    unsupported(CPUS, format!("CPU {asked} of a machine of {vcpus}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn files_of(resources: Value) -> Result<Vec<(String, String)>> {
        let resources: Resources = serde_json::from_value(resources).unwrap();
        let vcpus = vcpus(&resources, Sets::Guest)?;
        files(&resources, vcpus, Sets::Guest).map(|files| files.into_iter().collect())
    }

    #[test]
    fn little_cpu_time_is_waited_for() {
        let second = Duration::from_secs(1);
        for (quota, period, expected) in
            [(0, 0, 1), (-1, 0, 1), (150_000, 0, 1), (5_000, 0, 20), (30_000, 0, 4), (1_000, 1_000_000, 20)]
        {
            let cpu = Cpu { quota, period, ..Cpu::default() };
            assert_eq!(patience(&cpu, second), second * expected, "{quota} {period}");
        }
    }

    #[test]
    fn limits_become_files() {
        for (resources, expected) in [
            (json!({}), &[][..]),
            (json!({"memory": {"limit": -1, "reservation": 0, "swap": -1, "swappiness": 5}}), &[]),
            (
                json!({"memory": {"limit": 4096, "reservation": 1024, "swap": 4096}}),
                &[("memory.low", "1024"), ("memory.max", "4096")],
            ),
            (json!({"pids": {"limit": 7}}), &[("pids.max", "7")]),
            (json!({"pids": {"limit": -1}}), &[]),
            (
                json!({"cpu": {"shares": 1024, "quota": 50000, "burst": 10, "idle": 1, "cpus": "0-1,3", "mems": "0"}}),
                &[
                    ("cpu.idle", "1"),
                    ("cpu.max", "50000 100000"),
                    ("cpu.max.burst", "10"),
                    ("cpu.weight", "100"),
                    ("cpuset.cpus", "0-1,3"),
                    ("cpuset.mems", "0"),
                ],
            ),
            (json!({"cpu": {"quota": -1, "period": 5000}}), &[("cpu.max", "max 5000")]),
            (
                json!({"pids": {"limit": 7}, "unified": {"pids.max": "9", "memory.oom.group": "1", "cgroup.max.depth": "3"}}),
                &[("cgroup.max.depth", "3"), ("memory.oom.group", "1"), ("pids.max", "9")],
            ),
        ] {
            let expected: Vec<_> =
                expected.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
            assert_eq!(files_of(resources.clone()).unwrap(), expected, "{resources}");
        }
    }

    #[test]
    fn what_the_guest_does_not_have_is_refused_by_name() {
        for (resources, message) in [
            (json!({"cpu": {"cpus": "0-32"}}), "cpu.cpus: not supported: CPU 32 of a machine of 32"),
            (json!({"cpu": {"mems": "0,1"}}), "cpu.mems: not supported: the guest has no memory node 1"),
            (json!({"cpu": {"cpus": "1-"}}), r#"cpu.cpus: "1-" is no list of numbers"#),
            (json!({"cpu": {"cpus": "3-1"}}), r#"cpu.cpus: "3-1" is no list of numbers"#),
            (json!({"memory": {"limit": 2, "swap": 1}}), "memory.swap: less than the limit of memory alone"),
            (json!({"memory": {"swap": 1}}), "memory.swap: less than the limit of memory alone"),
            (
                json!({"unified": {"hugetlb.2MB.max": "0"}}),
                r#"unified["hugetlb.2MB.max"]: not supported: the guest has nothing that it would limit"#,
            ),
            (
                json!({"unified": {"cgroup.kill": "1"}}),
                r#"unified["cgroup.kill"]: not supported: the guest has nothing that it would limit"#,
            ),
            (
                json!({"unified": {"memory/x.max": "1"}}),
                r#"unified["memory/x.max"]: not the name of a cgroup's file"#,
            ),
        ] {
            let error = files_of(resources.clone()).unwrap_err();
            assert_eq!(error.to_string(), format!("config.json linux.resources.{message}"), "{resources}");
        }
        let one = serde_json::from_value(json!({"cpu": {"cpus": "1"}})).unwrap();
        let message = "config.json linux.resources.cpu.cpus: not supported: CPU 1 of a machine of 1";
        assert_eq!(files(&one, 1, Sets::Guest).unwrap_err().to_string(), message);
    }

    #[test]
    fn a_set_of_the_host_s_gives_the_machine_its_size_and_is_kept_there() {
        for (resources, expected) in [
            (json!({"cpu": {"cpus": "3,8-9"}}), 3),
            (json!({"cpu": {"cpus": "3,8-9", "quota": 150_000}}), 2),
            (json!({"cpu": {"cpus": "7", "quota": 150_000}}), 1),
            (json!({"cpu": {"cpus": "0-4000000000"}}), MAX_VCPUS),
            (json!({"cpu": {"quota": 150_000, "mems": "1"}}), 2),
            (json!({}), 1),
        ] {
            let parsed: Resources = serde_json::from_value(resources.clone()).unwrap();
            assert_eq!(vcpus(&parsed, Sets::Host).unwrap(), expected, "{resources}");
            assert!(!files(&parsed, 1, Sets::Host).unwrap().contains_key("cpuset.cpus"));
        }
        let unified =
            json!({"unified": {"io.max": "8:0 rbps=1", "hugetlb.2MB.max": "0", "memory.high": "5"}});
        let files = files(&serde_json::from_value(unified).unwrap(), 1, Sets::Host).unwrap();
        assert_eq!(files.into_iter().collect::<Vec<_>>(), [("memory.high".to_owned(), "5".to_owned())]);
    }
}
