//! `linux.resources`: a container's limits (config-linux.md, "Control groups").

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::Given;

/// Limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    /// Memory.
    #[serde(deserialize_with = "or_nothing")]
    pub memory: Memory,
    /// CPU time.
    #[serde(deserialize_with = "or_nothing")]
    pub cpu: Cpu,
    /// Number of processes.
    #[serde(deserialize_with = "or_nothing")]
    pub pids: Pids,
    /// Files of the cgroup by name.
    #[serde(deserialize_with = "or_nothing")]
    pub unified: BTreeMap<String, String>,
    /// Block I/O, which is the monitor's on the host.
    #[serde(rename = "blockIO", deserialize_with = "or_nothing")]
    pub block_io: BlockIo,
    /// Limits of huge pages.
    #[serde(deserialize_with = "or_nothing")]
    pub hugepage_limits: Vec<HugepageLimit>,
    /// Not honoured.
    pub network: Given,
    /// Limits of RDMA devices by their names.
    #[serde(deserialize_with = "or_nothing")]
    pub rdma: BTreeMap<String, RdmaLimit>,
    /// Which devices may be used, and which nodes made in what is shared with the host.
    #[serde(deserialize_with = "or_nothing")]
    pub devices: Vec<DeviceRule>,
}

/// Null is what engines may write for nothing.
fn or_nothing<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// Block I/O limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BlockIo {
    /// Weight against others, 10 to 1000; none where it is 0.
    pub weight: u16,
    /// Not honoured.
    pub leaf_weight: Given,
    /// Weights for single devices.
    pub weight_device: Vec<BlockDevice>,
    /// Bytes a second.
    pub throttle_read_bps_device: Vec<BlockDevice>,
    /// Bytes a second.
    pub throttle_write_bps_device: Vec<BlockDevice>,
    /// Requests a second.
    #[serde(rename = "throttleReadIOPSDevice")]
    pub throttle_read_iops_device: Vec<BlockDevice>,
    /// Requests a second.
    #[serde(rename = "throttleWriteIOPSDevice")]
    pub throttle_write_iops_device: Vec<BlockDevice>,
}

/// A limit of one block device of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BlockDevice {
    /// Device number.
    pub major: u32,
    /// Device number.
    pub minor: u32,
    /// Of `weightDevice`.
    pub weight: u16,
    /// Not honoured.
    pub leaf_weight: Given,
    /// Of the others.
    pub rate: u64,
}

/// A limit of huge pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HugepageLimit {
    /// `2MB`, `1GB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// A limit of an RDMA device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RdmaLimit {
    /// Handles.
    pub hca_handles: Option<u32>,
    /// Objects.
    pub hca_objects: Option<u32>,
}

/// A rule of the devices' cgroup. Later ones win.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DeviceRule {
    /// It allows.
    pub allow: bool,
    /// `c`, `b`; both where it is empty or `a`.
    #[serde(rename = "type")]
    pub kind: String,
    /// All where there is none.
    pub major: Option<i64>,
    /// All where there is none.
    pub minor: Option<i64>,
    /// Of `rwm`; all where it is empty.
    pub access: String,
}

/// Memory limits. A swappiness is a hint, and so are the limits of version 1's that are not here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Memory {
    /// Bytes; none where it is 0 or less.
    pub limit: i64,
    /// Bytes that stay the container's when memory is short; none where it is 0 or less.
    pub reservation: i64,
    /// Bytes of memory and swap; none where it is 0 or less. A guest has no swap, and so keeps every limit.
    pub swap: i64,
    /// How willingly the host swaps, in version 1's cgroups.
    pub swappiness: Option<u64>,
    /// Not honoured.
    #[serde(rename = "disableOOMKiller")]
    pub disable_oom_killer: Given,
}

/// CPU limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cpu {
    /// Weight against other containers, 2 to 262144; none where it is 0.
    pub shares: u64,
    /// Microseconds of CPU time in a period; no limit where it is 0 or less.
    pub quota: i64,
    /// Microseconds that may be saved up for later periods.
    pub burst: Option<u64>,
    /// Microseconds; 100 000 where it is 0.
    pub period: u64,
    /// CPUs: of the host with a cgroup there, else as the guest counts them.
    pub cpus: String,
    /// Memory nodes likewise; the guest has one.
    pub mems: String,
    /// 1: runs only when nobody else wants to.
    pub idle: Option<i64>,
    /// Not honoured.
    pub realtime_runtime: Given,
    /// Not honoured.
    pub realtime_period: Given,
}

impl Cpu {
    /// The period of a quota that names none, microseconds (cgroups: `cpu.cfs_period_us`).
    const DEFAULT_PERIOD_US: u64 = 100_000;

    /// Returns the quota's period in microseconds.
    pub fn period_us(&self) -> u64 {
        if self.period == 0 { Cpu::DEFAULT_PERIOD_US } else { self.period }
    }

    /// Returns `shares` as a weight of version 2. The parabola of runc and crun: it maps version 1's least, default and
    /// largest shares (2, 1024, 262144) to version 2's weights (1, 100, 10000).
    pub fn weight(&self) -> u64 {
        let log = (self.shares.clamp(2, 1 << 18) as f64).log2();
        let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
        // The three points themselves are hit but for the last bits of a float.
        (10_f64.powf(exponent) - 1e-6).ceil() as u64
    }
}

/// Returns a limit in use; 0 and below mean that there is none.
pub fn positive(value: i64) -> Option<u64> {
    u64::try_from(value).ok().filter(|value| *value != 0)
}

/// Controllers of version 2 whose files in `unified` are written on the host; the guest has the others.
const HOST_CONTROLLERS: [&str; 4] = ["io", "hugetlb", "rdma", "misc"];

/// Returns whether `file`, a name in `unified`, is written on the host.
pub fn is_host_file(file: &str) -> bool {
    file.split_once('.').is_some_and(|(controller, _)| HOST_CONTROLLERS.contains(&controller))
}

/// The limit of processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pids {
    /// No limit where it is 0 or less.
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
