//! Headers of ELF64 files (System V ABI, "Object Files" and "Program Loading").
//!
//! The loader reads the program headers of a kernel. The program `vmm` finds the kernel and the initramfs that it
//! contains by their section names.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// First bytes of every ELF file.
pub(crate) const MAGIC: [u8; 4] = *b"\x7fELF";
/// `e_machine` of x86-64.
pub(crate) const MACHINE_X86_64: u16 = 62;
/// Bytes of the file header.
pub(crate) const HEADER_LEN: usize = 64;

/// `EI_CLASS`, 64 bits, and `EI_DATA`, little-endian.
const ELF64_LITTLE_ENDIAN: [u8; 2] = [2, 1];
/// Bytes of a program header.
const PROGRAM_HEADER_LEN: usize = 56;
/// Bytes of a section header.
const SECTION_HEADER_LEN: usize = 64;
/// Section types without bytes in the file.
const SHT_NULL: u32 = 0;
const SHT_NOBITS: u32 = 8;
/// Maximum number of sections.
const SECTIONS_MAX: u16 = 256;
/// Maximum number of bytes of section names.
const NAMES_MAX: u64 = 64 << 10;

/// A file header.
pub(crate) struct Header {
    pub machine: u16,
    /// Address of the entry point.
    pub entry: u64,
    pub program_headers: Table,
    section_headers: Table,
    /// Index of the section with the names of sections.
    names_index: u16,
}

/// Position of the program headers or section headers in a file.
pub(crate) struct Table {
    /// Offset in the file.
    pub at: u64,
    entries: u16,
    entry_len: u16,
}

/// A program header.
pub(crate) struct ProgramHeader {
    pub kind: u32,
    /// Offset of the segment in the file.
    pub at: u64,
    /// Length of the segment in the file.
    pub len: u64,
    pub virtual_address: u64,
    pub physical_address: u64,
    pub memory_len: u64,
}

/// A section with bytes in the file.
#[derive(Debug, PartialEq, Eq)]
pub struct Section {
    /// Name of the section, such as `.text`.
    pub name: String,
    /// Offset in the file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Header {
    /// Parses a file header. Returns `None` if the file is not a little-endian ELF64 file.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Option<Header> {
        if bytes[..4] != MAGIC || bytes[4..6] != ELF64_LITTLE_ENDIAN {
            return None;
        }
        let table = |at, entry_len, entries| Table {
            at: u64_at(bytes, at),
            entries: u16_at(bytes, entries),
            entry_len: u16_at(bytes, entry_len),
        };
        Some(Header {
            machine: u16_at(bytes, 18),
            entry: u64_at(bytes, 24),
            program_headers: table(32, 54, 56),
            section_headers: table(40, 58, 60),
            names_index: u16_at(bytes, 62),
        })
    }
}

impl Table {
    /// Returns a buffer for 1 to `max` program headers. Returns `None` if their number or size is another one.
    pub fn program_headers_buffer(&self, max: u16) -> Option<Vec<u8>> {
        self.buffer(PROGRAM_HEADER_LEN, max)
    }

    fn buffer(&self, entry_len: usize, max: u16) -> Option<Vec<u8>> {
        let is_valid = usize::from(self.entry_len) == entry_len && (1..=max).contains(&self.entries);
        is_valid.then(|| vec![0; usize::from(self.entries) * entry_len])
    }
}

impl ProgramHeader {
    /// Parses the bytes of a table of program headers.
    pub fn parse_all(table: &[u8]) -> impl Iterator<Item = ProgramHeader> {
        table.chunks_exact(PROGRAM_HEADER_LEN).map(|header| ProgramHeader {
            kind: u32_at(header, 0),
            at: u64_at(header, 8),
            virtual_address: u64_at(header, 16),
            physical_address: u64_at(header, 24),
            len: u64_at(header, 32),
            memory_len: u64_at(header, 40),
        })
    }
}

/// Reads the names and positions of an ELF64 file's sections, not their contents. A section outside of the file is an
/// error.
pub fn sections(file: &File) -> io::Result<Vec<Section>> {
    let size = file.metadata()?.len();
    let mut header = [0; HEADER_LEN];
    file.read_exact_at(&mut header, 0)?;
    let header = Header::parse(&header).ok_or_else(|| invalid("not a little-endian ELF64 file"))?;
    let table = &header.section_headers;
    if table.at == 0 || table.entries == 0 {
        return Ok(Vec::new());
    }
    let buffer = table.buffer(SECTION_HEADER_LEN, SECTIONS_MAX);
    let mut buffer = buffer.ok_or_else(|| invalid("invalid section header table"))?;
    file.read_exact_at(&mut buffer, table.at)?;
    let headers: Vec<&[u8]> = buffer.chunks_exact(SECTION_HEADER_LEN).collect();
    let names = headers.get(usize::from(header.names_index));
    let names = names.ok_or_else(|| invalid("invalid index of the section names"))?;
    let (names_offset, names_len) = (u64_at(names, 24), u64_at(names, 32));
    if names_len > NAMES_MAX {
        return Err(invalid("too many section names"));
    }
    let mut names = vec![0; names_len as usize];
    file.read_exact_at(&mut names, names_offset)?;
    let with_bytes = headers.iter().filter(|header| !matches!(u32_at(header, 4), SHT_NULL | SHT_NOBITS));
    with_bytes
        .map(|header| {
            let (offset, len) = (u64_at(header, 24), u64_at(header, 32));
            if offset.checked_add(len).is_none_or(|end| end > size) {
                return Err(invalid("a section outside of the file"));
            }
            let name = names.get(u32_at(header, 0) as usize..).unwrap_or_default();
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            Ok(Section { name: String::from_utf8_lossy(name).into_owned(), offset, len })
        })
        .collect()
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn this_program_has_a_section_with_its_code() {
        let sections = sections(&File::open("/proc/self/exe").unwrap()).unwrap();
        assert!(sections.iter().any(|section| section.name == ".text" && section.len > 0));
    }

    #[test]
    fn a_section_has_its_name_and_position() {
        let mut elf = vec![0; 0x2000];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[0x28..0x30].copy_from_slice(&0x100_u64.to_le_bytes());
        elf[0x3a..0x40].copy_from_slice(&[64, 0, 2, 0, 0, 0]);
        // Section 0: the names, at 0x200; section 1: named `.linux`, 0x1000 bytes at 0x1000.
        elf[0x104] = 3;
        elf[0x118..0x128].copy_from_slice(&[0, 2, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        elf[0x200..0x209].copy_from_slice(b"\0.linux\0\0");
        elf[0x140..0x148].copy_from_slice(&[1, 0, 0, 0, 1, 0, 0, 0]);
        elf[0x158..0x168].copy_from_slice(&[0, 16, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0]);
        let found = sections(&file_of(&elf)).unwrap();
        assert_eq!(found[1], Section { name: ".linux".into(), offset: 0x1000, len: 0x1000 });
        assert!(sections(&file_of(&elf[..0x1fff])).is_err());
        assert!(sections(&file_of(&elf[..0x150])).is_err());
    }

    proptest! {
        #[test]
        fn any_headers_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 64..1024), small: bool) {
            bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
            if small {
                bytes[0x28..0x30].copy_from_slice(&64_u64.to_le_bytes());
                bytes[0x3a..0x3c].copy_from_slice(&[64, 0]);
                bytes[0x3d] = 0;
                bytes[0x3f] = 0;
            }
            let _ = sections(&file_of(&bytes));
        }
    }
}
