//! Guest memory: anonymous mappings that cost nothing until they are touched, and pages of files laid over them.

// UNSAFETY: mmap with MAP_FIXED, madvise, and handing raw mappings to vm-memory.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::ptr;

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::Image;
use crate::layout::{PAGE_SIZE, RamRange};

/// Host alignment of guest memory: where the host has a 2 MiB page at hand it can back 2 MiB of the guest with it.
const ALIGNMENT: usize = 2 << 20;
const PROTECTION: i32 = libc::PROT_READ | libc::PROT_WRITE;
const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
/// How much one read(2) copies.
const COPY_CHUNK: u64 = 1 << 30;

/// Why guest memory could not be made or filled.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host does not give the address space.
    #[error("reserve {len} bytes of guest memory")]
    Reserve {
        /// Bytes asked for.
        len: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// vm-memory refuses the ranges.
    #[error("lay out guest memory")]
    Regions(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An address is outside of guest memory.
    #[error("guest memory has no range {addr:#x}+{len:#x}")]
    Outside {
        /// First address.
        addr: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A part of a file could not be brought into guest memory.
    #[error("load {name}, bytes {at:#x}+{len:#x}")]
    Load {
        /// The file.
        name: PathBuf,
        /// First byte within the image.
        at: u64,
        /// Length in bytes.
        len: u64,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The machine's memory.
///
/// The mappings stay until the process ends: clones of [`GuestMemoryMmap`] that point into them may be anywhere, and
/// a process is one machine.
pub struct GuestRam {
    memory: GuestMemoryMmap,
}

impl GuestRam {
    /// Reserves `ranges`. No page is there before it is touched.
    pub fn new(ranges: &[RamRange]) -> Result<GuestRam, MemoryError> {
        let regions = ranges.iter().map(region).collect::<Result<Vec<_>, _>>()?;
        let memory =
            GuestMemoryMmap::from_regions(regions).map_err(|error| MemoryError::Regions(Box::new(error)))?;
        Ok(GuestRam { memory })
    }

    /// The memory itself.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Puts `len` bytes of `image` from `at` on at guest address `addr`. Whole pages are mapped privately from the
    /// file, which shares them with its page cache until the guest writes; what shares a page with other bytes, or
    /// does not lie on the same place of a page in the file as in memory, is copied.
    pub fn place(&self, image: &Image, at: u64, addr: u64, len: u64) -> Result<(), MemoryError> {
        let load = |source| MemoryError::Load { name: image.name.clone(), at, len, source };
        image.check(at, len).map_err(load)?;
        let start = image.offset + at;
        let head = (addr.wrapping_neg() % PAGE_SIZE).min(len);
        let mapped = if start % PAGE_SIZE == addr % PAGE_SIZE { (len - head) & !(PAGE_SIZE - 1) } else { 0 };
        if mapped == 0 {
            return self.copy(image, start, addr, len).map_err(load);
        }
        self.copy(image, start, addr, head).map_err(load)?;
        self.map(image, start + head, addr + head, mapped).map_err(load)?;
        let done = head + mapped;
        self.copy(image, start + done, addr + done, len - done).map_err(load)
    }

    /// Copies from the file at `offset` to `addr`.
    fn copy(&self, image: &Image, offset: u64, addr: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let host = self.host(addr, len)?;
        let mut done = 0;
        while done < len {
            let chunk = (len - done).min(COPY_CHUNK) as usize;
            // SAFETY: `host` checked that `len` bytes from there on are guest memory, which is writable and stays
            // mapped; nothing refers to guest memory but through volatile accesses.
            let n = unsafe {
                libc::pread(
                    image.file.as_raw_fd(),
                    host.add(done as usize).cast(),
                    chunk,
                    (offset + done) as i64,
                )
            };
            match n {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n if n > 0 => done += n as u64,
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Maps whole pages of the file at `offset` over the guest's at `addr`.
    fn map(&self, image: &Image, offset: u64, addr: u64, len: u64) -> io::Result<()> {
        let host = self.host(addr, len)?;
        // A page of the mapping past the end of the file would be a SIGBUS when it is touched.
        if image.file.metadata()?.len() < offset + len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: the range replaced is `len` bytes of guest memory, as `host` checked, all of it ours and never
        // referred to but through volatile accesses; the new mapping has the same size and protection.
        let mapped = unsafe {
            libc::mmap(
                host.cast(),
                len as usize,
                PROTECTION,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                image.file.as_raw_fd(),
                offset as i64,
            )
        };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Returns where `addr` is in this process, if `len` bytes from there on lie in one region.
    fn host(&self, addr: u64, len: u64) -> io::Result<*mut u8> {
        let outside = || io::Error::other(MemoryError::Outside { addr, len });
        let size = usize::try_from(len).map_err(|_| outside())?;
        let slice = self.memory.get_slice(GuestAddress(addr), size).map_err(|_| outside())?;
        Ok(slice.ptr_guard_mut().as_ptr())
    }

    /// Writes `bytes` at `addr`.
    pub fn write(&self, bytes: &[u8], addr: u64) -> Result<(), MemoryError> {
        let outside = |_| MemoryError::Outside { addr, len: bytes.len() as u64 };
        self.memory.write_slice(bytes, GuestAddress(addr)).map_err(outside)
    }
}

/// Reserves one aligned range.
fn region(range: &RamRange) -> Result<GuestRegionMmap, MemoryError> {
    let reserve = |source| MemoryError::Reserve { len: range.len, source };
    let len = usize::try_from(range.len).map_err(|_| reserve(io::ErrorKind::OutOfMemory.into()))?;
    let base = map_aligned(len).map_err(reserve)?;
    // SAFETY: `map_aligned` returned a mapping of `len` bytes with this protection and these flags, which nobody
    // unmaps.
    let mapping = unsafe { MmapRegion::build_raw(base, len, PROTECTION, FLAGS) }
        .map_err(|error| MemoryError::Regions(Box::new(error)))?;
    GuestRegionMmap::new(mapping, GuestAddress(range.start))
        .ok_or(MemoryError::Outside { addr: range.start, len: range.len })
}

/// Maps `len` bytes at a multiple of [`ALIGNMENT`].
fn map_aligned(len: usize) -> io::Result<*mut u8> {
    let room = len.checked_add(ALIGNMENT).ok_or(io::ErrorKind::OutOfMemory)?;
    // SAFETY: a new anonymous mapping, placed by the kernel, touches nothing that exists.
    let start = unsafe { libc::mmap(ptr::null_mut(), room, PROTECTION, FLAGS, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let start = start.cast::<u8>();
    let base = start.wrapping_add(start.align_offset(ALIGNMENT));
    // SAFETY: base..base + len is within the mapping just made. Advice only; a kernel without huge pages refuses it.
    unsafe { libc::madvise(base.cast(), len, libc::MADV_HUGEPAGE) };
    Ok(base)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    const LEN: u64 = 1 << 20;

    fn ram() -> GuestRam {
        GuestRam::new(&[RamRange { start: 0, len: LEN }]).unwrap()
    }

    /// A file of `len` bytes in which no two pages are alike.
    fn image(len: u64, offset: u64) -> Image {
        let mut file: File = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..offset + len).map(|n| (n % 251) as u8 + 1).collect();
        file.write_all(&bytes).unwrap();
        Image { file, offset, len, name: "image".into() }
    }

    fn bytes(ram: &GuestRam, addr: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        ram.memory().read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    /// Places `len` bytes from `at` and looks at them and at their neighbours.
    fn check(offset: u64, at: u64, addr: u64, len: u64) {
        let (ram, image) = (ram(), image(3 * PAGE_SIZE + 100, offset));
        ram.place(&image, at, addr, len).unwrap();
        let expected: Vec<u8> =
            (offset + at..offset + at + len).map(|n| (n % 251) as u8 + 1).collect();
        assert_eq!(bytes(&ram, addr, len), expected, "{offset:#x} {at:#x} {addr:#x} {len:#x}");
        assert_eq!(bytes(&ram, addr - 8, 8), [0; 8], "before {addr:#x}");
        assert_eq!(bytes(&ram, addr + len, 8), [0; 8], "after {addr:#x}+{len:#x}");
    }

    #[test]
    fn an_image_arrives_whole_wherever_it_lies() {
        check(0, 0, 0x4000, 3 * PAGE_SIZE); // pages only
        check(0, 0, 0x4000, 3 * PAGE_SIZE + 100); // and a tail
        check(0, 5, 0x4005, 2 * PAGE_SIZE); // a head, a page, a tail
        check(0x1000, 0x800, 0x4800, 0x100); // less than a page
        check(0, 1, 0x4000, 2 * PAGE_SIZE); // never congruent
        check(0x333, 0, 0x4333, 3 * PAGE_SIZE); // an offset that is
        check(0, 0, 0x4000, 0);
    }

    #[test]
    fn mapped_pages_are_private_to_the_guest() {
        let (ram, image) = (ram(), image(PAGE_SIZE, 0));
        ram.place(&image, 0, 0x4000, PAGE_SIZE).unwrap();
        ram.write(&[0], 0x4000).unwrap();
        let mut first = [0];
        image.read_exact_at(0, &mut first).unwrap();
        assert_eq!((first, bytes(&ram, 0x4000, 2)), ([1], vec![0, 2]));
    }

    #[test]
    fn what_is_not_there_cannot_be_placed() {
        let (ram, mut image) = (ram(), image(2 * PAGE_SIZE, 0));
        for (at, addr, len) in [
            (0, 0x4000, 3 * PAGE_SIZE),
            (u64::MAX, 0x4000, 2),
            (0, LEN - 16, 32),
            (0, LEN, 1),
            (0, u64::MAX - 4, 16),
        ] {
            assert!(ram.place(&image, at, addr, len).is_err(), "{at:#x} {addr:#x} {len:#x}");
        }
        image.len = 4 * PAGE_SIZE; // longer than its file
        assert!(ram.place(&image, 0, 0x4000, 4 * PAGE_SIZE).is_err());
        assert!(ram.place(&image, 0, 0x4001, 4 * PAGE_SIZE).is_err());
    }

    #[test]
    fn ranges_are_aligned_for_large_pages() {
        let ram = GuestRam::new(&[RamRange { start: 0, len: LEN }, RamRange { start: 1 << 32, len: LEN }]).unwrap();
        for start in [0, 1 << 32] {
            assert_eq!(ram.host(start, LEN).unwrap() as usize % ALIGNMENT, 0);
        }
    }
}
