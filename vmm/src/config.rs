//! The configuration of a machine, as complete plain data. This crate reads no environment variables, configuration
//! files or command-line arguments.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use devices::Enter;

use crate::{Image, Snapshot, Timeline};

/// Configuration of a machine, from which [`Vm::new`](crate::Vm::new) builds it.
pub struct VmConfig {
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// An x86-64 Linux kernel: `vmlinux` or bzImage, or an ELF kernel with a PVH entry.
    pub kernel: Image,
    /// The initramfs: a cpio archive, compressed or not, that the kernel unpacks.
    pub initramfs: Option<Image>,
    /// The kernel command line. The machine appends its virtio-mmio devices.
    pub cmdline: String,
    /// Output of a 16550 UART at I/O port 0x3f8. With `None` the machine has no UART.
    pub serial: Option<Box<dyn Write + Send>>,
    /// Records the machine's marks and those that the guest writes to the mark port. With `None` the machine has no
    /// mark port.
    pub timeline: Option<Arc<Timeline>>,
    /// What the machine's threads call before the guest runs.
    pub entries: Entries,
}

/// Configuration of a machine that continues from a saved one, from which [`Vm::restored`](crate::Vm::restored) builds it.
pub struct SavedConfig {
    /// The saved state.
    pub snapshot: Snapshot,
    /// The saved memory, open for reading. Nobody may change it.
    pub memory: File,
    /// Like [`VmConfig::timeline`].
    pub timeline: Option<Arc<Timeline>>,
    /// Like [`VmConfig::entries`].
    pub entries: Entries,
}

/// What threads call before the guest runs, to give up rights that they do not need. By default nothing.
#[derive(Clone, Copy)]
pub struct Entries {
    /// Each vCPU's thread.
    pub vcpu: Enter,
    /// The thread of the devices' event loop.
    pub devices: Enter,
}

impl Default for Entries {
    fn default() -> Entries {
        let nothing = || {};
        Entries { vcpu: nothing, devices: nothing }
    }
}
