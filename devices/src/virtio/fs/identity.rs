//! By what a file is recognised when it is found again by its name.
//!
//! Device and number alone do not do: a file system gives the number of a removed file to the next one that is made,
//! and kernels before 6.13 take the time of birth from a clock of several milliseconds, so that both files can have the
//! same. The file system's handle holds a generation, which tells them apart wherever there is one. The kind is
//! compared whatever the file system is like: what was a regular file is never opened as a device or a FIFO.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use super::errno::Result;
use super::sys::{self, Birth, FileHandle};

/// What two names of one file have in common, and two files do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Device and number on the host.
    pub key: (u64, u64),
    /// S_IFMT bits of its mode.
    pub kind: u32,
    /// When it was made.
    pub birth: Birth,
    /// `None` where the file system has no handles.
    pub handle: Option<FileHandle>,
}

impl Identity {
    /// Returns what `name` under `dir` is, or `dir` itself if the name is empty. A symbolic link is not followed.
    pub fn of(dir: BorrowedFd, name: &CStr) -> Result<Identity> {
        let (key, kind, birth) = sys::identity(dir, name)?;
        Ok(Identity { key, kind, birth, handle: sys::file_handle(dir, name)? })
    }
}
