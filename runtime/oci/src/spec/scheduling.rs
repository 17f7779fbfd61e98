//! Scheduling of a process: `process.scheduler`, `process.ioPriority`, `linux.personality`.

use serde::Deserialize;

use super::Given;

/// A scheduling class (sched_setattr(2)).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Scheduler {
    /// Policy, such as `SCHED_OTHER`.
    pub policy: String,
    /// Nice value, for `SCHED_OTHER` and `SCHED_BATCH`.
    pub nice: i32,
    /// Static priority, for `SCHED_FIFO` and `SCHED_RR`.
    pub priority: u32,
    /// Flags, such as `SCHED_FLAG_RESET_ON_FORK`.
    pub flags: Vec<String>,
    /// CPU time per period in nanoseconds, for `SCHED_DEADLINE`.
    pub runtime: u64,
    /// Deadline in nanoseconds, for `SCHED_DEADLINE`.
    pub deadline: u64,
    /// Period in nanoseconds, for `SCHED_DEADLINE`.
    pub period: u64,
}

/// An I/O priority (ioprio_set(2)).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct IoPriority {
    /// Class, such as `IOPRIO_CLASS_BE`.
    pub class: String,
    /// Priority in the class, 0 (highest) to 7.
    pub priority: u16,
}

/// An execution domain (personality(2)).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Personality {
    /// `LINUX` or `LINUX32`.
    pub domain: String,
    /// The specification defines no flags.
    pub flags: Given,
}
