//! A user's settings of a machine.

use std::path::PathBuf;

use agent_proto::command::Protocol;
use serde::{Deserialize, Serialize};

use crate::Inherited;

/// A user's settings of the machine: flags, environment variables and configuration file, merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmSettings {
    pub memory_mib: Option<u32>,
    /// Guest memory in MiB if no limit determines it; `None` for what the host has.
    pub default_memory_mib: Option<u32>,
    /// Maximum guest memory in MiB.
    pub max_memory_mib: Option<u32>,
    /// The kernel is an embedded one.
    pub own_kernel: bool,
    pub vcpus: Option<u8>,
    /// Maximum number of vCPUs if no limit determines it.
    pub max_vcpus: Option<u8>,
    /// Whether `linux.cgroupsPath` is in systemd's form.
    pub systemd_cgroup: bool,
    pub protocol: Protocol,
    /// Words to add to the kernel's command line.
    pub cmdline: Option<String>,
    pub console: Option<Console>,
    pub share: ShareType,
    pub vhost_net: VhostNet,
    /// Resource limits of the caller and kernel parameters of the host.
    pub inherited: Inherited,
    /// Whether the kernel writes its boot marks.
    pub marks: bool,
}

/// Destination of the guest's kernel log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Console {
    /// Whether the machine has a serial port, for the kernel's messages before its drivers are loaded.
    pub serial: bool,
    /// Path of a file; `None` for stderr.
    pub to: Option<PathBuf>,
}

/// Protocol through which the guest accesses host files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShareType {
    #[default]
    VirtioFs,
    /// virtio-9p, for guest kernels without virtio-fs.
    P9,
}

impl ShareType {
    /// Returns the name of the file system in the guest.
    pub fn name(self) -> &'static str {
        match self {
            ShareType::VirtioFs => "virtiofs",
            ShareType::P9 => "9p",
        }
    }
}

/// Selects whether vhost-net moves packets between the guest and its taps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VhostNet {
    /// vhost-net if the host has it and this process may use it, otherwise this process.
    #[default]
    Auto,
    /// Always vhost-net.
    On,
    /// Always this process.
    Off,
}
