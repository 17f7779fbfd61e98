//! Translates `linux.resources` to files of a cgroup on the host, of version 1 or 2.
//!
//! The guest limits its containers (`plan/limits.rs`), and the host limits the whole machine: memory and processes with
//! an allowance for the monitor, CPU time and block I/O as configured. Rules for devices do not apply, because the
//! guest has no device of the host.

use oci::spec::resources::{BlockIo, Cpu, Memory, Resources, is_host_file, positive};

use super::{Setting, Version};

/// Memory allowance of a machine in MiB above the guest's memory, in addition to 1/64 of that for page tables: for the
/// monitor (2 MiB, and less than 1 MiB of kernel memory, beside a full guest of 97 MiB), and for pages of shared files
/// that cannot be reclaimed at once.
pub const HOST_OVERHEAD_MIB: u64 = 48;
/// Limit of host tasks for a machine whose container has a process limit. The container's processes exist only in the
/// guest, so that its limit does not apply to the monitor's threads (one per vCPU, a few for devices and vhost).
const HOST_TASKS: u64 = 128;

/// Returns the memory limit in bytes of a machine of this size.
pub fn machine_bytes(memory_mib: u32) -> u64 {
    let mib = u64::from(memory_mib);
    (mib + mib.div_ceil(64) + HOST_OVERHEAD_MIB) << 20
}

/// Returns the guest memory in MiB of the largest machine for which [`machine_bytes`] is at most `bytes`.
pub fn machine_mib(bytes: u64) -> u64 {
    (bytes >> 20).saturating_sub(HOST_OVERHEAD_MIB) * 64 / 65
}

/// Returns the settings for `resources` and a machine of `memory_mib`.
pub fn settings(resources: &Resources, memory_mib: u32, version: Version) -> Vec<Setting> {
    let mut list = Settings { version, settings: Vec::new() };
    list.memory(&resources.memory, memory_mib);
    list.cpu(&resources.cpu);
    if positive(resources.pids.limit).is_some() {
        list.add("pids.limit", "pids.max", "pids.max", HOST_TASKS);
    }
    list.block_io(&resources.block_io);
    for (index, limit) in resources.hugepage_limits.iter().enumerate() {
        let size = &limit.page_size;
        let (one, two) = (format!("hugetlb.{size}.limit_in_bytes"), format!("hugetlb.{size}.max"));
        list.add(&format!("hugepageLimits[{index}]"), &one, &two, limit.limit);
    }
    for (device, limit) in &resources.rdma {
        let words = [("hca_handle", limit.hca_handles), ("hca_object", limit.hca_objects)];
        let words: String = words.iter().filter_map(|(name, n)| Some(format!(" {name}={}", (*n)?))).collect();
        list.add(&format!("rdma[{device:?}]"), "rdma.max", "rdma.max", format!("{device}{words}"));
    }
    for (file, value) in resources.unified.iter().filter(|(file, _)| is_host_file(file)) {
        // Version 1 has no files of these names, so that the setting is refused.
        list.add(&format!("unified[{file:?}]"), file, file, value);
    }
    list.settings
}

struct Settings {
    version: Version,
    settings: Vec<Setting>,
}

impl Settings {
    fn add(&mut self, at: &str, one: &str, two: &str, value: impl ToString) {
        let file = if self.version == Version::One { one } else { two };
        self.either(at, &[(file, value.to_string())]);
    }

    /// Adds a setting for the first of these files that the host has.
    fn either(&mut self, at: &str, files: &[(&str, String)]) {
        let files = files.iter().map(|(file, value)| ((*file).to_owned(), value.clone())).collect();
        self.settings.push(Setting { at: format!("linux.resources.{at}"), files });
    }

    fn memory(&mut self, memory: &Memory, memory_mib: u32) {
        let limit = positive(memory.limit);
        let machine = machine_bytes(memory_mib);
        let room = limit.map_or(0, |limit| machine.saturating_sub(limit));
        if limit.is_some() {
            self.add("memory.limit", "memory.limit_in_bytes", "memory.max", machine);
        }
        match (positive(memory.swap), limit) {
            (Some(both), Some(limit)) => {
                let swap = both.saturating_sub(limit);
                let value = if self.version == Version::One { machine + swap } else { swap };
                self.add("memory.swap", "memory.memsw.limit_in_bytes", "memory.swap.max", value);
            }
            (None, Some(_)) if memory.swap < 0 => {
                let all = if self.version == Version::One { "-1" } else { "max" };
                self.add("memory.swap", "memory.memsw.limit_in_bytes", "memory.swap.max", all);
            }
            _ => {}
        }
        if let Some(reservation) = positive(memory.reservation) {
            let value = reservation + room;
            self.add("memory.reservation", "memory.soft_limit_in_bytes", "memory.low", value);
        }
        if let Some(swappiness) = memory.swappiness
            && self.version == Version::One
        {
            // Version 2 has no swappiness. Because it is only a hint, it is ignored.
            self.add("memory.swappiness", "memory.swappiness", "", swappiness);
        }
    }

