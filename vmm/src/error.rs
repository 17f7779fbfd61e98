//! The error of everything up to a machine's start.

use std::io;
use std::path::PathBuf;

use crate::boot_params::CmdlineError;
use crate::kvm::KvmError;
use crate::loader::KernelError;
use crate::memory::MemoryError;
use crate::snapshot::SnapshotError;

/// Why a machine could not be created or started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM is missing or a call to it failed.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest memory could not be mapped or filled.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel image cannot be read or booted.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel command line is too long or has a byte that Linux would misread.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// The kernel and the initramfs leave too little memory.
    #[error("memory of {have_mib} MiB is too small for {kernel}, which needs {need_mib} MiB")]
    TooLittleMemory {
        /// Path of the kernel.
        kernel: PathBuf,
        /// Configured memory.
        have_mib: u32,
        /// Smallest memory size with which this kernel and initramfs can boot.
        need_mib: u64,
    },
    /// The configured memory exceeds [`MEMORY_MIB_MAX`](crate::layout::MEMORY_MIB_MAX).
    #[error("memory of {have_mib} MiB exceeds the limit of {max_mib} MiB")]
    TooMuchMemory {
        /// Configured memory.
        have_mib: u32,
        /// Largest supported memory size.
        max_mib: u32,
    },
    /// The configured number of vCPUs is not between 1 and [`VCPUS_MAX`](crate::layout::VCPUS_MAX).
    #[error("{vcpus} vcpus are not supported: a machine has 1 to {max}")]
    BadVcpus {
        /// Configured number of vCPUs.
        vcpus: u8,
        /// Largest supported number.
        max: u8,
    },
    /// More virtio devices than interrupts for them.
    #[error("limit of {max} devices reached")]
    TooManyDevices {
        /// Largest supported number of devices.
        max: usize,
    },
    /// A device's address range is invalid or overlaps another device's.
    #[error("add a device to the bus")]
    Bus(#[from] devices::bus::BusError),
    /// The machine cannot continue from a saved one.
    #[error("continue from a saved machine")]
    Snapshot(#[from] SnapshotError),
    /// The host kernel could not create a file descriptor or a thread.
    #[error("{step}")]
    Host {
        /// The step that failed.
        step: &'static str,
        /// The host's error.
        source: io::Error,
    },
}

/// `Result` with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
