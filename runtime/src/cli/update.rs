//! `vmm update` and `vmm events` as they were typed; read by parsers of their own, as `vmm pod` is.

use std::path::PathBuf;

use clap::Parser;

use crate::cli::LogArgs;

/// Give a running container other limits
#[derive(Debug, Default, Parser)]
#[command(name = "vmm update", bin_name = "vmm update", disable_version_flag = true)]
pub struct UpdateArgs {
    /// Settings of the program's own log.
    #[command(flatten)]
    pub log: LogArgs,
    /// Where the state of containers is [default: /run/vmm, or vmm in the user's runtime directory]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Read `linux.resources` from FILE, `-` for stdin; no other limit counts then
    #[arg(short, long, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Memory: bytes, or with a suffix K, M or G; -1 for no limit
    #[arg(short, long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory: Option<String>,
    /// Memory and swap together
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    /// Memory that stays the container's when it is short
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_reservation: Option<String>,
    /// Microseconds of CPU time in a period; -1 for no limit
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// The period's microseconds
    #[arg(long, value_name = "US")]
    pub cpu_period: Option<u64>,
    /// Microseconds that may be saved up
    #[arg(long, value_name = "US")]
    pub cpu_burst: Option<u64>,
    /// Weight against others, 2 to 262144
    #[arg(long, value_name = "N")]
    pub cpu_share: Option<u64>,
    /// 1: only when nobody else wants to run
    #[arg(long, value_name = "0|1")]
    pub cpu_idle: Option<i64>,
    /// CPUs, `0-2,5`
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Processes; -1 for no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// Weight of block I/O, 10 to 1000
    #[arg(long, value_name = "N")]
    pub blkio_weight: Option<u16>,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Tell what happens to a running container, and what it uses
#[derive(Debug, Parser)]
#[command(name = "vmm events", bin_name = "vmm events", disable_version_flag = true)]
pub struct EventsArgs {
    /// Settings of the program's own log.
    #[command(flatten)]
    pub log: LogArgs,
    /// Where the state of containers is [default: /run/vmm, or vmm in the user's runtime directory]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Tell once what it uses
    #[arg(long)]
    pub stats: bool,
    /// Time between two reports: a number and ms, s, m or h
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub interval: String,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
}
