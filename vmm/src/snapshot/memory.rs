//! The memory of a saved machine: a file with the pages that are not zero.
//!
//! Each large page of guest memory that has such pages has its place in the file, at a multiple of a large page. So the host can
//! map a large page of the file, if it has one in its cache, as one of the guest. Zero pages are holes of the file.

use std::fs::File;
use std::hash::Hasher;
use std::io;
use std::os::unix::fs::FileExt;

use devices::{Decoder, Encoder, StateError};
use twox_hash::XxHash64;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

use super::extent::{Extent, LARGE};
use crate::layout::{PAGE_SIZE, RamRange};

/// Seed of all checksums.
pub const CHECKSUM_SEED: u64 = 0;
/// Pages that are looked at in one go.
const BATCH: usize = 512;
/// Zero pages between two others that are mapped from the file with them, because each gap splits the mapping of the file.
const GAP_MAX: u64 = 64;
/// Limit of parts of a file: a process has at most 65,530 mappings.
pub const EXTENTS_MAX: usize = 16 << 10;

/// Writes `memory`, which nobody changes, to the empty `file`. `pages` is this process's /proc/self/pagemap; without it, all
/// pages are looked at. `mapped` are the parts that were themselves mapped from a file. Returns the parts in the order of their addresses, and the
/// checksum of the file, which was read back.
pub fn write(
    memory: &GuestMemoryMmap,
    mapped: &[Extent],
    (file, pages): (&File, Option<&File>),
) -> io::Result<(Vec<Extent>, u64)> {
    let mut writer = Writer {
        file,
        mapped,
        extents: Vec::new(),
        places: 0,
        end: 0,
        sum: XxHash64::with_seed(CHECKSUM_SEED),
    };
    for region in memory.iter() {
        writer.region(memory, pages, region.start_addr().0, region.len(), region.as_ptr() as u64)?;
    }
    let Writer { extents, end, sum, .. } = writer;
    if extents.len() > EXTENTS_MAX {
        return Err(io::Error::other("the guest's memory has too many parts"));
    }
    let written = sum.finish();
    if checksum(file)? != (end, written) {
        return Err(io::Error::other("the file has not what was written"));
    }
    Ok((extents, written))
}

/// Returns the length and the checksum of a file with a machine's memory.
pub fn checksum(file: &File) -> io::Result<(u64, u64)> {
    let (mut sum, mut at) = (XxHash64::with_seed(CHECKSUM_SEED), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read_at(&mut buffer, at)? {
            0 => return Ok((at, sum.finish())),
            count => {
                sum.write(&buffer[..count]);
                at += count as u64;
            }
        }
    }
}

struct Writer<'a> {
    file: &'a File,
    mapped: &'a [Extent],
    extents: Vec<Extent>,
    /// Number of large pages that have a place.
    places: u64,
    /// Length of the file.
    end: u64,
    sum: XxHash64,
}

impl Writer<'_> {
    fn region(
        &mut self,
        memory: &GuestMemoryMmap,
        pages: Option<&File>,
        start: u64,
        len: u64,
        host: u64,
    ) -> io::Result<()> {
        let mut entries = [0; 8 * BATCH];
        let mut page = [0; PAGE_SIZE as usize];
        for at in (0..len).step_by(BATCH * PAGE_SIZE as usize) {
            let count = ((len - at) / PAGE_SIZE).min(BATCH as u64) as usize;
            match pages {
                Some(pages) => pages.read_exact_at(&mut entries[..8 * count], (host + at) / PAGE_SIZE * 8)?,
                None => entries.fill(0xff),
            }
            for (n, entry) in entries[..8 * count].chunks_exact(8).enumerate() {
                let addr = start + at + n as u64 * PAGE_SIZE;
                // proc_pid_pagemap(5): bit 63 is "present", bit 62 "swapped". Other pages were never touched, and are zero
                // unless they are a file's.
                if entry[7] >> 6 == 0 && !self.is_mapped(addr) {
                    continue;
                }
                memory.read_slice(&mut page, GuestAddress(addr)).map_err(io::Error::other)?;
                if page.iter().any(|byte| *byte != 0) {
                    self.page(addr, &page)?;
                }
            }
        }
        Ok(())
    }

    fn is_mapped(&self, addr: u64) -> bool {
        let before = self.mapped.partition_point(|extent| extent.start <= addr);
        before.checked_sub(1).is_some_and(|at| addr - self.mapped[at].start < self.mapped[at].len)
    }

    fn page(&mut self, addr: u64, page: &[u8]) -> io::Result<()> {
        let is_placed =
            self.extents.last().is_some_and(|last| (last.start + last.len - 1) / LARGE == addr / LARGE);
        self.places += u64::from(!is_placed);
        let offset = (self.places - 1) * LARGE + addr % LARGE;
        match self.extents.last_mut() {
            Some(last)
                if addr - (last.start + last.len) <= GAP_MAX * PAGE_SIZE
                    && offset - last.offset == addr - last.start =>
            {
                last.len = addr + PAGE_SIZE - last.start;
            }
            _ => self.extents.push(Extent { start: addr, len: PAGE_SIZE, offset }),
        }
        for _ in (self.end..offset).step_by(PAGE_SIZE as usize) {
            self.sum.write(&[0; PAGE_SIZE as usize]);
        }
        self.file.write_all_at(page, offset)?;
        self.sum.write(page);
        self.end = offset + PAGE_SIZE;
        Ok(())
    }
}

/// Writes the parts as plain data.
pub fn put(extents: &[Extent], state: &mut Encoder) {
    state.u32(extents.len() as u32);
    for Extent { start, len, offset } in extents {
        state.u64(*start).u64(*len).u64(*offset);
    }
}

/// Reads what [`put`] wrote. The parts are whole pages within `ranges` and the first `file_len` bytes of the file.
pub fn take(state: &mut Decoder, ranges: &[RamRange], file_len: u64) -> Result<Vec<Extent>, StateError> {
    let count = state.u32()? as usize;
    if count > EXTENTS_MAX {
        return Err(StateError::Damaged("too many parts of memory"));
    }
    let mut extents = Vec::with_capacity(count);
    for _ in 0..count {
        let extent = Extent { start: state.u64()?, len: state.u64()?, offset: state.u64()? };
        let within = |from: u64, to: u64, start: u64| {
            start >= from && start.checked_add(extent.len).is_some_and(|end| end <= to)
        };
        let whole = [extent.start, extent.len, extent.offset].iter().all(|n| n.is_multiple_of(PAGE_SIZE));
        if !whole
            || extent.len == 0
            || extent.offset % LARGE != extent.start % LARGE
            || !within(0, file_len, extent.offset)
            || !ranges.iter().any(|range| within(range.start, range.end(), extent.start))
        {
            return Err(StateError::Damaged("a part of memory is outside of it"));
        }
        if extents.last().is_some_and(|last: &Extent| extent.start - last.start.min(extent.start) < last.len)
        {
            return Err(StateError::Damaged("parts of memory are not in order"));
        }
        extents.push(extent);
    }
    Ok(extents)
}

#[cfg(test)]
mod tests;
