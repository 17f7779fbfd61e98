//! The part of a saved memory that machines use as soon as they continue, so that the guest has fewer page faults: each is an exit.
//!
//! - Large pages that are read and not written (the kernel's code) are mapped whole. If the host has them in its cache as large
//!   pages ([`Snapshot::gather`](super::Snapshot::gather)), each is one fault, and all machines share it.
//! - Large pages with many pages in use are copied, while KVM creates the machine, which mostly waits: more of them if the host has none in
//!   its cache. Each is one fault then, and private memory. Once KVM is ready, only those are copied that the machine mostly writes.
//! - Other pages that are written are copied one by one: that is a copy less while the guest runs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use devices::{Decoder, Encoder, StateError};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap};

use super::extent::{Extent, LARGE};
use crate::layout::{PAGE_SIZE, RamRange};

/// Limit of large pages that are copied.
const LARGE_MAX: usize = 4;
/// The same if the host has others in its cache.
const LARGE_BESIDE_SHARED: usize = 2;
/// Pages in use from which on a large page is copied.
const DENSE: u32 = 48;
/// Written pages from which on a large page is copied even if the machine waits for it: as many pages cost more one by one, and each is an
/// exit when the guest uses it.
const WRITTEN: u64 = 192;
/// Pages in use from which on a large page that is only read is mapped whole.
const READ: u32 = 16;
/// Limit of ranges in a state.
const RANGES_MAX: usize = 4096;
/// Bits of an entry in /proc/PID/pagemap (proc_pid_pagemap(5)): the page is present, and is a file's.
const PRESENT: u64 = 1 << 63;
const OF_FILE: u64 = 1 << 61;

/// What a machine has used of a large page, in pages.
#[derive(Default)]
struct Uses {
    used: u32,
    written: u32,
}

/// How a part of a saved memory is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// Page by page.
    Single,
    /// With the rest of its large page.
    Whole,
}

/// Parts of guest memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkingSet {
    /// Addresses of large pages with many pages in use, those with most first. Pages that are written count twice.
    pub(crate) large: Vec<u64>,
    /// Addresses of large pages that are read and not written.
    pub(crate) shared: Vec<u64>,
    /// Ranges of pages that a machine writes, in the order of their addresses.
    pub(crate) written: Vec<RamRange>,
}

impl WorkingSet {
    /// Finds what a machine has used of `mapped`, the parts of its memory that are mapped from a file.
    pub(crate) fn of(memory: &GuestMemoryMmap, mapped: &[Extent]) -> io::Result<WorkingSet> {
        let pages = File::open("/proc/self/pagemap")?;
        let (mut uses, mut written) = (BTreeMap::<u64, Uses>::new(), Vec::<RamRange>::new());
        let mut entries = vec![0; (LARGE / PAGE_SIZE * 8) as usize];
        for chunk in chunks(mapped) {
            // The last large page of a memory may not be whole.
            let Ok(slice) = memory.get_slice(GuestAddress(chunk), LARGE as usize) else { continue };
            let host = slice.ptr_guard().as_ptr() as u64;
            pages.read_exact_at(&mut entries, host / PAGE_SIZE * 8)?;
            let (entries, _) = entries.as_chunks::<8>();
            let uses = uses.entry(chunk).or_default();
            for (entry, start) in entries.iter().zip((chunk..).step_by(PAGE_SIZE as usize)) {
                let entry = u64::from_le_bytes(*entry);
                if entry & PRESENT == 0 {
                    continue;
                }
                uses.used += 1;
                if entry & OF_FILE != 0 {
                    continue;
                }
                uses.written += 1;
                match written.last_mut() {
                    Some(last) if last.end() == start => last.len += PAGE_SIZE,
                    _ => written.push(RamRange { start, len: PAGE_SIZE }),
                }
            }
        }
        let mut set = WorkingSet::default();
        let mut dense = Vec::new();
        for (start, Uses { used, written }) in uses {
            if written == 0 && used >= READ {
                set.shared.push(start);
            }
            if used >= DENSE {
                dense.push((used + written, start));
            }
        }
        dense.sort_unstable();
        set.large = dense.into_iter().rev().map(|(_, start)| start).collect();
        written.truncate(RANGES_MAX);
        set.written = written;
        Ok(set)
    }

