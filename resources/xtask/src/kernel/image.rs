//! Packs a vmlinux: removes sections, symbols and filler from the linker's output.
//!
//! The linker aligns the file offsets of segments to 2 MiB, and fills gaps in the text. Filler is half of the file.
//! This module splits each PT_LOAD segment at runs of at least [`HOLE_PAGES`] filler pages. Each piece begins at a page
//! boundary of the file, so that `offset % 4096 == p_paddr % 4096`, and a VMM can map it privately. The `p_memsz` of a
//! piece covers the hole behind it, which a loader fills with zeros.

use std::ops::Range;

use anyhow::{Context, bail, ensure};

/// Bytes of a page of x86-64.
const PAGE: usize = 4096;
/// Minimum length of a removed run of filler pages. Each hole costs a segment, and a mapping in a VMM.
const HOLE_PAGES: usize = 16;
/// Maximum number of program headers, which are in the first page of the file together with the ELF header.
const SEGMENTS_MAX: usize = (PAGE - HEADER) / PROGRAM_HEADER;

// Sizes and values of the ELF-64 Object File Format, version 1.5.
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const EM_X86_64: u16 = 62;

/// A program header with the bytes of its segment.
struct Segment<'a> {
    kind: u32,
    flags: u32,
    virtual_address: u64,
    physical_address: u64,
    memory_size: u64,
    data: &'a [u8],
}

/// Packs the ELF file `elf`. The entry point and the memory that a loader fills do not change, except for filler.
pub fn pack(elf: &[u8]) -> anyhow::Result<Vec<u8>> {
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "vmlinux is not a little-endian ELF64 file");
    ensure!(field(elf, 18, 2)? == u64::from(EM_X86_64), "vmlinux is not for x86-64");
    let segments = segments(elf)?;
    let loads: Vec<&Segment> = segments.iter().filter(|segment| segment.kind == PT_LOAD).collect();
    let pieces: Vec<Segment> = loads.iter().flat_map(|segment| split(segment)).collect();
    let notes: Vec<&Segment> = segments.iter().filter(|segment| segment.kind == PT_NOTE).collect();
    let count = pieces.len() + notes.len();
    ensure!(
        !pieces.is_empty() && count <= SEGMENTS_MAX,
        "vmlinux has {count} segments: 1 to {SEGMENTS_MAX} can be packed"
    );

    let mut file = elf[..HEADER].to_vec();
    put(&mut file, 32, &(HEADER as u64).to_le_bytes()); // e_phoff
    put(&mut file, 40, &0u64.to_le_bytes()); // e_shoff
    put(&mut file, 56, &(count as u16).to_le_bytes()); // e_phnum
    put(&mut file, 60, &[0; 4]); // e_shnum, e_shstrndx
    file.resize(HEADER + count * PROGRAM_HEADER, 0);
    let mut headers = HEADER;
    let mut placed = Vec::new();
    for piece in &pieces {
        ensure!(
            piece.physical_address.is_multiple_of(PAGE as u64),
            "a segment of vmlinux begins within a page, at {:#x}",
            piece.physical_address
        );
        file.resize(file.len().next_multiple_of(PAGE), 0);
        let offset = file.len();
        placed.push((piece.physical_address, piece.data.len() as u64, offset as u64));
        file.extend_from_slice(piece.data);
        put_header(&mut file, &mut headers, piece, offset as u64);
    }
    // A VMM maps whole pages, of the last piece as well.
    file.resize(file.len().next_multiple_of(PAGE), 0);
    for note in notes {
        let offset = placed.iter().find_map(|&(start, length, offset)| {
            let inside = note.physical_address.checked_sub(start)?;
            (inside + note.data.len() as u64 <= length).then_some(offset + inside)
        });
        put_header(
            &mut file,
            &mut headers,
            note,
            offset.context("a note of vmlinux is in no PT_LOAD segment")?,
        );
    }
    Ok(file)
}

fn segments(elf: &[u8]) -> anyhow::Result<Vec<Segment<'_>>> {
    let (start, count) = (field(elf, 32, 8)?, field(elf, 56, 2)?);
    ensure!(
        field(elf, 54, 2)? == PROGRAM_HEADER as u64,
        "program headers of vmlinux do not have {PROGRAM_HEADER} bytes"
    );
    (0..count).map(|index| segment(elf, (start + index * PROGRAM_HEADER as u64) as usize)).collect()
}

fn segment(elf: &[u8], at: usize) -> anyhow::Result<Segment<'_>> {
    let (offset, size) = (field(elf, at + 8, 8)? as usize, field(elf, at + 32, 8)? as usize);
    let data = offset.checked_add(size).and_then(|end| elf.get(offset..end));
    let Some(data) = data else { bail!("vmlinux ends within its segment at {offset:#x}") };
    Ok(Segment {
        kind: field(elf, at, 4)? as u32,
        flags: field(elf, at + 4, 4)? as u32,
        virtual_address: field(elf, at + 16, 8)?,
        physical_address: field(elf, at + 24, 8)?,
        memory_size: field(elf, at + 40, 8)?,
        data,
    })
}

