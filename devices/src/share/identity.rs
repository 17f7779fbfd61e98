//! The identity of a file, by which it is recognised when it is found again by name.
//!
//! Device and inode number are not enough: a file system may give the number of a removed file to the next new file.
//! Birth times do not always distinguish the two, because kernels before 6.13 take them from a clock with a resolution
//! of milliseconds. The file system's handle contains a generation, which does, if the file system has handles. The
//! file type is always compared, so that a regular file is never reopened as a device or a FIFO.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use super::errno::Result;
use super::sys::{self, Birth, FileHandle};

/// Properties that are equal for all names of a file, and differ between files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Device and inode number on the host.
    pub key: (u64, u64),
    /// S_IFMT bits of the file's mode.
    pub kind: u32,
    /// Birth time of the file.
    pub birth: Birth,
    /// The file system's handle; `None` if the file system has no handles.
    pub handle: Option<FileHandle>,
}

impl Identity {
    /// Returns the identity of `name` in `dir`, or of `dir` itself if the name is empty. Does not follow symbolic
    /// links.
    pub fn of(dir: BorrowedFd, name: &CStr) -> Result<Identity> {
        let (key, kind, birth) = sys::identity(dir, name)?;
        Ok(Identity { key, kind, birth, handle: sys::file_handle(dir, name)? })
    }
}
