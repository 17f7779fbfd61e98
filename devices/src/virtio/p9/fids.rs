//! The fids of one session: the guest's numbers for files, open or not.

use std::collections::HashMap;
use std::ffi::CString;

use crate::virtio::fs::errno::{Errno, Result};

/// The most fids of a session. Linux has one for each name in use and each open file. One that is to take an extended
/// attribute has the name of that, too, of at most 255 bytes.
pub const MAX_FIDS: usize = 1 << 18;
/// The most bytes of extended attributes that are on their way, of all fids together.
pub const MAX_XATTR_BYTES: usize = 4 << 20;

/// What a fid was opened for.
#[derive(Debug)]
pub enum Open {
    /// Nothing yet.
    No,
    /// A file, with the flags of its open(2); the number is the file server's for it.
    File { fh: u64, flags: u32 },
    /// A directory.
    Dir { fh: u64 },
    /// An extended attribute's value, or the list of their names, to be read.
    XattrRead(Vec<u8>),
    /// An extended attribute, to be set by CLUNK once `size` bytes have come.
    XattrWrite { name: CString, size: usize, flags: u32, value: Vec<u8> },
}

impl Open {
    /// Bytes of an extended attribute that it keeps, or may come to keep.
    fn xattr_bytes(&self) -> usize {
        match self {
            Open::XattrRead(value) => value.len(),
            Open::XattrWrite { size, .. } => *size,
            _ => 0,
        }
    }
}

/// One fid. It holds a lookup of its node.
#[derive(Debug)]
pub struct Fid {
    /// The inode's number in the file server.
    pub node: u64,
    /// The guest's user that attached: to whom belongs what is made through it.
    pub user: u32,
    /// What it was opened for.
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

    /// Refuses a number that is taken, and one more than there may be.
    pub fn check_free(&self, fid: u32) -> Result<()> {
        if fid == super::wire::NO_FID || self.known.contains_key(&fid) {
            return Err(Errno(libc::EBADF));
        }
        if self.known.len() >= MAX_FIDS { Err(Errno(libc::ENFILE)) } else { Ok(()) }
    }

    /// Keeps a fid under a number that [`Self::check_free`] found free.
    pub fn insert(&mut self, fid: u32, node: u64, user: u32) {
        self.known.insert(fid, Fid { node, user, open: Open::No });
    }

    /// Notes what a fid is open for from now on.
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

    /// Lets a fid stand for another node; returns the one before.
    pub fn set_node(&mut self, fid: u32, node: u64) -> Result<u64> {
        let known = self.known.get_mut(&fid).ok_or(Errno(libc::EBADF))?;
        Ok(std::mem::replace(&mut known.node, node))
    }

    /// Takes the next bytes of an extended attribute, in order and no more than were announced.
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

    /// Forgets all: the guest starts anew.
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
