//! The identity of a file, by which it is recognised when it is found again by name.
//!
//! Device and inode number are not enough: a file system may give the number of a removed file to the next new file.
//! Birth times do not always distinguish the two, because kernels before 6.13 take them from a clock with a resolution
//! of milliseconds. The file system's handle contains a generation, which does, if the file system has handles. The
//! file type is always compared, so that a regular file is never reopened as a device or a FIFO.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use super::errno::Result as SysResult;
use super::sys::{self, Birth, FileHandle};
use crate::{Decoder, Encoder, StateError};

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
    pub fn of(dir: BorrowedFd, name: &CStr) -> SysResult<Identity> {
        let (key, kind, birth) = sys::identity(dir, name)?;
        Ok(Identity { key, kind, birth, handle: sys::file_handle(dir, name)? })
    }

    /// Writes the identity as plain data.
    pub fn put(&self, state: &mut Encoder) {
        state.u64(self.key.0).u64(self.key.1).u32(self.kind);
        let (seconds, nanoseconds) = self.birth.unwrap_or_default();
        state.u8(self.birth.is_some().into()).u64(seconds as u64).u32(nanoseconds);
        let (kind, bytes) = self.handle.as_ref().map_or((0, &[][..]), |handle| (handle.0, &handle.1[..]));
        state.u8(self.handle.is_some().into()).u32(kind as u32).bytes(bytes);
    }

    /// Reads what [`put`](Self::put) wrote.
    pub fn take(state: &mut Decoder) -> Result<Identity, StateError> {
        let (key, kind) = ((state.u64()?, state.u64()?), state.u32()?);
        let (known, seconds, nanoseconds) = (state.u8()?, state.u64()? as i64, state.u32()?);
        let (has, handle, bytes) = (state.u8()?, state.u32()? as i32, state.bytes()?);
        if bytes.len() > sys::MAX_HANDLE || kind & !libc::S_IFMT != 0 {
            return Err(StateError::Damaged("a file's identity"));
        }
        let birth = (known != 0).then_some((seconds, nanoseconds));
        Ok(Identity { key, kind, birth, handle: (has != 0).then(|| FileHandle(handle, bytes.into())) })
    }
}
