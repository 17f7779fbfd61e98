//! A file that is loaded into the guest's memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// A kernel or an initramfs: a whole file, or a part of one such as an executable.
#[derive(Debug)]
pub struct Image {
    /// File that contains the image, open for reading.
    pub file: File,
    /// Start of the image within `file`, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Name of the image in error messages.
    pub name: PathBuf,
}

impl Image {
    /// Fills `buffer` from offset `at` of the image. A read past the image's end fails with `UnexpectedEof`.
    pub fn read_exact_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.check(at, buffer.len() as u64)?;
        self.file.read_exact_at(buffer, self.offset + at)
    }

    /// Refuses a range that is not entirely inside the image.
    pub fn check(&self, at: u64, len: u64) -> io::Result<()> {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.len)
            && self.offset.checked_add(self.len).is_some_and(|end| i64::try_from(end).is_ok());
        if inside { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}
