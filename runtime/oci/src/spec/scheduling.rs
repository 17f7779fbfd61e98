//! How the kernel runs a process: `process.scheduler`, `process.ioPriority`, `linux.personality`.

use serde::Deserialize;

use super::Given;

/// A scheduling class (sched_setattr(2)).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Scheduler {
    /// `SCHED_OTHER` and so on.
    pub policy: String,
    /// For `SCHED_OTHER` and `SCHED_BATCH`.
    pub nice: i32,
    /// For `SCHED_FIFO` and `SCHED_RR`.
    pub priority: u32,
    /// `SCHED_FLAG_RESET_ON_FORK` and so on.
    pub flags: Vec<String>,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub runtime: u64,
    /// Likewise.
    pub deadline: u64,
    /// Likewise.
    pub period: u64,
}

/// An I/O priority (ioprio_set(2)).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct IoPriority {
    /// `IOPRIO_CLASS_BE` and so on.
    pub class: String,
    /// 0, the highest, to 7.
    pub priority: u16,
}

/// An execution domain (personality(2)).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Personality {
    /// `LINUX` or `LINUX32`.
    pub domain: String,
    /// None is defined.
    pub flags: Given,
}
