//! The part of a saved memory that machines use as soon as they continue. It is prepared while KVM creates the machine, which mostly
//! waits, so that the guest has fewer page faults: each is an exit.
//!
//! A page of the file that a guest writes is a page of its own from then on. If it is copied before, the guest's access finds
//! it. Where the pages in use are dense, a whole large page is copied, which is one fault instead of hundreds, and private memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use devices::{Decoder, Encoder, StateError};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap};

use super::memory::Extent;
use crate::layout::{PAGE_SIZE, RamRange};

/// Length and alignment of a large page.
pub const LARGE: u64 = 2 << 20;
/// Limit of large pages that are copied.
const LARGE_MAX: usize = 16;
/// Pages in use from which on a large page is copied.
const DENSE: u32 = 48;
/// Limit of ranges in a state.
const RANGES_MAX: usize = 4096;
/// Bits of an entry in /proc/PID/pagemap (proc_pid_pagemap(5)): the page is present, and is a file's.
const PRESENT: u64 = 1 << 63;
const OF_FILE: u64 = 1 << 61;

/// Parts of guest memory, in the order of their addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkingSet {
    /// Addresses of large pages that are copied.
    pub(crate) large: Vec<u64>,
    /// Ranges of pages that a machine writes, outside of those.
    pub(crate) written: Vec<RamRange>,
}

impl WorkingSet {
    /// Finds what a machine has used of `mapped`, the parts of its memory that are mapped from a file.
    pub(crate) fn of(memory: &GuestMemoryMmap, mapped: &[Extent]) -> io::Result<WorkingSet> {
        let pages = File::open("/proc/self/pagemap")?;
        let (mut used, mut written) = (BTreeMap::<u64, u32>::new(), Vec::<RamRange>::new());
        for extent in mapped {
            let host = memory.get_host_address(GuestAddress(extent.start)).map_err(io::Error::other)? as u64;
            let mut entries = vec![0; (extent.len / PAGE_SIZE * 8) as usize];
            pages.read_exact_at(&mut entries, host / PAGE_SIZE * 8)?;
            let (entries, _) = entries.as_chunks::<8>();
            for (entry, start) in entries.iter().zip((extent.start..).step_by(PAGE_SIZE as usize)) {
                let entry = u64::from_le_bytes(*entry);
                if entry & PRESENT == 0 {
                    continue;
                }
                *used.entry(start / LARGE * LARGE).or_default() += 1;
                match written.last_mut() {
                    _ if entry & OF_FILE != 0 => {}
                    Some(last) if last.end() == start => last.len += PAGE_SIZE,
                    _ => written.push(RamRange { start, len: PAGE_SIZE }),
                }
            }
        }
        let mut dense: Vec<(u32, u64)> = used
            .into_iter()
            .filter(|(_, count)| *count >= DENSE)
            .map(|(start, count)| (count, start))
            .collect();
        dense.sort_unstable();
        let mut large: Vec<u64> = dense.into_iter().rev().take(LARGE_MAX).map(|(_, start)| start).collect();
        large.sort_unstable();
        written.retain(|range| !large.contains(&(range.start / LARGE * LARGE)));
        written.truncate(RANGES_MAX);
        Ok(WorkingSet { large, written })
    }

    /// Divides a part of memory into those that are copied, with `true`, and the others.
    pub(crate) fn parts(&self, extent: Extent) -> impl Iterator<Item = (Extent, bool)> {
        let end = extent.start + extent.len;
        let mut start = extent.start;
        std::iter::from_fn(move || {
            if start >= end {
                return None;
            }
            let inside = self.large.contains(&(start / LARGE * LARGE));
            let next = self.large.iter().copied().find(|large| *large > start).unwrap_or(end);
            let stop = if inside { start / LARGE * LARGE + LARGE } else { next }.min(end);
            let part = Extent { start, len: stop - start, offset: extent.offset + (start - extent.start) };
            start = stop;
            Some((part, inside))
        })
    }

    pub(crate) fn put(&self, state: &mut Encoder) {
        state.u32(self.large.len() as u32);
        self.large.iter().for_each(|start| _ = state.u64(*start));
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
        for _ in 0..state.u32()? {
            let start = state.u64()?;
            if !within(start, LARGE, LARGE) {
                return Err(bad);
            }
            set.large.push(start);
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
        // Two large pages that are full, and a page.
        source.memory().write_slice(&vec![7; 2 * LARGE as usize], GuestAddress(LARGE)).unwrap();
        source.memory().write_obj(7_u8, GuestAddress(16 * LARGE)).unwrap();
        let file = tempfile::tempfile().unwrap();
        let (extents, _) = memory::write(source.memory(), &[], &file).unwrap();

        let machine = GuestRam::restored(&ranges, &file, &extents, &WorkingSet::default()).unwrap();
        machine.memory().write_slice(&vec![8; LARGE as usize / 2], GuestAddress(LARGE)).unwrap();
        machine.memory().write_obj(8_u8, GuestAddress(2 * LARGE + 5 * PAGE_SIZE)).unwrap();
        machine.memory().write_obj(8_u8, GuestAddress(2 * LARGE + 6 * PAGE_SIZE)).unwrap();
        let set = WorkingSet::of(machine.memory(), &extents).unwrap();
        let range = |start, pages| RamRange { start, len: pages * PAGE_SIZE };
        assert_eq!(set.large, [LARGE]);
        assert_eq!(set.written, [range(2 * LARGE + 5 * PAGE_SIZE, 2)]);

        let next = GuestRam::restored(&ranges, &file, &extents, &set).unwrap();
        for (at, byte) in
            [(LARGE, 7), (2 * LARGE - 1, 7), (2 * LARGE + 5 * PAGE_SIZE, 7), (16 * LARGE, 7), (0, 0)]
        {
            assert_eq!(next.memory().read_obj::<u8>(GuestAddress(at)).unwrap(), byte, "{at:#x}");
        }
        // Saved again, nothing of what was copied is missing.
        let again = tempfile::tempfile().unwrap();
        let (found, _) = memory::write(next.memory(), &extents, &again).unwrap();
        let last = GuestRam::restored(&ranges, &again, &found, &set).unwrap();
        assert_eq!(last.memory().read_obj::<u8>(GuestAddress(2 * LARGE - 1)).unwrap(), 7);
    }

    #[test]
    fn parts_outside_of_memory_are_refused() {
        let ranges = layout::ram_ranges(64);
        let taken = |large: &[u64], written: &[(u64, u64)]| {
            let written = written.iter().map(|(start, len)| RamRange { start: *start, len: *len }).collect();
            let set = WorkingSet { large: large.to_vec(), written };
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