    fn cpu(&mut self, cpu: &Cpu) {
        let one = self.version == Version::One;
        if cpu.shares != 0 {
            let value = if one { cpu.shares } else { cpu.weight() };
            self.add("cpu.shares", "cpu.shares", "cpu.weight", value);
        }
        let quota = positive(cpu.quota);
        if one && cpu.period != 0 {
            self.add("cpu.period", "cpu.cfs_period_us", "", cpu.period);
        }
        match quota {
            Some(quota) if one => self.add("cpu.quota", "cpu.cfs_quota_us", "", quota),
            None if one && cpu.quota < 0 => self.add("cpu.quota", "cpu.cfs_quota_us", "", -1),
            Some(quota) => self.add("cpu.quota", "", "cpu.max", format!("{quota} {}", cpu.period_us())),
            None if !one && (cpu.period != 0 || cpu.quota < 0) => {
                self.add("cpu.quota", "", "cpu.max", format!("max {}", cpu.period_us()));
            }
            None => {}
        }
        if let Some(burst) = cpu.burst {
            self.add("cpu.burst", "cpu.cfs_burst_us", "cpu.max.burst", burst);
        }
        if let Some(idle) = cpu.idle {
            self.add("cpu.idle", "cpu.idle", "cpu.idle", idle);
        }
        for (at, file, value) in
            [("cpu.cpus", "cpuset.cpus", &cpu.cpus), ("cpu.mems", "cpuset.mems", &cpu.mems)]
        {
            if !value.is_empty() {
                self.add(at, file, file, value);
            }
        }
    }

    fn block_io(&mut self, io: &BlockIo) {
        if io.weight != 0 {
            let (plain, scaled) = (io.weight.to_string(), format!("default {}", io_weight(io.weight)));
            let files = match self.version {
                Version::One => [("blkio.weight", plain.clone()), ("blkio.bfq.weight", plain)],
                Version::Two => [("io.bfq.weight", plain), ("io.weight", scaled)],
            };
            self.either("blockIO.weight", &files);
        }
        for (index, device) in io.weight_device.iter().enumerate() {
            let value = format!("{}:{} {}", device.major, device.minor, device.weight);
            let files = match self.version {
                Version::One => {
                    &[("blkio.weight_device", value.clone()), ("blkio.bfq.weight_device", value)][..]
                }
                Version::Two => &[("io.bfq.weight", value)],
            };
            self.either(&format!("blockIO.weightDevice[{index}]"), files);
        }
        for (name, one, two, devices) in [
            ("throttleReadBpsDevice", "read_bps", "rbps", &io.throttle_read_bps_device),
            ("throttleWriteBpsDevice", "write_bps", "wbps", &io.throttle_write_bps_device),
            ("throttleReadIOPSDevice", "read_iops", "riops", &io.throttle_read_iops_device),
            ("throttleWriteIOPSDevice", "write_iops", "wiops", &io.throttle_write_iops_device),
        ] {
            for (index, device) in devices.iter().enumerate() {
                let limit = match (self.version, device.rate) {
                    (Version::One, rate) => rate.to_string(),
                    (Version::Two, 0) => format!("{two}=max"),
                    (Version::Two, rate) => format!("{two}={rate}"),
                };
                let (at, file) = (format!("blockIO.{name}[{index}]"), format!("blkio.throttle.{one}_device"));
                self.add(&at, &file, "io.max", format!("{}:{} {limit}", device.major, device.minor));
            }
        }
    }
}

