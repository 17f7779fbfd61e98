//! What stops a machine from being made.

use std::io;
use std::path::PathBuf;

use crate::boot_params::CmdlineError;
use crate::kvm::KvmError;
use crate::loader::KernelError;
use crate::memory::MemoryError;

/// Why a machine could not be made or started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM is missing or refused something.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest memory could not be made or filled.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel cannot be read or is none.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel command line cannot be passed on.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// The kernel and the initramfs leave too little memory.
    #[error("{have_mib} MiB of memory are too little for {kernel}: it needs {need_mib} MiB")]
    TooLittleMemory {
        /// The kernel.
        kernel: PathBuf,
        /// What the machine was to have.
        have_mib: u32,
        /// The least that does.
        need_mib: u64,
    },
    /// More memory than a machine can have.
    #[error("{have_mib} MiB of memory are too much: {max_mib} MiB is the most")]
    TooMuchMemory {
        /// What the machine was to have.
        have_mib: u32,
        /// The most.
        max_mib: u32,
    },
    /// A number of vCPUs that no machine can have.
    #[error("a machine cannot have {vcpus} vcpus: 1 to {max}")]
    BadVcpus {
        /// What the machine was to have.
        vcpus: u8,
        /// The most.
        max: u8,
    },
    /// More devices than there are interrupts.
    #[error("a machine cannot have more than {max} devices")]
    TooManyDevices {
        /// The most.
        max: usize,
    },
    /// A device could not be put on its bus.
    #[error("put a device on the bus")]
    Bus(#[from] devices::bus::BusError),
    /// The host refused a descriptor or a thread.
    #[error("{step}")]
    Host {
        /// What for.
        step: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

/// `Result` of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