/// Returns the bytes of the ELF file `elf` that a loader puts at `addresses`.
pub fn bytes_at(elf: &mut [u8], addresses: Range<u64>) -> anyhow::Result<&mut [u8]> {
    let size =
        addresses.end.checked_sub(addresses.start).context("a range of vmlinux ends before it begins")?;
    let (start, count) = (field(elf, 32, 8)?, field(elf, 56, 2)?);
    for index in 0..count {
        let header = (start + index * PROGRAM_HEADER as u64) as usize;
        let segment = segment(elf, header)?;
        let inside = addresses.start.checked_sub(segment.virtual_address);
        let fits =
            |inside: &u64| inside.checked_add(size).is_some_and(|end| end <= segment.data.len() as u64);
        if let Some(inside) = inside.filter(|inside| segment.kind == PT_LOAD && fits(inside)) {
            let offset = (field(elf, header + 8, 8)? + inside) as usize;
            return Ok(&mut elf[offset..offset + size as usize]);
        }
    }
    bail!("no segment of vmlinux has {:#x}", addresses.start)
}

/// Splits `segment` at its holes.
fn split<'a>(segment: &Segment<'a>) -> Vec<Segment<'a>> {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for (index, page) in segment.data.chunks(PAGE).enumerate() {
        let (start, end) = (index * PAGE, index * PAGE + page.len());
        match ranges.last_mut() {
            _ if is_filler(page) => {}
            Some(last) if start - last.1 < HOLE_PAGES * PAGE => last.1 = end,
            _ => ranges.push((start, end)),
        }
    }
    if ranges.is_empty() {
        ranges.push((0, 0));
    }
    // The first piece begins with the segment, even if the first page is filler.
    ranges[0].0 = 0;
    let ends = ranges.iter().skip(1).map(|range| range.0 as u64).chain([segment.memory_size]);
    let piece = |(&(start, end), next): (&(usize, usize), u64)| Segment {
        kind: segment.kind,
        flags: segment.flags,
        virtual_address: segment.virtual_address + start as u64,
        physical_address: segment.physical_address + start as u64,
        memory_size: next - start as u64,
        data: &segment.data[start..end],
    };
    ranges.iter().zip(ends).map(piece).collect()
}

/// Whether `page` contains only zeros, or only `int3`, with which the linker script pads text.
fn is_filler(page: &[u8]) -> bool {
    [0x00, 0xcc].iter().any(|filler| page.iter().all(|byte| byte == filler))
}

