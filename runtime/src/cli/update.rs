//! The command lines of `vmm update` and `vmm events`, with parsers of their own, as for `vmm pod`.

use std::path::PathBuf;

use clap::Parser;

use crate::cli::LateArgs;

/// Update a container's resource limits
#[derive(Debug, Default, Parser)]
#[command(name = "vmm update", bin_name = "vmm update", disable_version_flag = true)]
pub struct UpdateArgs {
    #[command(flatten)]
    pub late: LateArgs,
    /// Read all limits from FILE, or from stdin if FILE is -, in the form of `linux.resources`; other flags are ignored
    #[arg(short, long, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Memory limit in bytes, or with a suffix K, M or G; -1 for no limit
    #[arg(short, long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory: Option<String>,
    /// Limit of memory and swap together
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    /// Memory protected from reclaim when memory is short
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_reservation: Option<String>,
    /// CPU time per period in microseconds; -1 for no limit
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// Length of the period in microseconds
    #[arg(long, value_name = "US")]
    pub cpu_period: Option<u64>,
    /// CPU time that may accumulate, in microseconds
    #[arg(long, value_name = "US")]
    pub cpu_burst: Option<u64>,
    /// CPU weight relative to other cgroups, 2 to 262144
    #[arg(long, value_name = "N")]
    pub cpu_share: Option<u64>,
    /// 1: run only when the CPU is otherwise idle
    #[arg(long, value_name = "0|1")]
    pub cpu_idle: Option<i64>,
    /// CPUs that may be used, such as 0-2,5
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that may be used
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Maximum number of processes; -1 for no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// Block I/O weight, 10 to 1000
    #[arg(long, value_name = "N")]
    pub blkio_weight: Option<u16>,
    /// The container's id
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Print a container's events and resource usage
#[derive(Debug, Parser)]
#[command(name = "vmm events", bin_name = "vmm events", disable_version_flag = true)]
pub struct EventsArgs {
    #[command(flatten)]
    pub late: LateArgs,
    /// Print the resource usage once and exit
    #[arg(long)]
    pub stats: bool,
    /// Interval between usage reports: a number with ms, s, m or h
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub interval: String,
    /// The container's id
    #[arg(value_name = "ID")]
    pub id: String,
}
