//! The configuration of a machine, as complete plain data. This crate reads no environment variables, configuration
//! files or command-line arguments.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use devices::Enter;

use crate::{Snapshot, Timeline};

/// A kernel or an initramfs: a whole file, or a part of one such as an executable.
#[derive(Debug)]
pub struct Image {
    /// File that contains the image, open for reading.
    pub file: File,
    /// Start of the image within `file`, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Name of the image in error messages.
    pub name: PathBuf,
}

impl Image {
    /// Fills `buffer` from offset `at` of the image. A read past the image's end fails with `UnexpectedEof`.
    pub fn read_exact_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.check(at, buffer.len() as u64)?;
        self.file.read_exact_at(buffer, self.offset + at)
    }

    /// Refuses a range that is not entirely inside the image.
    pub fn check(&self, at: u64, len: u64) -> io::Result<()> {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.len)
            && self.offset.checked_add(self.len).is_some_and(|end| i64::try_from(end).is_ok());
        if inside { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

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
