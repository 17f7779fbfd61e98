//! Settings that the command line shares with environment variables and the configuration file.

use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;

/// Settings that flags, environment and configuration file have in common.
#[derive(Debug, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Settings {
    /// Guest memory in MiB, or with a suffix M or G [default: from the memory limit, else that of the host]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Virtual CPUs [default: from the CPU quota or set, else those of the host, at most 8]
    #[arg(long, value_name = "N")]
    pub cpus: Option<String>,
    /// Guest kernel: an uncompressed ELF vmlinux or a bzImage [default: the embedded one]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initramfs with the agent [default: the embedded one]
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Protocol with the agent: api-4244 uses only hyperstart's, and warns of what it cannot express
    #[arg(long, value_name = "PROTOCOL")]
    pub agent: Option<String>,
    /// Arguments to add to the kernel's command line
    #[arg(long, value_name = "WORDS")]
    pub cmdline: Option<String>,
    /// Write the guest's kernel log to FILE, or to stderr if FILE is -; with serial: from the kernel's first instructions
    #[arg(long, value_name = "[serial:]FILE|-")]
    pub console: Option<String>,
    /// The file server's protocol: virtiofs, or 9p for a kernel without it [default: virtiofs]
    #[arg(long, value_name = "virtiofs|9p")]
    pub share: Option<String>,
    /// Use vhost-net: auto if it is available, on or fail, off never [default: auto]
    #[arg(long, value_name = "auto|on|off")]
    pub vhost_net: Option<String>,
    /// Continue from a template instead of booting: auto if there is one, require or fail, off never [default: auto]
    #[arg(long, value_name = "auto|off|require")]
    pub template: Option<String>,
    /// Write the boot's timeline to FILE (JSON for Perfetto) and a table to stderr; - for only the table
    #[arg(long, value_name = "FILE|-")]
    pub marks: Option<PathBuf>,
    /// Guest memory without a memory limit. There is no flag for it.
    #[arg(skip)]
    pub default_memory: Option<String>,
    /// Directory of the templates. There is no flag for it.
    #[arg(skip)]
    pub template_dir: Option<PathBuf>,
    /// Maximum size of all templates on the disk, in MiB or with a suffix M or G. There is no flag for it.
    #[arg(skip)]
    pub template_limit: Option<String>,
    /// When a template is made for a machine that boots: idle, always or never. There is no flag for it.
    #[arg(skip)]
    pub template_make: Option<String>,
    /// Maximum guest memory. There is no flag for it.
    #[arg(skip)]
    pub max_memory: Option<String>,
    /// Maximum number of vCPUs without a quota or set. There is no flag for it.
    #[arg(skip)]
    pub max_cpus: Option<String>,
    /// Seconds that the agent has for each answer. There is no flag for it.
    #[arg(skip)]
    pub agent_timeout: Option<String>,
}