/// Reads a little-endian number of `size` bytes at offset `at`.
fn field(bytes: &[u8], at: usize, size: usize) -> anyhow::Result<u64> {
    let slice =
        at.checked_add(size).and_then(|end| bytes.get(at..end)).context("vmlinux ends within a header")?;
    Ok(slice.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Writes the program header of `segment` at `*at`, and advances `at` past it.
fn put_header(file: &mut [u8], at: &mut usize, segment: &Segment, offset: u64) {
    let align = if segment.kind == PT_LOAD { PAGE as u64 } else { 4 };
    put(file, *at, &segment.kind.to_le_bytes());
    put(file, *at + 4, &segment.flags.to_le_bytes());
    let size = segment.data.len() as u64;
    let words = [offset, segment.virtual_address, segment.physical_address, size, segment.memory_size, align];
    for (index, word) in words.iter().enumerate() {
        put(file, *at + 8 + 8 * index, &word.to_le_bytes());
    }
    *at += PROGRAM_HEADER;
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: u64 = 0x100_0000;
    const BIAS: u64 = 0xffff_ffff_8000_0000;

    /// Returns an ELF file with segments (kind, physical address, data, memory size), each at a 64 KiB boundary.
    fn elf(parts: &[(u32, u64, &[u8], u64)]) -> Vec<u8> {
        let mut file = vec![0; HEADER + parts.len() * PROGRAM_HEADER];
        put(&mut file, 0, b"\x7fELF\x02\x01\x01");
        put(&mut file, 18, &EM_X86_64.to_le_bytes());
        put(&mut file, 24, &TEXT.to_le_bytes());
        put(&mut file, 32, &(HEADER as u64).to_le_bytes());
        put(&mut file, 54, &(PROGRAM_HEADER as u16).to_le_bytes());
        put(&mut file, 56, &(parts.len() as u16).to_le_bytes());
        let mut at = HEADER;
        for &(kind, physical_address, data, memory_size) in parts {
            file.resize(file.len().next_multiple_of(0x10000), 0);
            let offset = file.len() as u64;
            file.extend_from_slice(data);
            let virtual_address = physical_address + BIAS;
            let segment = Segment { kind, flags: 5, virtual_address, physical_address, memory_size, data };
            put_header(&mut file, &mut at, &segment, offset);
        }
        file
    }

    /// Returns the memory from TEXT on, as a loader fills it.
    fn memory(elf: &[u8], size: usize) -> Vec<u8> {
        let mut memory = vec![0; size];
        for segment in segments(elf).unwrap().iter().filter(|segment| segment.kind == PT_LOAD) {
            assert!(segment.memory_size >= segment.data.len() as u64);
            let at = (segment.physical_address - TEXT) as usize;
            memory[at..at + segment.data.len()].copy_from_slice(segment.data);
        }
        memory
    }

    #[test]
    fn packing_keeps_memory_and_entry_and_aligns_offsets() {
        let mut text = vec![0x90; 3 * PAGE + 5];
        text.resize(40 * PAGE, 0); // a hole of more than 36 pages
        text.extend_from_slice(&[0x91; 100]);
        let data = [7; 2 * PAGE];
        let source = elf(&[
            (PT_LOAD, TEXT, &text, text.len() as u64),
            (PT_LOAD, TEXT + 0x40000, &data, 5 * PAGE as u64),
        ]);
        let packed = pack(&source).unwrap();
        assert_eq!(packed.len(), 8 * PAGE);
        assert_eq!(memory(&packed, 0x50000), memory(&source, 0x50000));
        assert_eq!(field(&packed, 24, 8).unwrap(), TEXT);
        let segments = segments(&packed).unwrap();
        let extents: Vec<_> =
            segments.iter().map(|segment| (segment.physical_address - TEXT, segment.memory_size)).collect();
        assert_eq!(extents, [(0, 40 * PAGE as u64), (40 * PAGE as u64, 100), (0x40000, 5 * PAGE as u64)]);
        for index in 0..segments.len() {
            let at = HEADER + index * PROGRAM_HEADER;
            assert_eq!(field(&packed, at + 8, 8).unwrap() % PAGE as u64, 0);
            assert_eq!(field(&packed, at + 16, 8).unwrap(), field(&packed, at + 24, 8).unwrap() + BIAS);
        }
    }

    #[test]
    fn long_runs_of_int3_are_removed_and_short_ones_are_not() {
        let mut text = vec![0x90; PAGE];
        text.resize(PAGE * HOLE_PAGES, 0xcc);
        text.extend_from_slice(&[0x90; PAGE]);
        assert_eq!(
            segments(&pack(&elf(&[(PT_LOAD, TEXT, &text, text.len() as u64)])).unwrap()).unwrap().len(),
            1
        );
        text.extend_from_slice(&[0xcc; PAGE * HOLE_PAGES]);
        text.extend_from_slice(&[0x90; PAGE]);
        assert_eq!(
            segments(&pack(&elf(&[(PT_LOAD, TEXT, &text, text.len() as u64)])).unwrap()).unwrap().len(),
            2
        );
    }

    #[test]
    fn the_offset_of_a_note_follows_its_segment() {
        let mut text = vec![0x90; 2 * PAGE];
        text[PAGE + 8..PAGE + 12].copy_from_slice(b"note");
        let parts: [(u32, u64, &[u8], u64); 2] =
            [(PT_LOAD, TEXT, &text, text.len() as u64), (PT_NOTE, TEXT + PAGE as u64 + 8, b"note", 4)];
        let packed = pack(&elf(&parts)).unwrap();
        let segments = segments(&packed).unwrap();
        assert_eq!((segments[1].kind, segments[1].data), (PT_NOTE, b"note".as_slice()));
        let lost = [(PT_LOAD, TEXT, text.as_slice(), text.len() as u64), (PT_NOTE, TEXT - 8, b"note", 4)];
        assert!(pack(&elf(&lost)).is_err());
    }

    #[test]
    fn bytes_are_found_by_their_address() {
        let data: Vec<u8> = (0..100).collect();
        let mut source =
            elf(&[(PT_LOAD, TEXT, &[0x90; PAGE], PAGE as u64), (PT_LOAD, TEXT + 0x40000, &data, 200)]);
        let start = BIAS + TEXT + 0x40000;
        assert_eq!(bytes_at(&mut source, start + 90..start + 100).unwrap(), &data[90..]);
        // The last byte is not in the file.
        assert!(bytes_at(&mut source, start + 90..start + 101).is_err());
        assert!(bytes_at(&mut source, start + 1..start).is_err());
    }

    #[test]
    fn invalid_files_are_refused() {
        let good = elf(&[(PT_LOAD, TEXT, &[1; 10], 10)]);
        assert!(pack(&good).is_ok());
        assert!(pack(&good[..good.len() - 1]).is_err());
        assert!(pack(&good[..HEADER + 8]).is_err());
        assert!(pack(b"").is_err());
        assert!(pack(&elf(&[])).is_err());
        assert!(pack(&elf(&[(PT_LOAD, TEXT + 1, &[1; 10], 10)])).is_err());
        let mut other = good.clone();
        other[18] = 40;
        assert!(pack(&other).is_err());
    }
}
