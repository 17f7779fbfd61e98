//! ELF kernels: `vmlinux`, and kernels with a PVH entry.
//!
//! System V ABI, "Object Files" and "Program Loading"; Linux's e_entry is the physical address of startup_64
//! (arch/x86/kernel/vmlinux.lds.S). PVH: Xen public/elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY.

use super::{Entry, Kernel, Refusal, Segment};
use crate::Image;
use crate::elf::{HEADER_LEN, Header, MACHINE_X86_64, ProgramHeader, u32_at};

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Limit of program headers; Linux has about five.
const PROGRAM_HEADERS_MAX: u16 = 64;
/// Limit of bytes of a note segment that are searched; Linux's has a few hundred.
const NOTES_MAX: u64 = 64 << 10;
/// Type and name of the note that contains the PVH entry.
const PHYS32_ENTRY: u32 = 18;
const NOTE_NAME: &[u8] = b"Xen\0";
/// Start of the upper half of the virtual address space, where kernels are linked.
const KERNEL_HALF: u64 = 1 << 63;

/// Reads the headers of an ELF kernel.
pub(super) fn parse(image: &Image) -> Result<Kernel, Refusal> {
    let mut header = [0; HEADER_LEN];
    image.read_exact_at(0, &mut header)?;
    let header = Header::parse(&header).filter(|header| header.machine == MACHINE_X86_64);
    let header = header.ok_or(Refusal::Not("it is an ELF file, but not for x86-64"))?;
    let table = header.program_headers.program_headers_buffer(PROGRAM_HEADERS_MAX);
    let Some(mut table) = table else {
        return Err(Refusal::Not("its ELF program headers are missing, too many or of the wrong size"));
    };
    image.read_exact_at(header.program_headers.at, &mut table)?;

    let mut segments = Vec::new();
    let mut in_kernel_half = false;
    let mut pvh = None;
    for program in ProgramHeader::parse_all(&table) {
        let segment = Segment {
            at: program.at,
            len: program.len,
            addr: program.physical_address,
            memory_len: program.memory_len,
        };
        match program.kind {
            PT_LOAD if segment.memory_len > 0 => {
                in_kernel_half |= program.virtual_address >= KERNEL_HALF;
                segments.push(segment);
            }
            PT_NOTE if pvh.is_none() => pvh = pvh_entry(image, &segment)?,
            _ => {}
        }
    }
    let entry = entry(&segments, in_kernel_half, header.entry, pvh)?;
    let end = segments.iter().map(|s| s.addr.saturating_add(s.memory_len)).max().unwrap_or(0);
    Ok(Kernel { entry, segments, end, setup: None })
}

/// Chooses the 64-bit entry if there is one, else the PVH entry.
fn entry(segments: &[Segment], in_kernel_half: bool, start: u64, pvh: Option<u64>) -> Result<Entry, Refusal> {
    let loaded = |addr| segments.iter().any(|s| (s.addr..s.addr.saturating_add(s.len)).contains(&addr));
    match pvh {
        _ if in_kernel_half && loaded(start) => Ok(Entry::Linux64(start)),
        Some(addr) if loaded(addr) => Ok(Entry::Pvh(addr)),
        Some(_) => Err(Refusal::Not("its PVH entry is not in the file")),
        None if !in_kernel_half => Err(Refusal::Not("it is a user-space program")),
        None => Err(Refusal::Not("it has neither a 64-bit entry nor a PVH entry")),
    }
}

/// Searches a note segment for the PVH entry (ELF notes: name length, data length, type, name, data; each padded to
/// 4 bytes).
fn pvh_entry(image: &Image, notes: &Segment) -> Result<Option<u64>, Refusal> {
    let mut bytes = vec![0; notes.len.min(NOTES_MAX) as usize];
    image.read_exact_at(notes.at, &mut bytes)?;
    let mut rest = &bytes[..];
    while rest.len() >= 12 {
        let padded = |at| (u32_at(rest, at) as usize).checked_next_multiple_of(4);
        let (Some(name_len), Some(data_len)) = (padded(0), padded(4)) else { break };
        let Some((note, next)) = name_len
            .checked_add(data_len)
            .and_then(|n| n.checked_add(12))
            .and_then(|n| rest.split_at_checked(n))
        else {
            break;
        };
        let (name, data) = note[12..].split_at(name_len);
        if u32_at(note, 8) == PHYS32_ENTRY && name == NOTE_NAME && data.len() >= 4 {
            return Ok(Some(u64::from(u32_at(data, 0))));
        }
        rest = next;
    }
    Ok(None)
}
