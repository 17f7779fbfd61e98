//! Encoding of 9P2000.L (Linux `include/net/9p/9p.h`; the message list of diod's protocol description).
//!
//! A message is `size[4] type[1] tag[2]` followed by its fields. All numbers are little-endian. A string is `len[2]`
//! and its bytes without a NUL; a qid is `type[1] version[4] path[8]`.

use std::ffi::CString;

use crate::share::errno::{Errno, Result};
use crate::share::tree::MAX_NAME;

/// Length of a message's header, `size[4] type[1] tag[2]`.
pub const HEADER: usize = 7;
/// Length of everything before the data in replies to READ and READDIR: the header and `count[4]`.
pub const DATA_HEADER: usize = HEADER + 4;
/// Length of everything before the data of a WRITE: the header and `fid[4] offset[8] count[4]`.
pub const WRITE_HEADER: usize = HEADER + 16;
/// Length of a READDIR entry without its name: `qid[13] offset[8] type[1] len[2]`.
pub const DIRENT_HEADER: usize = 24;
/// P9_DOTL_SYNC: the bit of O_SYNC without O_DSYNC. All other flags have the values of Linux on x86.
pub const DOTL_SYNC: u32 = 0o4_000_000;
/// The value that means "no fid" (NOFID): ATTACH without authentication.
pub const NO_FID: u32 = u32::MAX;
/// Limit of names in one WALK (MAXWELEM).
pub const MAX_WALK: u16 = 16;
/// Limit of the length of strings other than names: the target of a symbolic link.
const MAX_STRING: usize = 4095;

/// Message types of requests, and of the error reply. A reply's type is the request's plus 1.
pub mod kind {
    pub const RLERROR: u8 = 7;
    pub const STATFS: u8 = 8;
    pub const LOPEN: u8 = 12;
    pub const LCREATE: u8 = 14;
    pub const SYMLINK: u8 = 16;
    pub const MKNOD: u8 = 18;
    pub const RENAME: u8 = 20;
    pub const READLINK: u8 = 22;
    pub const GETATTR: u8 = 24;
    pub const SETATTR: u8 = 26;
    pub const XATTRWALK: u8 = 30;
    pub const XATTRCREATE: u8 = 32;
    pub const READDIR: u8 = 40;
    pub const FSYNC: u8 = 50;
    pub const LOCK: u8 = 52;
    pub const GETLOCK: u8 = 54;
    pub const LINK: u8 = 70;
    pub const MKDIR: u8 = 72;
    pub const RENAMEAT: u8 = 74;
    pub const UNLINKAT: u8 = 76;
    pub const VERSION: u8 = 100;
    pub const AUTH: u8 = 102;
    pub const ATTACH: u8 = 104;
    pub const FLUSH: u8 = 108;
    pub const WALK: u8 = 110;
    pub const READ: u8 = 116;
    pub const WRITE: u8 = 118;
    pub const CLUNK: u8 = 120;
    pub const REMOVE: u8 = 122;
}

/// Flags of the attributes that SETATTR changes (`P9_ATTR_*`).
pub mod set {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const ATIME_SET: u32 = 1 << 7;
    pub const MTIME_SET: u32 = 1 << 8;
}

/// `Rgetattr::valid`: all fields of stat(2) (P9_STATS_BASIC).
pub const STATS_BASIC: u64 = 0x7ff;
/// `Rstatfs::type` (V9FS_MAGIC).
pub const STATFS_TYPE: u32 = 0x0102_1997;
/// Lock type that means "not locked" (P9_LOCK_TYPE_UNLCK).
pub const UNLOCKED: u8 = 2;
/// `Rlock::status` of a lock that was acquired.
pub const LOCK_SUCCESS: u8 = 0;
/// `Rlock::status` of a lock that the server cannot acquire.
pub const LOCK_ERROR: u8 = 2;

/// Type and number by which the guest identifies a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qid {
    /// QTDIR, QTSYMLINK or QTFILE.
    pub kind: u8,
    /// Number of the file, unique in this server.
    pub path: u64,
}

impl Qid {
    /// Returns the qid type of a file with this mode.
    pub fn kind_of(mode: u32) -> u8 {
        match mode & libc::S_IFMT {
            libc::S_IFDIR => 0x80,
            libc::S_IFLNK => 0x02,
            _ => 0,
        }
    }

    /// Appends the encoded qid. Version 0 means that the version is not reliable; newer guests then do not cache the
    /// file's data.
    pub fn put(self, reply: &mut Vec<u8>) {
        reply.push(self.kind);
        reply.extend_from_slice(&[0; 4]);
        reply.extend_from_slice(&self.path.to_le_bytes());
    }
}

/// The answer to a malformed message.
pub const MALFORMED: Errno = Errno(libc::EPROTO);

/// Reads the fields of a message in order.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(len).ok_or(MALFORMED)?;
        self.0 = rest;
        Ok(field)
    }

    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    pub fn u16(&mut self) -> Result<u16> {
        self.take(2).map(|b| u16::from_le_bytes([b[0], b[1]]))
    }

    pub fn u32(&mut self) -> Result<u32> {
        self.take(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    pub fn u64(&mut self) -> Result<u64> {
        let (low, high) = (self.u32()?, self.u32()?);
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    /// Reads a string as arbitrary bytes.
    pub fn bytes(&mut self) -> Result<&'a [u8]> {
        let len = self.u16()?.into();
        self.take(len)
    }

    /// Reads a string of at most [`MAX_STRING`] bytes without a NUL.
    pub fn string(&mut self) -> Result<CString> {
        match self.bytes()? {
            bytes if bytes.len() > MAX_STRING => Err(Errno(libc::ENAMETOOLONG)),
            bytes => CString::new(bytes).map_err(|_| Errno(libc::EINVAL)),
        }
    }

    /// Reads a string that is not too long for a name. [`crate::share::names::Name`] checks that it is a single
    /// component.
    pub fn name(&mut self) -> Result<CString> {
        match self.string()? {
            name if name.count_bytes() > MAX_NAME => Err(Errno(libc::ENAMETOOLONG)),
            name => Ok(name),
        }
    }
}

/// Appends a string.
pub fn put_bytes(reply: &mut Vec<u8>, bytes: &[u8]) {
    // The server has no longer strings: only names, and strings that it received.
    let len = bytes.len().min(u16::MAX.into());
    reply.extend_from_slice(&(len as u16).to_le_bytes());
    reply.extend_from_slice(&bytes[..len]);
}
