//! The read position of an open directory.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::AsFd;

use super::errno::{Errno, Result};
use super::sys;

/// Size of the buffer for getdents64(2). A directory that is being read has one until its end is reached.
const BUFFER_LEN: usize = 16 << 10;
/// Bytes of `struct linux_dirent64` before the name: inode, offset, record length, type.
const HOST_HEADER: usize = 19;

/// Read position of an open directory.
#[derive(Default)]
pub struct Cursor {
    /// Records from getdents64(2). Those before `used` have been delivered.
    records: Vec<u8>,
    used: usize,
    /// Offset of the last delivered record.
    offset: u64,
    /// The end of the directory was reached.
    ended: bool,
    /// The cursor is in [`Buffers`] and may keep its records.
    keeps: bool,
    /// Undelivered records were dropped: the host's file position is past `offset`.
    lost: bool,
}

/// One directory entry of the host.
pub struct Record<'a> {
    /// Inode number on the host.
    pub ino: u64,
    /// Offset at which reading continues after this entry.
    pub offset: u64,
    /// Type as `DT_*`.
    pub kind: u8,
    pub name: &'a CStr,
    /// Length of the record in bytes.
    pub len: usize,
}

impl Cursor {
    /// Returns a cursor that continues at `offset` of a directory that was opened again.
    pub fn at(offset: u64) -> Cursor {
        Cursor { offset, lost: true, ..Cursor::default() }
    }

    /// Offset at which the guest continues.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Moves to `offset`, which is 0 or was delivered with an entry.
    pub fn seek(&mut self, file: &File, offset: u64) -> Result<()> {
        if offset == self.offset && !self.lost && (offset != 0 || !self.ended) {
            return Ok(());
        }
        let position = i64::try_from(offset).map_err(|_| Errno(libc::EINVAL))?;
        sys::lseek(file.as_fd(), position, libc::SEEK_SET)?;
        *self = Cursor { offset, keeps: self.keeps, ..Cursor::default() };
        Ok(())
    }

    /// Drops the records. Undelivered ones are read again later.
    pub(super) fn lose(&mut self) {
        self.lost |= self.used < self.records.len();
        self.records = Vec::new();
        self.used = 0;
        self.keeps = false;
    }

    /// Returns whether the cursor now has records but is not yet in [`Buffers`]. The caller then adds it there.
    pub fn begins_to_keep(&mut self) -> bool {
        let begins = self.records.capacity() != 0 && !self.keeps;
        self.keeps |= begins;
        begins
    }

    /// Size of the buffer in bytes.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.records.capacity()
    }

    /// Returns the next entry without consuming it (see [`Self::advance`]), or `None` at the end.
    pub fn peek(&mut self, file: &File) -> Result<Option<Record<'_>>> {
        if self.used == self.records.len() && !self.ended {
            self.records.resize(BUFFER_LEN, 0);
            let len =
                sys::getdents(file.as_fd(), &mut self.records).inspect_err(|_| self.records = Vec::new())?;
            self.records.truncate(len);
            self.used = 0;
            if len == 0 {
                self.ended = true;
                self.records = Vec::new();
            }
        }
        let rest = &self.records[self.used..];
        if rest.is_empty() {
            return Ok(None);
        }
        parse(rest).map(Some).ok_or(Errno(libc::EIO))
    }

    /// Consumes the entry that [`Self::peek`] has returned, whose record has `len` bytes and continues at `offset`.
    pub fn advance(&mut self, len: usize, offset: u64) {
        self.used += len;
        self.offset = offset;
    }
}

/// Parses the `struct linux_dirent64` at the front of `bytes`.
fn parse(bytes: &[u8]) -> Option<Record<'_>> {
    let number = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let len = usize::from(u16::from_ne_bytes(bytes.get(16..18)?.try_into().ok()?));
    let name = CStr::from_bytes_until_nul(bytes.get(HOST_HEADER..len)?).ok()?;
    Some(Record { ino: number(0)?, offset: number(8)?, kind: *bytes.get(18)?, name, len })
}
