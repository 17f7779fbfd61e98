//! What a machine is made from: plain data, complete. Below it nobody reads the environment, files of configuration,
//! or arguments.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::Timeline;

/// A part of a file: a kernel or an initramfs, alone in its file or inside a program.
#[derive(Debug)]
pub struct Image {
    /// The file.
    pub file: File,
    /// Where the part starts, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// What messages call it.
    pub name: PathBuf,
}

impl Image {
    /// Fills `buffer` from `at` bytes into the image. A read over the image's end is an error.
    pub fn read_exact_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.check(at, buffer.len() as u64)?;
        self.file.read_exact_at(buffer, self.offset + at)
    }

    /// Refuses a range that is not wholly inside the image.
    pub fn check(&self, at: u64, len: u64) -> io::Result<()> {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.len)
            && self.offset.checked_add(self.len).is_some_and(|end| i64::try_from(end).is_ok());
        if inside { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// A machine before it exists.
pub struct VmConfig {
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// An x86-64 Linux kernel: `vmlinux` or bzImage, or an ELF kernel with a PVH entry.
    pub kernel: Image,
    /// The initramfs, as the kernel takes it.
    pub initramfs: Option<Image>,
    /// The kernel command line; the machine's devices are added to it.
    pub cmdline: String,
    /// Where the bytes of a 16550 at 0x3f8 go; without it there is none.
    pub serial: Option<Box<dyn Write + Send>>,
    /// Notes the machine's milestones, and those the guest writes to the mark port; without it there is no such port.
    pub timeline: Option<Arc<Timeline>>,
}