    /// The addresses of large pages to copy, in order.
    pub(crate) fn copies(&self) -> impl Iterator<Item = u64> {
        let most = if self.shared.is_empty() { LARGE_MAX } else { LARGE_BESIDE_SHARED };
        self.large.iter().copied().filter(|large| !self.shared.contains(large)).take(most)
    }

    /// Whether so much of a large page is written that it is copied even if the machine waits for it.
    pub(crate) fn is_dense(&self, large: u64) -> bool {
        let within = |range: &RamRange| {
            let (start, end) = (range.start.max(large), range.end().min(large + LARGE));
            end.saturating_sub(start) / PAGE_SIZE
        };
        self.written.iter().map(within).sum::<u64>() >= WRITTEN
    }

    /// Divides a part of memory where large pages that are mapped whole begin and end.
    pub(crate) fn parts(&self, extent: Extent) -> impl Iterator<Item = (Extent, Treatment)> {
        let end = extent.start + extent.len;
        let mut start = extent.start;
        std::iter::from_fn(move || {
            if start >= end {
                return None;
            }
            let is_whole = self.shared.contains(&(start / LARGE * LARGE));
            let next = self.shared.iter().copied().find(|whole| *whole > start).unwrap_or(end);
            let stop = if is_whole { start / LARGE * LARGE + LARGE } else { next }.min(end);
            let part = Extent { start, len: stop - start, offset: extent.offset + (start - extent.start) };
            start = stop;
            Some((part, if is_whole { Treatment::Whole } else { Treatment::Single }))
        })
    }

    pub(crate) fn put(&self, state: &mut Encoder) {
        for pages in [&self.large, &self.shared] {
            state.u32(pages.len() as u32);
            pages.iter().for_each(|start| _ = state.u64(*start));
        }
        state.u32(self.written.len() as u32);
        self.written.iter().for_each(|range| _ = state.u64(range.start).u64(range.len));
    }

    /// Reads what [`put`](Self::put) wrote. All parts are whole pages within `ranges`.
    pub(crate) fn take(state: &mut Decoder, ranges: &[RamRange]) -> Result<WorkingSet, StateError> {
        let bad = StateError::Damaged("the working set is outside of memory");
        let within = |start: u64, len: u64, size: u64| {
            start.is_multiple_of(size)
                && len.is_multiple_of(size)
                && ranges.iter().any(|range| {
                    start >= range.start && start.checked_add(len).is_some_and(|end| end <= range.end())
                })
        };
        let mut set = WorkingSet::default();
        for pages in [&mut set.large, &mut set.shared] {
            for _ in 0..state.u32()? {
                let start = state.u64()?;
                if !within(start, LARGE, LARGE) {
                    return Err(bad);
                }
                pages.push(start);
            }
        }
        for _ in 0..state.u32()? {
            let range = RamRange { start: state.u64()?, len: state.u64()? };
            if !within(range.start, range.len, PAGE_SIZE) {
                return Err(bad);
            }
            set.written.push(range);
        }
        Ok(set)
    }
}

