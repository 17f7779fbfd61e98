//! `linux.resources`: a container's limits (config-linux.md, "Control groups").

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Given;

/// Resource limits of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    pub memory: Memory,
    pub cpu: Cpu,
    pub pids: Pids,
    /// Content of cgroup files (version 2) by file name.
    pub unified: BTreeMap<String, String>,
    /// Block I/O limits, applied to the monitor on the host.
    #[serde(rename = "blockIO")]
    pub block_io: BlockIo,
    pub hugepage_limits: Vec<HugepageLimit>,
    pub network: Given,
    /// Limits of RDMA devices by device name.
    pub rdma: BTreeMap<String, RdmaLimit>,
    /// Rules for access to devices, and for device nodes in directories that are shared with the host.
    pub devices: Vec<DeviceRule>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BlockIo {
    /// Weight relative to other cgroups, 10 to 1000; 0 for none.
    pub weight: u16,
    pub leaf_weight: Given,
    pub weight_device: Vec<BlockDevice>,
    pub throttle_read_bps_device: Vec<BlockDevice>,
    pub throttle_write_bps_device: Vec<BlockDevice>,
    #[serde(rename = "throttleReadIOPSDevice")]
    pub throttle_read_iops_device: Vec<BlockDevice>,
    #[serde(rename = "throttleWriteIOPSDevice")]
    pub throttle_write_iops_device: Vec<BlockDevice>,
}

/// A limit for one block device of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BlockDevice {
    pub major: u32,
    pub minor: u32,
    /// Weight; only in `weightDevice`.
    pub weight: u16,
    pub leaf_weight: Given,
    /// Bytes or requests per second; only in the throttling lists.
    pub rate: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HugepageLimit {
    /// Page size, such as `2MB` or `1GB`.
    pub page_size: String,
    /// Limit in bytes.
    pub limit: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RdmaLimit {
    pub hca_handles: Option<u32>,
    pub hca_objects: Option<u32>,
}

/// A rule of the device controller. A later rule overrides an earlier one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DeviceRule {
    pub allow: bool,
    /// Type of device, `c` or `b`; both if empty or `a`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Major device number; all if absent.
    pub major: Option<i64>,
    /// Minor device number; all if absent.
    pub minor: Option<i64>,
    /// Letters of `rwm`; all if empty.
    pub access: String,
}

/// Memory limits. `swappiness` is a hint, and so are the limits of version 1 that have no field here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Memory {
    /// Limit in bytes; none if 0 or negative.
    pub limit: i64,
    /// Bytes protected from reclaim when memory is short; none if 0 or negative.
    pub reservation: i64,
    /// Limit of memory plus swap in bytes; none if 0 or negative. A guest has no swap and never exceeds it.
    pub swap: i64,
    /// How readily the host swaps (swappiness); only in cgroups of version 1.
    pub swappiness: Option<u64>,
    #[serde(rename = "disableOOMKiller")]
    pub disable_oom_killer: Given,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cpu {
    /// Weight relative to other containers, 2 to 262144; 0 for none.
    pub shares: u64,
    /// CPU time per period in microseconds; no limit if 0 or negative.
    pub quota: i64,
    /// Unused CPU time in microseconds that later periods may use.
    pub burst: Option<u64>,
    /// Period in microseconds; 100 000 if 0.
    pub period: u64,
    /// CPU set: host CPUs if the machine has a host cgroup, otherwise vCPUs of the guest.
    pub cpus: String,
    /// Memory nodes, of the host or guest like `cpus`. The guest has one.
    pub mems: String,
    /// 1: the container runs only when the CPU would be idle otherwise.
    pub idle: Option<i64>,
    pub realtime_runtime: Given,
    pub realtime_period: Given,
}

impl Cpu {
    /// Default period of a quota in microseconds (cgroups: `cpu.cfs_period_us`).
    const DEFAULT_PERIOD_US: u64 = 100_000;

    pub fn period_us(&self) -> u64 {
        if self.period == 0 { Cpu::DEFAULT_PERIOD_US } else { self.period }
    }

    /// Returns `shares` as a weight of version 2, with the parabola of runc and crun. It maps version 1's minimum,
    /// default and maximum shares (2, 1024, 262144) to version 2's weights (1, 100, 10000).
    pub fn weight(&self) -> u64 {
        let log = (self.shares.clamp(2, 1 << 18) as f64).log2();
        let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
        // The formula yields the three points up to floating-point rounding.
        (10_f64.powf(exponent) - 1e-6).ceil() as u64
    }
}

/// Returns a limit that is in use; 0 and negative values mean no limit.
pub fn positive(value: i64) -> Option<u64> {
    u64::try_from(value).ok().filter(|value| *value != 0)
}

/// Controllers of version 2 whose files in `unified` are written on the host. The guest has the other controllers.
const HOST_CONTROLLERS: [&str; 4] = ["io", "hugetlb", "rdma", "misc"];

/// Whether `file`, a key of `unified`, is written on the host.
pub fn is_host_file(file: &str) -> bool {
    file.split_once('.').is_some_and(|(controller, _)| HOST_CONTROLLERS.contains(&controller))
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pids {
    /// Maximum number of processes; no limit if 0 or negative.
    pub limit: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights() {
        for (shares, expected) in
            [(1, 1), (2, 1), (3, 2), (1024, 100), (2048, 174), (262_144, 10_000), (u64::MAX, 10_000)]
        {
            assert_eq!(Cpu { shares, ..Cpu::default() }.weight(), expected, "{shares}");
        }
    }
}
