//! Guest memory: anonymous mappings, which use host memory only for pages that have been touched. In a machine that
//! continues from a saved one, private mappings of the saved pages are over them.

// UNSAFETY: mmap and madvise, reading files into raw mappings, and passing these mappings to vm-memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::{ptr, thread};

use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, GuestRegionMmap, MmapRegion, VolatileSlice};

use crate::Image;
use crate::layout::{PAGE_SIZE, RamRange};
use crate::snapshot::extent::{Extent, LARGE};
use crate::snapshot::working_set::{Treatment, WorkingSet};

/// Alignment of guest memory in the host, so that the host can back 2 MiB of the guest with one 2 MiB page if it has
/// one free. With 4 KiB pages, each of which is a page fault, a boot takes 30 million instructions more (75 instead of
/// 45 from the first instruction to init). The cost is 10 MB of host memory (38 instead of 28 MB at agent ready) in
/// large pages that the guest uses only in part.
const ALIGNMENT: usize = 2 << 20;
const PROTECTION: i32 = libc::PROT_READ | libc::PROT_WRITE;
const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Bytes of a saved memory that are copied before other threads may run. On a single CPU, a thread that KVM needs would wait for
/// the end of this thread's time slice, which is as long as two copies of a large page.
const SLICE: u64 = 256 << 10;