/// The addresses of the large pages of which `extents`, in their order, are parts.
fn chunks(extents: &[Extent]) -> Vec<u64> {
    let of =
        |extent: &Extent| (extent.start / LARGE * LARGE..extent.start + extent.len).step_by(LARGE as usize);
    let mut chunks: Vec<u64> = extents.iter().flat_map(of).collect();
    chunks.dedup();
    chunks
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::layout;
    use crate::memory::GuestRam;
    use crate::snapshot::memory;

    #[test]
    fn what_a_machine_wrote_is_found_and_prepared_in_the_next_one() {
        let ranges = layout::ram_ranges(64);
        let source = GuestRam::new(&ranges).unwrap();
        // Two large pages that are full, half of one, and a page.
        source.memory().write_slice(&vec![7; 5 * LARGE as usize / 2], GuestAddress(LARGE)).unwrap();
        source.memory().write_obj(7_u8, GuestAddress(16 * LARGE)).unwrap();
        let file = tempfile::tempfile().unwrap();
        let (extents, _) = memory::write(source.memory(), &[], (&file, None)).unwrap();

        let machine = GuestRam::restored(&ranges, &file, &extents, &WorkingSet::default()).unwrap();
        machine.memory().write_slice(&vec![8; LARGE as usize / 2], GuestAddress(LARGE)).unwrap();
        machine.memory().write_obj(8_u8, GuestAddress(2 * LARGE + 5 * PAGE_SIZE)).unwrap();
        machine.memory().write_obj(8_u8, GuestAddress(2 * LARGE + 6 * PAGE_SIZE)).unwrap();
        machine.memory().read_slice(&mut vec![0; LARGE as usize / 2], GuestAddress(3 * LARGE)).unwrap();
        let set = WorkingSet::of(machine.memory(), &extents).unwrap();
        let range = |start, pages| RamRange { start, len: pages * PAGE_SIZE };
        assert_eq!((&set.large[..], &set.shared[..]), (&[LARGE, 3 * LARGE][..], &[3 * LARGE][..]));
        assert_eq!(set.copies().collect::<Vec<_>>(), [LARGE]);
        assert!(set.is_dense(LARGE) && !set.is_dense(2 * LARGE) && !set.is_dense(3 * LARGE));
        let alone = WorkingSet { shared: Vec::new(), ..set.clone() };
        assert_eq!(alone.copies().collect::<Vec<_>>(), [LARGE, 3 * LARGE]);
        assert_eq!(set.written, [range(LARGE, 256), range(2 * LARGE + 5 * PAGE_SIZE, 2)]);

        // All is prepared, or nothing, if there is no time.
        for (set, enough) in [(&set, false), (&alone, false), (&set, true)] {
            let next = GuestRam::restored(&ranges, &file, &extents, set).unwrap();
            next.prepare(&file, &extents, set, || enough).unwrap();
            for (at, byte) in [
                (LARGE, 7),
                (2 * LARGE - 1, 7),
                (2 * LARGE + 5 * PAGE_SIZE, 7),
                (4 * LARGE - 1, 0),
                (3 * LARGE, 7),
                (16 * LARGE, 7),
                (0, 0),
            ] {
                assert_eq!(next.memory().read_obj::<u8>(GuestAddress(at)).unwrap(), byte, "{at:#x}");
            }
            // Saved again, nothing of it is missing.
            let again = tempfile::tempfile().unwrap();
            let (found, _) = memory::write(next.memory(), &extents, (&again, None)).unwrap();
            let last = GuestRam::restored(&ranges, &again, &found, set).unwrap();
            for at in [2 * LARGE - 1, 3 * LARGE, 16 * LARGE] {
                assert_eq!(last.memory().read_obj::<u8>(GuestAddress(at)).unwrap(), 7, "{at:#x}");
            }
        }
    }

    #[test]
    fn parts_outside_of_memory_are_refused() {
        let ranges = layout::ram_ranges(64);
        let taken = |large: &[u64], written: &[(u64, u64)]| {
            let written = written.iter().map(|(start, len)| RamRange { start: *start, len: *len }).collect();
            let shared = large.to_vec();
            let set = WorkingSet { large: large.to_vec(), shared, written };
            let mut state = Encoder::default();
            set.put(&mut state);
            WorkingSet::take(&mut Decoder::new(&state.finish()), &ranges).map(|taken| taken == set)
        };
        let end = 64 << 20;
        assert_eq!(taken(&[0, end - LARGE], &[(0, PAGE_SIZE), (end - PAGE_SIZE, PAGE_SIZE)]), Ok(true));
        for large in [PAGE_SIZE, end, u64::MAX - LARGE + 1] {
            assert!(taken(&[large], &[]).is_err(), "{large:#x}");
        }
        for written in [(1, PAGE_SIZE), (0, 1), (end, PAGE_SIZE), (end - PAGE_SIZE, 2 * PAGE_SIZE)] {
            assert!(taken(&[], &[written]).is_err(), "{written:x?}");
        }
        assert!(WorkingSet::take(&mut Decoder::new(&[255; 8]), &ranges).is_err());
    }
}
