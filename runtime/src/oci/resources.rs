//! `linux.resources`: a container's limits (config-linux.md, "Control groups").

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Given;

/// Limits. `devices` is not read: a VM's `/dev` holds nothing of the host.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    /// Memory.
    pub memory: Memory,
    /// CPU time.
    pub cpu: Cpu,
    /// Number of processes.
    pub pids: Pids,
    /// Files of the cgroup by name.
    pub unified: BTreeMap<String, String>,
    /// Not honoured.
    #[serde(rename = "blockIO")]
    pub block_io: Given,
    /// Not honoured.
    pub hugepage_limits: Given,
    /// Not honoured.
    pub network: Given,
    /// Not honoured.
    pub rdma: Given,
}

/// Memory limits. A swappiness is a hint, and so are the limits of version 1's that are not here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Memory {
    /// Bytes; none where it is 0 or less.
    pub limit: i64,
    /// Bytes that stay the container's when memory is short; none where it is 0 or less.
    pub reservation: i64,
    /// Bytes of memory and swap; none where it is 0 or less. A guest has no swap, and so keeps every limit.
    pub swap: i64,
    /// Not honoured.
    #[serde(rename = "disableOOMKiller")]
    pub disable_oom_killer: Given,
}

/// CPU limits.
#[derive(Debug, Default, Deserialize)]
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
    /// CPUs as the guest counts them.
    pub cpus: String,
    /// Memory nodes as the guest counts them: it has one.
    pub mems: String,
    /// 1: runs only when nobody else wants to.
    pub idle: Option<i64>,
    /// Not honoured.
    pub realtime_runtime: Given,
    /// Not honoured.
    pub realtime_period: Given,
}

/// The limit of processes.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pids {
    /// No limit where it is 0 or less.
    pub limit: i64,
}
