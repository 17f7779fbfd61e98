//! Translates `linux.resources` to the size of the VM and to files of the container's cgroup in the guest.
//!
//! The VM has somewhat more memory than its container may use. The cgroup keeps the container at its limit, so that the
//! OOM killer chooses a process of the container, not the agent. CPU and memory node sets refer to the host if the
//! machine has a cgroup there, otherwise to the guest.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use oci::error::{BundleError, Result, invalid, unsupported};
use oci::spec::resources::{Cpu, Memory, Resources, is_host_file, positive};

/// Memory of a machine without a limit if that of the host is unknown, in MiB.
pub const DEFAULT_MEMORY_MIB: u32 = 256;
/// Maximum memory in MiB of a machine without a configured size that boots a kernel of the user: such a kernel sets up the
/// page structures of all memory during the boot.
pub const UNSET_MEMORY_MIB: u32 = 1024;
/// Maximum number of vCPUs of a machine without a configured number: each additional vCPU makes the boot slower.
pub const UNSET_VCPUS: u8 = 8;
/// Maximum memory of a machine, in MiB.
pub const MAX_MEMORY_MIB: u32 = 1 << 20;
/// Minimum memory in which the guest's kernel, the agent and a container start, in MiB.
pub const MIN_MEMORY_MIB: u32 = 64;
/// Memory for the guest's kernel and the agent above a container's limit, in MiB. Another 1/64 of the limit is added
/// for the kernel's page structures.
pub const GUEST_OVERHEAD_MIB: u64 = 32;
/// Maximum number of vCPUs that a CPU quota or CPU set results in.
pub const MAX_VCPUS: u8 = 32;
/// Maximum factor by which timeouts are extended for a machine with little CPU time.
const PATIENCE_MAX: u32 = 20;
/// Controllers of the guest's kernel.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];
/// Limits in files of a cgroup that belong to no controller.
const LIMITS_OF_CGROUPS: [&str; 2] = ["cgroup.max.depth", "cgroup.max.descendants"];
/// JSON path of the CPU set.
const CPUS: &str = "linux.resources.cpu.cpus";

/// Returns the guest's memory in MiB: the container's limit plus the overhead of the guest. `None` without a limit.
pub fn memory_mib(resources: &Resources) -> Option<u32> {
    let limit_mib = positive(resources.memory.limit)?.div_ceil(1 << 20);
    let mib = limit_mib + limit_mib.div_ceil(64) + GUEST_OVERHEAD_MIB;
    Some(u32::try_from(mib).unwrap_or(u32::MAX).max(MIN_MEMORY_MIB))
}

/// The machine whose CPUs and memory nodes a set names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sets {
    Guest,
    /// The host: the machine's cgroup restricts its threads to the set.
    Host,
}

/// Returns the number of vCPUs. For a set of the guest: as many as the quota can keep busy, and at least those that the
/// set names. For a set of the host: as many as the quota can keep busy, at most those of the set, and all of the set
/// without a quota. `None` without quota and set.
pub fn vcpus(resources: &Resources, sets: Sets) -> Result<Option<u8>> {
    let cpu = &resources.cpu;
    let quota = positive(cpu.quota).map(|quota| quota.div_ceil(cpu.period_us()));
    if quota.is_none() && cpu.cpus.is_empty() {
        return Ok(None);
    }
    let of_set = match sets {
        Sets::Guest => last_of(CPUS, &cpu.cpus)?.map_or(0, |last| u64::from(last) + 1),
        Sets::Host => {
            let most = u64::from(MAX_VCPUS);
            let all = ranges(CPUS, &cpu.cpus)?
                .iter()
                .map(|range| u64::from(range.end() - range.start()) + 1)
                .sum::<u64>();
            let busy = quota.unwrap_or(all.max(1));
            return Ok(Some(busy.min(if all == 0 { most } else { all }).min(most) as u8));
        }
    };
    if of_set > MAX_VCPUS.into() {
        return Err(too_few_cpus(of_set - 1, MAX_VCPUS));
    }
    Ok(Some(quota.unwrap_or(1).min(MAX_VCPUS.into()).max(of_set) as u8))
}

