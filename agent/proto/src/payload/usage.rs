//! STATS and PROCESSES: what a pod's containers use. Both take a [`ContainerName`](super::ContainerName), every container
//! where that is empty, and answer with a list.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// What one container uses, by its cgroup. What the guest's kernel does not count is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerUsage {
    /// The container.
    pub container: String,
    /// Bytes of memory now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// The most bytes of memory that it may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<u64>,
    /// The most bytes of memory so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_peak: Option<u64>,
    /// Microseconds of CPU time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u64>,
    /// Of these in programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_user: Option<u64>,
    /// Of these in the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_system: Option<u64>,
    /// Processes and threads now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// The most of them that it may have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<u64>,
    /// Processes that were killed because memory was short.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
}

/// The processes of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerProcesses {
    /// The container.
    pub container: String,
    /// Its processes.
    pub processes: Vec<ProcessEntry>,
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProcessEntry {
    /// Its number as the container sees it.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// One letter, as in ps(1).
    pub state: String,
    /// Its program and arguments, cut where they are long; the program's name alone where there are none.
    pub command: String,
}
