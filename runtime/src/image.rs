//! The guest's kernel and initramfs: given files, or sections of this program.
//!
//! The build appends them to the program as ELF sections, [`KERNEL_SECTION`] and [`INITRD_SECTION`], page-aligned so
//! that the VMM can map them. This module finds them by name in the section header table (System V ABI, chapter 4)
//! and does not read their contents.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use vmm::Image;

use crate::host_error::{HostError, failed_at};

pub const KERNEL_SECTION: &str = ".linux";
pub const INITRD_SECTION: &str = ".initrd";

const SELF: &str = "/proc/self/exe";
/// Bytes of an ELF64 file header.
const FILE_HEADER: usize = 64;
/// Bytes of an ELF64 section header.
const SECTION_HEADER: usize = 64;
/// Maximum number of sections of this program.
const SECTIONS_MAX: u16 = 256;
/// Maximum number of bytes of section names.
const NAMES_MAX: u64 = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A given file cannot be used, or this program's own section headers cannot be read.
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(
        "find a {what}: this program was built without one; name one with {flag} or {variable}, or build it in with \
         `cargo xtask kernel`"
    )]
    Missing { what: &'static str, flag: &'static str, variable: &'static str },
}

pub type Result<T, E = ImageError> = std::result::Result<T, E>;

/// The files that a guest boots from.
#[derive(Debug)]
pub struct Images {
    pub kernel: Image,
    pub initramfs: Image,
}

impl Images {
    /// Opens the given files, and the embedded images in place of files that are not given.
    pub fn find(kernel: Option<&Path>, initrd: Option<&Path>) -> Result<Images> {
        let embedded = match (kernel, initrd) {
            (Some(_), Some(_)) => Embedded::default(),
            _ => Embedded::find()?,
        };
        let missing = |what, flag, variable| ImageError::Missing { what, flag, variable };
        let kernel = match kernel {
            Some(path) => open("open kernel", path)?,
            None => embedded.kernel.ok_or(missing("kernel", "--kernel", "VMM_KERNEL"))?,
        };
        let initramfs = match initrd {
            Some(path) => open("open initramfs", path)?,
            None => embedded.initramfs.ok_or(missing("initramfs", "--initrd", "VMM_INITRD"))?,
        };
        Ok(Images { kernel, initramfs })
    }
}

/// The images that are embedded in this program.
#[derive(Debug, Default)]
pub struct Embedded {
    pub kernel: Option<Image>,
    pub initramfs: Option<Image>,
}

impl Embedded {
    pub fn find() -> Result<Embedded> {
        const STEP: &str = "read this program's sections from";
        let at = Path::new(SELF);
        let file = File::open(at).map_err(failed_at(STEP, at))?;
        let sections = sections(&file).map_err(failed_at(STEP, at))?;
        let part = |name: &str| -> Result<Option<Image>> {
            let Some(section) = sections.iter().find(|section| section.name == name) else { return Ok(None) };
            let file = file.try_clone().map_err(failed_at(STEP, at))?;
            let name = PathBuf::from(format!("{SELF}:{name}"));
            Ok(Some(Image { file, offset: section.offset, len: section.len, name }))
        };
        Ok(Embedded { kernel: part(KERNEL_SECTION)?, initramfs: part(INITRD_SECTION)? })
    }
}

fn open(step: &str, path: &Path) -> Result<Image, HostError> {
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
    let (metadata, file) = opened.map_err(failed_at(step, path))?;
    if !metadata.is_file() {
        return Err(failed_at(step, path)(io::Error::other("not a file")));
    }
    Ok(Image { file, offset: 0, len: metadata.len(), name: path.to_owned() })
}

/// A section with bytes in the file.
#[derive(Debug, PartialEq, Eq)]
struct Section {
    name: String,
    offset: u64,
    len: u64,
}

/// Reads the names and offsets of an ELF64 file's sections. A section outside of the file is an error.
fn sections(file: &File) -> io::Result<Vec<Section>> {
    let size = file.metadata()?.len();
    let mut header = [0; FILE_HEADER];
    file.read_exact_at(&mut header, 0)?;
    if header[..6] != *b"\x7fELF\x02\x01" {
        return Err(invalid("not a little-endian ELF64 file"));
    }
    let (offset, entry_size) = (u64_at(&header, 0x28), u16_at(&header, 0x3a));
    let (count, names_index) = (u16_at(&header, 0x3c), u16_at(&header, 0x3e));
    if offset == 0 || count == 0 {
        return Ok(Vec::new());
    }
    if usize::from(entry_size) != SECTION_HEADER || count > SECTIONS_MAX || names_index >= count {
        return Err(invalid("invalid section header table"));
    }
    let mut table = vec![0; usize::from(count) * SECTION_HEADER];
    file.read_exact_at(&mut table, offset)?;
    let headers: Vec<&[u8]> = table.chunks_exact(SECTION_HEADER).collect();
    let names = headers[usize::from(names_index)];
    let (names_offset, names_len) = (u64_at(names, 0x18), u64_at(names, 0x20));
    if names_len > NAMES_MAX {
        return Err(invalid("too many section names"));
    }
    let mut names = vec![0; names_len as usize];
    file.read_exact_at(&mut names, names_offset)?;
    // SHT_NOBITS (8) and SHT_NULL (0) have no bytes in the file.
    let with_bytes = headers.iter().filter(|header| !matches!(u32_at(header, 4), 0 | 8));
    with_bytes
        .map(|header| {
            let (offset, len) = (u64_at(header, 0x18), u64_at(header, 0x20));
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

fn u32_at(bytes: &[u8], at: usize) -> u32 {
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
    fn this_program_has_sections_and_no_kernel() {
        let sections = sections(&File::open(SELF).unwrap()).unwrap();
        assert!(sections.iter().any(|section| section.name == ".text" && section.len > 0));
        let embedded = Embedded::find().unwrap();
        assert!(embedded.kernel.is_none() && embedded.initramfs.is_none());
        let error = Images::find(None, Some(Path::new("/dev/null"))).unwrap_err().to_string();
        assert!(error.contains("--kernel") && error.contains("VMM_KERNEL"), "{error}");
    }

    #[test]
    fn a_section_is_found_by_its_name() {
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

    #[test]
    fn a_directory_and_a_missing_file_are_named() {
        let error = |path: &str| {
            let path = Path::new(path);
            let error = Images::find(Some(path), Some(path)).unwrap_err();
            format!("{:#}", anyhow::Error::from(error))
        };
        assert_eq!(error("/"), "open kernel /: not a file");
        assert_eq!(error("/nonexistent"), "open kernel /nonexistent: No such file or directory (os error 2)");
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