/// Translates block I/O weights of version 1 (10 to 1000) linearly to version 2 (1 to 10000), as runc does.
fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight.clamp(10, 1000) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn largest_machine_for_a_limit_stays_within_it() {
        for mib in [0, 48, 49, 50, 113, 114, 115, 2048, 1 << 20] {
            let fits = |memory: u64| machine_bytes(memory as u32) <= mib << 20;
            let found = machine_mib(mib << 20);
            assert!(found == 0 || fits(found), "{mib}");
            assert!(!fits(found + 2), "{mib}");
        }
    }

    /// Returns the first file of each setting, with its value.
    fn files_of(resources: Value, version: Version) -> Vec<(String, String)> {
        let resources = oci::json::from_value(&resources).unwrap();
        let settings = settings(&resources, 98, version);
        settings.into_iter().map(|setting| setting.files.into_iter().next().unwrap()).collect()
    }

    fn check(resources: &Value, one: &[(&str, &str)], two: &[(&str, &str)]) {
        for (version, expected) in [(Version::One, one), (Version::Two, two)] {
            let expected: Vec<_> =
                expected.iter().map(|(file, value)| ((*file).to_owned(), (*value).to_owned())).collect();
            assert_eq!(files_of(resources.clone(), version), expected, "{version:?} {resources}");
        }
    }

    #[test]
    fn without_limits_nothing_is_written() {
        check(&json!({}), &[], &[]);
        check(
            &json!({"memory": {}, "cpu": {"shares": 0}, "blockIO": {"weight": 0}, "pids": {"limit": -1}}),
            &[],
            &[],
        );
        check(&json!({"memory": {"limit": -1, "swap": -1}, "rdma": null, "blockIO": null}), &[], &[]);
    }

    #[test]
    fn memory_has_an_allowance_for_the_monitor() {
        // 98 MiB for the guest, 2 for page tables, 48 for the monitor.
        assert_eq!(machine_bytes(98), 155_189_248);
        check(
            &json!({"memory": {"limit": 67_108_864, "swap": 77_108_864, "reservation": 1_000_000, "swappiness": 3}}),
            &[
                ("memory.limit_in_bytes", "155189248"),
                ("memory.memsw.limit_in_bytes", "165189248"),
                ("memory.soft_limit_in_bytes", "89080384"),
                ("memory.swappiness", "3"),
            ],
            &[("memory.max", "155189248"), ("memory.swap.max", "10000000"), ("memory.low", "89080384")],
        );
        check(
            &json!({"memory": {"limit": 67_108_864, "swap": -1}}),
            &[("memory.limit_in_bytes", "155189248"), ("memory.memsw.limit_in_bytes", "-1")],
            &[("memory.max", "155189248"), ("memory.swap.max", "max")],
        );
    }

    #[test]
    fn cpu_time_and_processes_become_files() {
        check(
            &json!({
                "cpu": {"shares": 1024, "quota": 150_000, "period": 50_000, "cpus": "0-1", "mems": "0"},
                "pids": {"limit": 5},
            }),
            &[
                ("cpu.shares", "1024"),
                ("cpu.cfs_period_us", "50000"),
                ("cpu.cfs_quota_us", "150000"),
                ("cpuset.cpus", "0-1"),
                ("cpuset.mems", "0"),
                ("pids.max", "128"),
            ],
            &[
                ("cpu.weight", "100"),
                ("cpu.max", "150000 50000"),
                ("cpuset.cpus", "0-1"),
                ("cpuset.mems", "0"),
                ("pids.max", "128"),
            ],
        );
        check(&json!({"cpu": {"quota": -1}}), &[("cpu.cfs_quota_us", "-1")], &[("cpu.max", "max 100000")]);
    }

    #[test]
    fn block_io_and_the_rest_become_files() {
        let device = |rate| json!([{"major": 8, "minor": 16, "rate": rate}]);
        check(
            &json!({
                "blockIO": {
                    "weight": 500,
                    "weightDevice": [{"major": 8, "minor": 0, "weight": 20}],
                    "throttleReadBpsDevice": device(1000),
                    "throttleWriteIOPSDevice": device(0),
                },
                "hugepageLimits": [{"pageSize": "2MB", "limit": 4096}],
                "rdma": {"mlx5": {"hcaHandles": 3}},
                "unified": {"io.latency": "8:0 target=9", "memory.high": "5"},
            }),
            &[
                ("blkio.weight", "500"),
                ("blkio.weight_device", "8:0 20"),
                ("blkio.throttle.read_bps_device", "8:16 1000"),
                ("blkio.throttle.write_iops_device", "8:16 0"),
                ("hugetlb.2MB.limit_in_bytes", "4096"),
                ("rdma.max", "mlx5 hca_handle=3"),
                ("io.latency", "8:0 target=9"),
            ],
            &[
                ("io.bfq.weight", "500"),
                ("io.bfq.weight", "8:0 20"),
                ("io.max", "8:16 rbps=1000"),
                ("io.max", "8:16 wiops=max"),
                ("hugetlb.2MB.max", "4096"),
                ("rdma.max", "mlx5 hca_handle=3"),
                ("io.latency", "8:0 target=9"),
            ],
        );
        for (weight, expected) in [(10, 1), (500, 4950), (1000, 10_000), (0, 1), (u16::MAX, 10_000)] {
            assert_eq!(io_weight(weight), expected, "{weight}");
        }
    }
}