/// Returns the files of the container's cgroup and their content, for a machine with `vcpus` vCPUs.
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
    // An entry of `unified` overrides the field for the same file.
    let of_host = |name: &str| sets == Sets::Host && is_host_file(name);
    for (name, value) in resources.unified.iter().filter(|(name, _)| !of_host(name)) {
        files.insert(unified(name)?, value.clone());
    }
    Ok(files)
}

/// Returns the files to write to change the limits of a running container. Limits that are not requested stay. A memory
/// limit cannot exceed the machine's memory, whose size is fixed when it starts.
pub fn changes(resources: &Resources, memory_mib: u32, sets: Sets) -> Result<BTreeMap<String, String>> {
    let limit = &resources.memory.limit;
    check_memory(*limit, memory_mib)?;
    let cpu = &resources.cpu;
    if cpu.period != 0 && cpu.quota == 0 {
        return Err(invalid("linux.resources.cpu.period", "requires a quota"));
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

/// Refuses a memory limit above the memory of the machine in which the container runs.
pub fn check_memory(limit: i64, memory_mib: u32) -> Result<()> {
    if positive(limit).is_some_and(|limit| limit > u64::from(memory_mib) << 20) {
        let why =
            format!("{limit} bytes are more than the {memory_mib} MiB of the container's virtual machine");
        return Err(unsupported("linux.resources.memory.limit", why));
    }
    Ok(())
}

/// Refuses to raise the CPU quota above what the machine's vCPUs can use. Engines repeat limits that stay, so a quota that is
/// not above the present one is accepted, and so is every quota if there was none.
pub fn check_quota(cpu: &Cpu, present: i64, vcpus: u8) -> Result<()> {
    let most = u64::from(vcpus) * cpu.period_us();
    match positive(cpu.quota) {
        Some(quota) if quota > most && positive(present).is_some_and(|present| quota > present) => {
            let period = cpu.period_us();
            let why = format!(
                "{quota} of {period} us are more than the {vcpus} vCPUs of the container's virtual machine"
            );
            Err(unsupported("linux.resources.cpu.quota", why))
        }
        _ => Ok(()),
    }
}

fn memory(files: &mut BTreeMap<String, String>, memory: &Memory) -> Result<()> {
    let limit = positive(memory.limit);
    if let Some(swap) = positive(memory.swap)
        && limit.is_none_or(|limit| limit > swap)
    {
        return Err(invalid("linux.resources.memory.swap", "less than the memory limit"));
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

/// Scales the timeout `patience`, which suits a full CPU, to a machine with the CPU quota `cpu`: a boot needs the same
/// CPU time with any quota.
pub fn patience(cpu: &Cpu, patience: Duration) -> Duration {
    let quota = positive(cpu.quota).unwrap_or(u64::MAX).max(1);
    patience * (cpu.period_us().div_ceil(quota) as u32).clamp(1, PATIENCE_MAX)
}

/// Returns the largest number of a list such as `0-2,5`; `None` for an empty list.
fn last_of(path: &str, list: &str) -> Result<Option<u32>> {
    Ok(ranges(path, list)?.iter().map(|range| *range.end()).max())
}

/// Parses a list such as `0-2,5`.
fn ranges(path: &str, list: &str) -> Result<Vec<RangeInclusive<u32>>> {
    let wrong = || invalid(path, format!("{list:?} is not a list of numbers"));
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
        return Err(invalid(&path, "not a valid cgroup file name"));
    };
    if CONTROLLERS.contains(&controller) || LIMITS_OF_CGROUPS.contains(&name) {
        return Ok(name.to_owned());
    }
    Err(unsupported(path, "the guest has no such controller"))
}

fn too_few_cpus(asked: u64, vcpus: u8) -> BundleError {
    unsupported(CPUS, format!("CPU {asked} does not exist, the number of vCPUs is {vcpus}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn files_of(resources: Value) -> Result<Vec<(String, String)>> {
        let resources: Resources = serde_json::from_value(resources).unwrap();
        let vcpus = vcpus(&resources, Sets::Guest)?.unwrap_or(1);
        files(&resources, vcpus, Sets::Guest).map(|files| files.into_iter().collect())
    }

    #[test]
    fn a_small_quota_extends_the_timeout() {
        let second = Duration::from_secs(1);
        for (quota, period, expected) in
            [(0, 0, 1), (-1, 0, 1), (150_000, 0, 1), (5_000, 0, 20), (30_000, 0, 4), (1_000, 1_000_000, 20)]
        {
            let cpu = Cpu { quota, period, ..Cpu::default() };
            assert_eq!(patience(&cpu, second), second * expected, "{quota} {period}");
        }
    }

    #[test]
    fn a_quota_is_raised_up_to_the_vcpus() {
        for (quota, period, present, vcpus, accepted) in [
            (100_000, 0, 50_000, 1, true),
            (150_000, 0, 50_000, 1, false),
            (150_000, 0, 50_000, 2, true),
            (20_000, 10_000, 5_000, 1, false),
            // It stays, or there was none, or it ends.
            (150_000, 0, 150_000, 1, true),
            (150_000, 0, -1, 1, true),
            (-1, 0, 50_000, 1, true),
            (0, 0, 50_000, 1, true),
        ] {
            let cpu = Cpu { quota, period, ..Cpu::default() };
            let checked = check_quota(&cpu, present, vcpus);
            assert_eq!(checked.is_ok(), accepted, "{quota} {period} {present} {vcpus}");
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
    fn limits_without_a_guest_controller_are_refused_by_name() {
        for (resources, message) in [
            (
                json!({"cpu": {"cpus": "0-32"}}),
                "cpu.cpus: not supported: CPU 32 does not exist, the number of vCPUs is 32",
            ),
            (json!({"cpu": {"mems": "0,1"}}), "cpu.mems: not supported: the guest has no memory node 1"),
            (json!({"cpu": {"cpus": "1-"}}), r#"cpu.cpus: "1-" is not a list of numbers"#),
            (json!({"cpu": {"cpus": "3-1"}}), r#"cpu.cpus: "3-1" is not a list of numbers"#),
            (json!({"memory": {"limit": 2, "swap": 1}}), "memory.swap: less than the memory limit"),
            (json!({"memory": {"swap": 1}}), "memory.swap: less than the memory limit"),
            (
                json!({"unified": {"hugetlb.2MB.max": "0"}}),
                r#"unified["hugetlb.2MB.max"]: not supported: the guest has no such controller"#,
            ),
            (
                json!({"unified": {"cgroup.kill": "1"}}),
                r#"unified["cgroup.kill"]: not supported: the guest has no such controller"#,
            ),
            (
                json!({"unified": {"memory/x.max": "1"}}),
                r#"unified["memory/x.max"]: not a valid cgroup file name"#,
            ),
        ] {
            let error = files_of(resources.clone()).unwrap_err();
            assert_eq!(error.to_string(), format!("config.json linux.resources.{message}"), "{resources}");
        }
        let one = serde_json::from_value(json!({"cpu": {"cpus": "1"}})).unwrap();
        let message = "config.json linux.resources.cpu.cpus: not supported: CPU 1 does not exist, the number of vCPUs is 1";
        assert_eq!(files(&one, 1, Sets::Guest).unwrap_err().to_string(), message);
    }

    #[test]
    fn a_set_of_the_host_limits_the_vcpus_and_is_not_applied_in_the_guest() {
        for (resources, expected) in [
            (json!({"cpu": {"cpus": "3,8-9"}}), Some(3)),
            (json!({"cpu": {"cpus": "3,8-9", "quota": 150_000}}), Some(2)),
            (json!({"cpu": {"cpus": "7", "quota": 150_000}}), Some(1)),
            (json!({"cpu": {"cpus": "0-4000000000"}}), Some(MAX_VCPUS)),
            (json!({"cpu": {"quota": 150_000, "mems": "1"}}), Some(2)),
            (json!({"cpu": {"mems": "1"}}), None),
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
