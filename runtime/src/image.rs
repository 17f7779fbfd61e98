//! The guest's kernel and initramfs: given files, or sections of this program.
//!
//! The build appends them to the program as ELF sections, one for each [`Kernel`] and [`INITRD_SECTION`]. This module
//! finds them by name and does not read their contents.

use host::HostError;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use plan::vm::Kernel;
use vmm::Image;
use vmm::elf::sections;

pub const INITRD_SECTION: &str = ".initrd";

const SELF: &str = "/proc/self/exe";

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
    /// Opens the given files, and the embedded images in place of files that are not given: `embedded` of the kernels.
    pub fn find(kernel: Option<&Path>, initrd: Option<&Path>, embedded: Kernel) -> Result<Images> {
        let embedded = match (kernel, initrd) {
            (Some(_), Some(_)) => Embedded::default(),
            _ => Embedded::find(embedded)?,
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
    /// Finds the images in the running program, with the kernel `kernel`.
    pub fn find(kernel: Kernel) -> Result<Embedded> {
        const STEP: &str = "read this program's sections from";
        let at = Path::new(SELF);
        let file = File::open(at).map_err(HostError::at(STEP, at))?;
        let sections = sections(&file).map_err(HostError::at(STEP, at))?;
        let part = |name: &str| -> Result<Option<Image>> {
            let Some(section) = sections.iter().find(|section| section.name == name) else { return Ok(None) };
            let file = file.try_clone().map_err(HostError::at(STEP, at))?;
            let name = PathBuf::from(format!("{SELF}:{name}"));
            Ok(Some(Image { file, offset: section.offset, len: section.len, name }))
        };
        Ok(Embedded { kernel: part(section_of(kernel))?, initramfs: part(INITRD_SECTION)? })
    }
}

/// Returns the name of the section with the kernel `kernel`.
fn section_of(kernel: Kernel) -> &'static str {
    match kernel {
        Kernel::Base => ".linux",
        Kernel::Full => ".linux-full",
    }
}

fn open(step: &'static str, path: &Path) -> Result<Image, HostError> {
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
    let (metadata, file) = opened.map_err(HostError::at(step, path))?;
    if !metadata.is_file() {
        return Err(HostError::at(step, path)(io::Error::other("not a file")));
    }
    Ok(Image { file, offset: 0, len: metadata.len(), name: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_program_has_no_embedded_kernel() {
        let embedded = Embedded::find(Kernel::Base).unwrap();
        assert!(embedded.kernel.is_none() && embedded.initramfs.is_none());
        let error = Images::find(None, Some(Path::new("/dev/null")), Kernel::Full).unwrap_err().to_string();
        assert!(error.contains("--kernel") && error.contains("VMM_KERNEL"), "{error}");
    }

    #[test]
    fn a_directory_and_a_missing_file_are_named() {
        let error = |path: &str| {
            let path = Path::new(path);
            let error = Images::find(Some(path), Some(path), Kernel::Base).unwrap_err();
            format!("{:#}", anyhow::Error::from(error))
        };
        assert_eq!(error("/"), "open kernel /: not a file");
        assert_eq!(error("/nonexistent"), "open kernel /nonexistent: No such file or directory (os error 2)");
    }
}
