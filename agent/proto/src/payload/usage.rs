//! STATS and PROCESSES: resource usage and processes of a pod's containers. The payload of both is a
//! [`ContainerName`](super::ContainerName), empty for all containers. The reply is a list.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// Resource usage of one container, from its cgroup. Values that the guest's kernel does not count are `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerUsage {
    /// Name of the container.
    pub container: String,
    /// Current memory usage in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Limit of memory usage in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<u64>,
    /// Highest memory usage so far in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_peak: Option<u64>,
    /// CPU time in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u64>,
    /// CPU time in user mode in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_user: Option<u64>,
    /// CPU time in kernel mode in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_system: Option<u64>,
    /// Current number of processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Limit of processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<u64>,
    /// Number of processes that the OOM killer has killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
}

/// The processes of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerProcesses {
    /// Name of the container.
    pub container: String,
    /// Processes of the container.
    pub processes: Vec<ProcessEntry>,
}

/// One process of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProcessEntry {
    /// Process ID in the container's namespace.
    pub pid: u32,
    /// User ID.
    pub uid: u32,
    /// State as one letter, as in ps(1).
    pub state: String,
    /// Program and arguments, truncated if long. Only the program's name if there are no arguments.
    pub command: String,
}
