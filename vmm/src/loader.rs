//! The kernel image: its segments, their guest addresses, and the entry point.
//!
//! [`Kernel::read`] reads only headers, so that a file that is not a kernel is refused before guest memory is mapped.
//! [`Kernel::load`] then copies the segments.

mod bzimage;
mod elf;

use std::io;
use std::path::PathBuf;

use linux_loader::loader::bootparam::setup_header;

use crate::Image;
use crate::layout::{HIGH_MEMORY_START, HOLE_START};
use crate::memory::{GuestRam, MemoryError};

/// Entry point of a kernel, and the CPU mode in which it is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Linux's 64-bit entry, at a guest physical address.
    Linux64(u64),
    /// The PVH entry, in 32-bit protected mode.
    Pvh(u64),
}

/// A part of the image and its address in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Offset of the first byte within the image.
    pub at: u64,
    /// Length in the image, in bytes.
    pub len: u64,
    /// Guest physical address.
    pub addr: u64,
    /// Length in memory, in bytes, at least `len`. The bytes after `len` are zero.
    pub memory_len: u64,
}

/// A kernel that can be loaded.
#[derive(Debug)]
pub struct Kernel {
    /// Entry point.
    pub entry: Entry,
    /// Segments, sorted by guest address.
    pub segments: Vec<Segment>,
    /// First address after all memory that the kernel uses before it reads the memory map.
    pub end: u64,
    /// The setup header of a bzImage; `None` for an ELF kernel.
    pub setup: Option<setup_header>,
}

/// Why an image cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The image cannot be read.
    #[error("read kernel {name}")]
    Read {
        /// Name of the image.
        name: PathBuf,
        /// The error of the read.
        source: io::Error,
    },
    /// The image is not a kernel, or a kernel that this machine cannot run.
    #[error("{name} is not a bootable kernel: {why}")]
    NotAKernel {
        /// Name of the image.
        name: PathBuf,
        /// The first problem found.
        why: &'static str,
    },
}

/// Why a format's reader refuses an image: a read failed, or the image is not a kernel that can be booted.
enum Refusal {
    Read(io::Error),
    Not(&'static str),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Refusal::Not("it is truncated")
        } else {
            Refusal::Read(error)
        }
    }
}

impl Kernel {
    /// Reads the headers of `image` and checks its segments.
    pub fn read(image: &Image) -> Result<Kernel, KernelError> {
        Self::parse(image).map_err(|refusal| match refusal {
            Refusal::Read(source) => KernelError::Read { name: image.name.clone(), source },
            Refusal::Not(why) => KernelError::NotAKernel { name: image.name.clone(), why },
        })
    }

    fn parse(image: &Image) -> Result<Kernel, Refusal> {
        let mut magic = [0; 4];
        if image.len > 0 {
            let len = image.len.min(4) as usize;
            image.read_exact_at(0, &mut magic[..len])?;
        }
        let mut kernel = match magic {
            crate::elf::MAGIC => elf::parse(image)?,
            _ if bzimage::is_one(image)? => bzimage::parse(image)?,
            [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd] | [0xfd, b'7', b'z', b'X'] => {
                return Err(Refusal::Not("it is compressed; unpack it to a vmlinux first"));
            }
            _ => return Err(Refusal::Not("it is neither an ELF file nor a bzImage")),
        };
        kernel.segments.sort_by_key(|segment| segment.addr);
        kernel.check(image)?;
        Ok(kernel)
    }

    /// Refuses segments that are outside of the image, outside of the memory that a kernel may be linked to, or that
    /// overlap each other.
    fn check(&self, image: &Image) -> Result<(), Refusal> {
        let mut free = HIGH_MEMORY_START;
        for segment in &self.segments {
            image.check(segment.at, segment.len)?;
            if segment.len > segment.memory_len {
                return Err(Refusal::Not("a segment is larger in the file than in memory"));
            }
            if segment.addr < HIGH_MEMORY_START {
                return Err(Refusal::Not("a segment lies below 1 MiB"));
            }
            if segment.addr < free {
                return Err(Refusal::Not("its segments overlap"));
            }
            free = segment
                .addr
                .checked_add(segment.memory_len)
                .filter(|end| *end <= HOLE_START)
                .ok_or(Refusal::Not("a segment lies above the memory that a kernel may be linked to"))?;
        }
        if self.segments.is_empty() || self.end < free || self.end > HOLE_START {
            return Err(Refusal::Not("it has no segments"));
        }
        Ok(())
    }

    /// Copies the segments into guest memory, which must still be zero there.
    pub fn load(&self, image: &Image, ram: &GuestRam) -> Result<(), MemoryError> {
        self.segments.iter().try_for_each(|s| ram.load(image, s.at, s.addr, s.len))
    }
}

#[cfg(test)]
mod tests;
