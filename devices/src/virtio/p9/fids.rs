//! The fids of one session: the guest's numbers for files, open or not.

use std::collections::HashMap;
use std::ffi::CString;

use crate::share::errno::{Errno, Result};

/// Limit of fids in a session. Linux has one for each name in use and each open file. A fid that will set an extended
/// attribute also holds the attribute's name, of at most 255 bytes.
pub const MAX_FIDS: usize = 1 << 18;
/// Limit of bytes of extended attributes that are being read or written, for all fids together.
pub const MAX_XATTR_BYTES: usize = 4 << 20;

/// State of a fid.
#[derive(Debug)]
pub enum Open {
    /// Not open.
    No,
    /// An open file: its number in the share and its open(2) flags.
    File { fh: u64, flags: u32 },
    /// An open directory.
    Dir { fh: u64 },
    /// The value of an extended attribute, or the list of names, for reading.
    XattrRead(Vec<u8>),
    /// An extended attribute that CLUNK sets after `size` bytes have been written.
    XattrWrite { name: CString, size: usize, flags: u32, value: Vec<u8> },
}

impl Open {
    /// Bytes of an extended attribute that the fid keeps, or may keep later.
    fn xattr_bytes(&self) -> usize {
        match self {
            Open::XattrRead(value) => value.len(),
            Open::XattrWrite { size, .. } => *size,
            _ => 0,
        }
    }
}

/// One fid. It holds one lookup of its node.
#[derive(Debug)]
pub struct Fid {
    /// Number of the node in the share.
    pub node: u64,
    /// The guest's user that attached. Files created through the fid belong to this user.
    pub user: u32,
    /// State of the fid.
    pub open: Open,
}

/// All fids by number.
#[derive(Default)]
pub struct Fids {
    known: HashMap<u32, Fid>,
    xattr_bytes: usize,
}

impl Fids {
    pub fn get(&self, fid: u32) -> Result<&Fid> {
        self.known.get(&fid).ok_or(Errno(libc::EBADF))
    }

    /// Refuses a number that is in use, and any number at the limit of fids.
    pub fn check_free(&self, fid: u32) -> Result<()> {
        if fid == super::wire::NO_FID || self.known.contains_key(&fid) {
            return Err(Errno(libc::EBADF));
        }
        if self.known.len() >= MAX_FIDS { Err(Errno(libc::ENFILE)) } else { Ok(()) }
    }

    /// Adds a fid with a number that [`Self::check_free`] has accepted.
    pub fn insert(&mut self, fid: u32, node: u64, user: u32) {
        self.known.insert(fid, Fid { node, user, open: Open::No });
    }

    /// Changes the state of a fid.
    pub fn set_open(&mut self, fid: u32, open: Open) -> Result<()> {
        let known = self.known.get_mut(&fid).ok_or(Errno(libc::EBADF))?;
        let bytes = self.xattr_bytes - known.open.xattr_bytes() + open.xattr_bytes();
        if bytes > MAX_XATTR_BYTES {
            return Err(Errno(libc::ENOSPC));
        }
        self.xattr_bytes = bytes;
        known.open = open;
        Ok(())
    }

    /// Changes the node of a fid. Returns the previous node.
    pub fn set_node(&mut self, fid: u32, node: u64) -> Result<u64> {
        let known = self.known.get_mut(&fid).ok_or(Errno(libc::EBADF))?;
        Ok(std::mem::replace(&mut known.node, node))
    }

    /// Appends bytes to an extended attribute. They must be in order, and not exceed the announced size.
    pub fn write_xattr(&mut self, fid: u32, offset: u64, data: &[u8]) -> Result<()> {
        match self.known.get_mut(&fid).map(|known| &mut known.open) {
            Some(Open::XattrWrite { size, value, .. }) => {
                if offset != value.len() as u64 || data.len() > *size - value.len() {
                    return Err(Errno(libc::EINVAL));
                }
                value.extend_from_slice(data);
                Ok(())
            }
            _ => Err(Errno(libc::EBADF)),
        }
    }

    pub fn remove(&mut self, fid: u32) -> Result<Fid> {
        let known = self.known.remove(&fid).ok_or(Errno(libc::EBADF))?;
        self.xattr_bytes -= known.open.xattr_bytes();
        Ok(known)
    }

    /// Removes all fids, when the guest starts a new session.
    pub fn clear(&mut self) {
        *self = Fids::default();
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fids_have_an_end() {
        let mut fids = Fids::default();
        for fid in 0..MAX_FIDS as u32 {
            fids.check_free(fid).unwrap();
            fids.insert(fid, 1, 0);
        }
        let next = MAX_FIDS as u32;
        assert_eq!(fids.check_free(next), Err(Errno(libc::ENFILE)));
        fids.remove(7).unwrap();
        fids.check_free(next).unwrap();
    }
}
