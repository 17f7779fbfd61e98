//! Reads a kernel image: what of it goes where in guest memory, and where it starts.
//!
//! Reading makes a plan out of headers alone, so that a file that is no kernel is refused before anything is touched;
//! loading then copies the segments.

mod bzimage;
mod elf;

use std::io;
use std::path::PathBuf;

use linux_loader::loader::bootparam::setup_header;

use crate::Image;
use crate::layout::{HIGH_MEMORY_START, HOLE_START};
use crate::memory::{GuestRam, MemoryError};

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Linux's 64-bit entry, at a guest physical address.
    Linux64(u64),
    /// The PVH entry, in 32-bit protected mode.
    Pvh(u64),
}

/// A part of the image and its place in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte within the image.
    pub at: u64,
    /// Bytes in the image.
    pub len: u64,
    /// Guest physical address.
    pub addr: u64,
    /// Bytes in memory, at least `len`; the rest is zero.
    pub memory_len: u64,
}

/// A kernel's plan.
#[derive(Debug)]
pub struct Kernel {
    /// Where it starts.
    pub entry: Entry,
    /// What goes where, by address.
    pub segments: Vec<Segment>,
    /// First address after everything that the kernel takes before it reads the memory map.
    pub end: u64,
    /// The setup header, which a bzImage has.
    pub setup: Option<setup_header>,
}

/// Why an image cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file cannot be read.
    #[error("read kernel {name}")]
    Read {
        /// The file.
        name: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The file is something else, or a kernel that this machine cannot run.
    #[error("{name} is not a kernel that can be booted: {why}")]
    NotAKernel {
        /// The file.
        name: PathBuf,
        /// The first thing that is wrong with it.
        why: &'static str,
    },
}

/// What a format's reader says: `Err` with the reason, or the read that failed.
enum Refusal {
    Read(io::Error),
    Not(&'static str),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Refusal::Not("it is cut short")
        } else {
            Refusal::Read(error)
        }
    }
}

impl Kernel {
    /// Reads `image`'s headers.
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
            elf::MAGIC => elf::parse(image)?,
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

    /// Refuses segments that are not in the image, or not in memory that a kernel may have, or in each other.
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
            return Err(Refusal::Not("it has nothing to load"));
        }
        Ok(())
    }

    /// Copies the kernel into guest memory, which is all zero there.
    pub fn load(&self, image: &Image, ram: &GuestRam) -> Result<(), MemoryError> {
        self.segments.iter().try_for_each(|s| ram.load(image, s.at, s.addr, s.len))
    }
}

#[cfg(test)]
mod tests;