/// Why guest memory could not be mapped or filled.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host could not reserve the address space.
    #[error("reserve {len} bytes of guest memory")]
    Reserve {
        /// Size of the range in bytes.
        len: u64,
        /// The error of mmap or madvise.
        source: io::Error,
    },
    /// vm-memory refused the ranges.
    #[error("lay out guest memory")]
    Regions(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A range is not in guest memory.
    #[error("guest memory has no range {addr:#x}+{len:#x}")]
    Outside {
        /// First guest physical address of the range.
        addr: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A part of an image could not be read into guest memory.
    #[error("load {name}, bytes {at:#x}+{len:#x}")]
    Load {
        /// Name of the image.
        name: PathBuf,
        /// Offset of the first byte within the image.
        at: u64,
        /// Length in bytes.
        len: u64,
        /// The error of the read.
        source: io::Error,
    },
}

/// The machine's memory.
///
/// The mappings stay until the process ends, because clones of [`GuestMemoryMmap`] that point into them may exist
/// anywhere. Nothing is lost: a process runs one machine.
pub struct GuestRam {
    memory: GuestMemoryMmap,
}

impl GuestRam {
    /// Reserves address space for `ranges`. The host allocates a page when it is first touched.
    pub fn new(ranges: &[RamRange]) -> Result<GuestRam, MemoryError> {
        let regions = ranges.iter().map(region).collect::<Result<Vec<_>, _>>()?;
        let memory =
            GuestMemoryMmap::from_regions(regions).map_err(|error| MemoryError::Regions(Box::new(error)))?;
        Ok(GuestRam { memory })
    }

    /// Like [`new`](Self::new), with the pages of a saved machine: those of `extents`, which are whole pages within `ranges`
    /// and `file`, come from `file`. The file must stay as it is while the machine lives.
    pub fn restored(
        ranges: &[RamRange],
        file: &File,
        extents: &[Extent],
        set: &WorkingSet,
    ) -> Result<GuestRam, MemoryError> {
        let ram = GuestRam::new(ranges)?;
        let len = file.metadata().map_or(0, |metadata| metadata.len());
        let mut mapped = None;
        for extent in extents {
            for (part, treatment) in set.parts(*extent) {
                let whole = part.whole();
                if treatment == Treatment::Single || whole.offset + whole.len > len {
                    ram.map(file, part)?;
                } else if mapped.replace(whole) != Some(whole) {
                    ram.map(file, whole)?;
                }
            }
        }
        for range in ranges {
            let host = ram.host(range.start, range.len)?;
            // SAFETY: guest memory. The advice keeps it out of core dumps, and changes no byte.
            if unsafe { libc::madvise(host.cast(), range.len as usize, libc::MADV_DONTDUMP) } < 0 {
                return Err(MemoryError::Reserve { len: range.len, source: io::Error::last_os_error() });
            }
        }
        Ok(ram)
    }

    /// Prepares the pages of `set` in a memory that [`restored`](Self::restored) made of the same parts, and that nobody has used
    /// yet. Large pages are copied until `enough` says so; those of which many pages are written are copied in any case.
    pub fn prepare(
        &self,
        file: &File,
        extents: &[Extent],
        set: &WorkingSet,
        enough: impl Fn() -> bool,
    ) -> Result<(), MemoryError> {
        let mut copied = Vec::new();
        for large in set.copies() {
            if !set.is_dense(large) && enough() {
                continue;
            }
            self.empty(large)?;
            for part in extents.iter().filter_map(|extent| extent.within(large)) {
                self.copy(file, part)?;
            }
            copied.push(large);
        }
        for range in &set.written {
            if copied.contains(&(range.start / LARGE * LARGE)) {
                continue;
            }
            let host = self.host(range.start, range.len)?;
            // SAFETY: guest memory, which is writable. The pages get their own copies, with the same bytes. The result is ignored: a
            // kernel without this advice (before 5.14) copies them when they are written.
            unsafe { libc::madvise(host.cast(), range.len as usize, libc::MADV_POPULATE_WRITE) };
        }
        Ok(())
    }

    /// Replaces a large page of memory that nobody uses yet by one of zeros, which the host can back with a large page.
    fn empty(&self, large: u64) -> Result<(), MemoryError> {
        let host = self.host(large, LARGE)?;
        let reserve = |source| MemoryError::Reserve { len: LARGE, source };
        let flags = FLAGS | libc::MAP_FIXED;
        // SAFETY: `host` checked that these bytes are guest memory, which the caller does not use yet. They stay readable and
        // writable.
        let mapped = unsafe { libc::mmap(host.cast(), LARGE as usize, PROTECTION, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(reserve(io::Error::last_os_error()));
        }
        // SAFETY: the mapping just made. DONTDUMP keeps the guest's memory out of core dumps.
        if unsafe { libc::madvise(mapped, LARGE as usize, libc::MADV_DONTDUMP) } < 0 {
            return Err(reserve(io::Error::last_os_error()));
        }
        // SAFETY: as above. The result is ignored: a kernel without transparent huge pages refuses this advice.
        unsafe { libc::madvise(mapped, LARGE as usize, libc::MADV_HUGEPAGE) };
        Ok(())
    }

    /// Maps a part of `file` over memory that nobody uses yet.
    fn map(&self, file: &File, Extent { start, len, offset }: Extent) -> Result<(), MemoryError> {
        let host = self.host(start, len)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let (fd, offset) = (file.as_raw_fd(), offset as libc::off_t);
        // SAFETY: `host` checked that these `len` bytes are guest memory, which the caller does not use yet. They stay readable and
        // writable.
        let mapped = unsafe { libc::mmap(host.cast(), len as usize, PROTECTION, flags, fd, offset) };
        match mapped {
            libc::MAP_FAILED => Err(MemoryError::Reserve { len, source: io::Error::last_os_error() }),
            _ => Ok(()),
        }
    }

    /// Copies a part of `file`, which has it, into memory, and lets other threads run now and then. A mapping costs a quarter of a
    /// read, which looks for each page, and less if the host has the large page of the file in its cache ([`gather`]): it then maps
    /// that as one page, if it can have the same place in the mapping as in the file.
    fn copy(&self, file: &File, part: Extent) -> Result<(), MemoryError> {
        let (to, size, whole) = (self.host(part.start, part.len)?, part.len as usize, part.whole());
        let reserve = |source| MemoryError::Reserve { len: LARGE, source };
        let base = map_aligned(ALIGNMENT).map_err(reserve)?;
        let (flags, fd) = (libc::MAP_PRIVATE | libc::MAP_FIXED, file.as_raw_fd());
        // SAFETY: replaces the mapping just made, of which nobody else knows.
        let mapped = unsafe {
            libc::mmap(base.cast(), ALIGNMENT, libc::PROT_READ, flags, fd, whole.offset as libc::off_t)
        };
        if mapped == libc::MAP_FAILED {
            return Err(reserve(io::Error::last_os_error()));
        }
        let from = base.wrapping_add((part.offset - whole.offset) as usize);
        // SAFETY: a part of the mapping just made, of which no byte changes. The result is ignored: a kernel without this advice
        // (before 5.14) maps the pages when they are read.
        unsafe { libc::madvise(from.cast(), size, libc::MADV_POPULATE_READ) };
        for at in (0..size).step_by(SLICE as usize) {
            let slice = (SLICE as usize).min(size - at);
            // SAFETY: the file has the part, which is in one large page, so `size` bytes from `from` are mapped. `host` checked that
            // `to` is guest memory, which is another mapping, writable, and which nobody uses yet.
            unsafe { from.add(at).copy_to_nonoverlapping(to.add(at), slice) };
            thread::yield_now();
        }
        // SAFETY: the mapping just made, to which nothing points.
        unsafe { libc::munmap(base.cast(), ALIGNMENT) };
        Ok(())
    }

    /// The memory, as vm-memory's type.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Copies `len` bytes of `image`, starting at offset `at`, to guest address `addr`.
    ///
    /// Mapping the file's pages instead would be slower: the guest would get them as 4 KiB pages with one page fault
    /// each. With a 13 MB kernel that adds 30 million instructions to the guest's boot. The copy takes 10 million, most
    /// of which overlap with the wait for KVM_CREATE_VM.
    pub fn load(&self, image: &Image, at: u64, addr: u64, len: u64) -> Result<(), MemoryError> {
        let load = |source| MemoryError::Load { name: image.name.clone(), at, len, source };
        image.check(at, len).map_err(load)?;
        if len == 0 {
            return Ok(());
        }
        self.read(&image.file, image.offset + at, addr, len)?.map_err(load)
    }

    /// Reads `len` bytes at `offset` of `file` to guest address `addr`.
    fn read(&self, file: &File, offset: u64, addr: u64, len: u64) -> Result<io::Result<()>, MemoryError> {
        let host = self.host(addr, len)?;
        let mut done = 0;
        while done < len {
            let (offset, rest) = ((offset + done) as i64, (len - done) as usize);
            // SAFETY: `host` checked that these `len` bytes are guest memory, which is writable and stays mapped. All
            // other accesses to guest memory are volatile.
            let n = unsafe { libc::pread(file.as_raw_fd(), host.add(done as usize).cast(), rest, offset) };
            match n {
                0 => return Ok(Err(io::ErrorKind::UnexpectedEof.into())),
                n if n > 0 => done += n as u64,
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Ok(Err(error)),
                },
            }
        }
        Ok(Ok(()))
    }

    /// Returns the host address of guest address `addr`, if `len` bytes from `addr` are in one region.
    fn host(&self, addr: u64, len: u64) -> Result<*mut u8, MemoryError> {
        let outside = || MemoryError::Outside { addr, len };
        let size = usize::try_from(len).map_err(|_| outside())?;
        let slice = self.memory.get_slice(GuestAddress(addr), size).map_err(|_| outside())?;
        Ok(slice.ptr_guard_mut().as_ptr())
    }
}

/// Returns the pages of `slice`, a part of guest memory, to the host. They read as zeros afterwards, those of the
/// kernel's image too, because all of guest memory is anonymous. In a machine that continues from a saved one, the saved
/// pages read as they were saved: the guest does not rely on the content of a page that it has given back.
///
/// # Errors
///
/// If `slice` does not consist of whole pages.
pub fn discard(slice: VolatileSlice) -> io::Result<()> {
    let start = slice.ptr_guard_mut();
    // madvise itself checks the start, but extends the length to whole pages.
    if !(slice.len() as u64).is_multiple_of(PAGE_SIZE) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the pages are those of `slice`, which may be written, and stay mapped. Their content changes as by a
    // write of zeros, and all other accesses to them are volatile.
    match unsafe { libc::madvise(start.as_ptr().cast(), slice.len(), libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How often [`gather`] tries again what the host could not do at the moment.
const GATHER_TRIES: u32 = 8;

/// Makes the host keep the large page at `offset` of `file`, which nobody writes, as one page of its cache.
pub fn gather(file: &File, offset: u64) -> io::Result<()> {
    /// Since Linux 6.1 (madvise(2)).
    const MADV_COLLAPSE: i32 = 25;
    let base = map_aligned(ALIGNMENT)?.cast();
    // Linux gathers files other than those in memory only where they are executed.
    let map = |protection| {
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
        // SAFETY: replaces the mapping just made, of which nobody else knows.
        match unsafe {
            libc::mmap(base, ALIGNMENT, protection, flags, file.as_raw_fd(), offset as libc::off_t)
        } {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    let mapped = map(libc::PROT_READ | libc::PROT_EXEC).or_else(|_| map(libc::PROT_READ));
    let mut tries = 0..GATHER_TRIES;
    let gathered = mapped.and_then(|()| {
        // Linux gathers the pages of a mapping that has no page table, but says that it has not (6.1: collapse_file() returns
        // SCAN_PMD_NONE, which madvise(2) makes EINVAL). One page that is mapped gives it a page table.
        // SAFETY: the mapping just made, of a page that is read only. No byte changes.
        if unsafe { libc::madvise(base, PAGE_SIZE as usize, libc::MADV_POPULATE_READ) } < 0 {
            return Err(io::Error::last_os_error());
        }
        loop {
            // SAFETY: the mapping just made. No byte changes.
            let error = match unsafe { libc::madvise(base, ALIGNMENT, MADV_COLLAPSE) } {
                0 => return Ok(()),
                _ => io::Error::last_os_error(),
            };
            // Another CPU has a page in hand, as after a write, or memory is being compacted.
            if !matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOMEM)) || tries.next().is_none() {
                return Err(error);
            }
        }
    });
    // SAFETY: the mapping just made, to which nothing points.
    unsafe { libc::munmap(base, ALIGNMENT) };
    gathered
}

/// Reserves one range at an aligned host address.
fn region(range: &RamRange) -> Result<GuestRegionMmap, MemoryError> {
    let reserve = |source| MemoryError::Reserve { len: range.len, source };
    let len = usize::try_from(range.len).map_err(|_| reserve(io::ErrorKind::OutOfMemory.into()))?;
    let base = map_aligned(len).map_err(reserve)?;
    // SAFETY: `map_aligned` returned a mapping of `len` bytes with this protection and these flags. It is never
    // unmapped.
    let mapping = unsafe { MmapRegion::build_raw(base, len, PROTECTION, FLAGS) }
        .map_err(|error| MemoryError::Regions(Box::new(error)))?;
    GuestRegionMmap::new(mapping, GuestAddress(range.start))
        .ok_or(MemoryError::Outside { addr: range.start, len: range.len })
}

/// Maps `len` bytes at a multiple of [`ALIGNMENT`].
fn map_aligned(len: usize) -> io::Result<*mut u8> {
    let room = len.checked_add(ALIGNMENT).ok_or(io::ErrorKind::OutOfMemory)?;
    // SAFETY: the kernel chooses the address of a new anonymous mapping, so no existing mapping is changed.
    let start = unsafe { libc::mmap(ptr::null_mut(), room, PROTECTION, FLAGS, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let start = start.cast::<u8>();
    let base = start.wrapping_add(start.align_offset(ALIGNMENT));
    // SAFETY: start..start + room is the mapping just made. DONTDUMP keeps the guest's memory out of core dumps.
    if unsafe { libc::madvise(start.cast(), room, libc::MADV_DONTDUMP) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: base..base + len is within the mapping just made. The result is ignored: a kernel without transparent
    // huge pages refuses this advice.
    unsafe { libc::madvise(base.cast(), len, libc::MADV_HUGEPAGE) };
    Ok(base)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use vm_memory::Bytes;

    use super::*;

    const LEN: u64 = 1 << 20;

    fn ram() -> GuestRam {
        GuestRam::new(&[RamRange { start: 0, len: LEN }]).unwrap()
    }

    /// An image of `len` bytes at `offset` of a file. Byte n of the file is n % 251 + 1.
    fn image(len: u64, offset: u64) -> Image {
        let mut file: File = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..offset + len).map(|n| (n % 251) as u8 + 1).collect();
        file.write_all(&bytes).unwrap();
        Image { file, offset, len, name: "image".into() }
    }

    #[test]
    fn a_part_of_an_image_arrives_and_its_neighbours_stay() {
        let (ram, image) = (ram(), image(0x3100, 0x333));
        ram.load(&image, 5, 0x4007, 0x3000).unwrap();
        ram.load(&image, 0, 0x3000, 0).unwrap();
        let mut bytes = vec![0; 0x3010];
        ram.memory().read_slice(&mut bytes, GuestAddress(0x3fff)).unwrap();
        let expected: Vec<u8> = (0x338..0x3338).map(|n| (n % 251) as u8 + 1).collect();
        assert_eq!(bytes[8..0x3008], expected);
        assert_eq!((&bytes[..8], &bytes[0x3008..]), (&[0; 8][..], &[0; 8][..]));
    }

    #[test]
    fn a_load_outside_of_image_or_memory_is_refused() {
        let (ram, mut image) = (ram(), image(0x2000, 0));
        for (at, addr, len) in [
            (0, 0x4000, 0x3000),
            (u64::MAX, 0x4000, 2),
            (0, LEN - 16, 32),
            (0, LEN, 1),
            (0, u64::MAX - 4, 16),
        ] {
            assert!(ram.load(&image, at, addr, len).is_err(), "{at:#x} {addr:#x} {len:#x}");
        }
        image.len = 0x4000; // longer than its file
        assert!(ram.load(&image, 0, 0x4000, 0x4000).is_err());
    }

    /// Returns the line that begins with `key` in the description of the memory's mapping (proc_pid_smaps(5)).
    fn mapping(ram: &GuestRam, key: &str) -> String {
        let base = ram.host(0, LEN).unwrap() as usize;
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        // The first line of a mapping is its range.
        let (mut is_ours, mut found) = (false, None);
        for line in maps.lines() {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let bound = |text: &str| usize::from_str_radix(text, 16).ok();
            if let Some((from, to)) = range.and_then(|(from, to)| Some((bound(from)?, bound(to)?))) {
                is_ours = (from..to).contains(&base);
            } else if is_ours && line.starts_with(key) {
                found = Some(line.to_owned());
            }
        }
        found.expect("the mapping is there")
    }

    #[test]
    fn guest_memory_is_excluded_from_core_dumps() {
        let flags = mapping(&ram(), "VmFlags:");
        // `dd` excludes the mapping.
        assert!(flags.split_whitespace().any(|flag| flag == "dd"), "{flags}");
    }

    #[test]
    fn discarded_pages_are_zero_and_not_resident() {
        // The size of a large page, so that the mapping may consist of one.
        let len = ALIGNMENT;
        let ram = GuestRam::new(&[RamRange { start: 0, len: len as u64 }]).unwrap();
        let resident = || {
            let line = mapping(&ram, "Rss:");
            line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok()).unwrap() << 10
        };
        ram.memory().write_slice(&vec![7; len], GuestAddress(0)).unwrap();
        assert!(resident() >= len);
        let (from, count) = (0x3000, len - 0x5000);
        discard(ram.memory().get_slice(GuestAddress(from), count).unwrap()).unwrap();
        let mut bytes = vec![1; len];
        assert!(resident() <= 0x5000, "{}", resident());
        ram.memory().read_slice(&mut bytes, GuestAddress(0)).unwrap();
        let (head, rest) = bytes.split_at(from as usize);
        let (middle, tail) = rest.split_at(count);
        assert!(middle.iter().all(|byte| *byte == 0));
        assert!(head.iter().chain(tail).all(|byte| *byte == 7));
    }

    #[test]
    fn gathered_pages_keep_their_bytes() {
        let len = 2 * ALIGNMENT;
        let image = image(len as u64, 0);
        // The host may have no large page, or cannot make one of this file system's files.
        let _ = gather(&image.file, ALIGNMENT as u64);
        let ram = GuestRam::new(&[RamRange { start: 0, len: len as u64 }]).unwrap();
        ram.load(&image, 0, 0, len as u64).unwrap();
        let mut bytes = vec![0; len];
        ram.memory().read_slice(&mut bytes, GuestAddress(0)).unwrap();
        assert!(bytes.iter().enumerate().all(|(n, byte)| *byte == (n % 251) as u8 + 1));
        assert!(gather(&image.file, 1).is_err());
    }

    #[test]
    fn parts_of_pages_are_not_discarded() {
        let ram = ram();
        ram.memory().write_slice(&[7; 0x3000], GuestAddress(0)).unwrap();
        for (from, len) in [(0, 0x1001), (1, 0x1000), (0x800, 0x800), (0xfff, 1)] {
            let slice = ram.memory().get_slice(GuestAddress(from), len).unwrap();
            assert_eq!(discard(slice).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{from:#x} {len:#x}");
        }
        let mut bytes = [0; 0x3000];
        ram.memory().read_slice(&mut bytes, GuestAddress(0)).unwrap();
        assert_eq!(bytes, [7; 0x3000]);
    }

    #[test]
    fn ranges_are_aligned_for_large_pages() {
        let ram =
            GuestRam::new(&[RamRange { start: 0, len: LEN }, RamRange { start: 1 << 32, len: LEN }]).unwrap();
        for start in [0, 1 << 32] {
            assert_eq!(ram.host(start, LEN).unwrap() as usize % ALIGNMENT, 0);
        }
    }
}
