//! File attributes: conversion of the host's `struct stat` for the guest, and SETATTR.

use std::os::fd::{AsFd, AsRawFd};

use super::server::{Node, Request, ShareServer};
use super::wire::{ATTR_SUBMOUNT, Attr, AttrOut, EntryOut, SetattrIn, StatfsOut, set};
use crate::share::errno::{Errno, Result};
use crate::share::inode::Inode;
use crate::share::magic_link::MagicLink;
use crate::share::owners::Owners;
use crate::share::sys::{self, Stat};
use crate::share::tree::Child;

/// Seconds for which the guest may cache names (also missing ones) and attributes. The guest sees changes by the host
/// after at most this time.
pub const VALID: u64 = 1;

impl ShareServer {
    /// Returns the attributes of a host file as the guest sees them.
    pub fn attr_of(&self, inode: &Inode, stat: &Stat) -> Attr {
        let (uid, gid) = self.owners.to_guest(stat.st_uid, stat.st_gid);
        // A bound single file belongs to the virtual file system, so its inode number must come from there.
        let single = inode.is_bind_root() && !inode.is_dir();
        Attr {
            ino: if single { inode.bind.id } else { stat.st_ino },
            size: stat.st_size as u64,
            blocks: stat.st_blocks as u64,
            atime: stat.st_atime as u64,
            mtime: stat.st_mtime as u64,
            ctime: stat.st_ctime as u64,
            atimensec: stat.st_atime_nsec as u32,
            mtimensec: stat.st_mtime_nsec as u32,
            ctimensec: stat.st_ctime_nsec as u32,
            mode: stat.st_mode,
            nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            uid,
            gid,
            rdev: stat.st_rdev as u32,
            blksize: stat.st_blksize as u32,
            flags: 0,
        }
    }

    /// Returns the attributes of a virtual directory: not writable, all times are the epoch.
    pub fn virtual_attr(id: u64) -> Attr {
        Attr {
            ino: Child::Dir(id).ino(),
            mode: libc::S_IFDIR | 0o555,
            nlink: 2,
            blksize: 4096,
            ..Attr::default()
        }
    }

    pub(super) fn put_attr(&mut self, attr: Attr) {
        AttrOut { attr_valid: VALID, ..Default::default() }.put(&mut self.reply);
        attr.put(&mut self.reply);
    }

    /// Replies with an inode whose lookup has been counted. `parent_dev` is the device of its parent directory.
    pub(super) fn put_entry(&mut self, inode: &Inode, stat: &Stat, parent_dev: Option<u64>) {
        let mut attr = self.attr_of(inode, stat);
        // A mount point below a bind, or a bind in the virtual tree: the guest gives it a separate device number, so that
        // no two files have the same device and inode number.
        if self.submounts && inode.is_dir() && parent_dev != Some(stat.st_dev) {
            attr.flags = ATTR_SUBMOUNT;
        }
        self.put_node(inode.id, attr);
    }

    pub(super) fn put_node(&mut self, nodeid: u64, attr: Attr) {
        EntryOut { nodeid, entry_valid: VALID, attr_valid: VALID, ..Default::default() }.put(&mut self.reply);
        attr.put(&mut self.reply);
    }

    pub(super) fn getattr(&mut self, request: &Request) -> Result<()> {
        let attr = match self.node(request.nodeid)? {
            Node::Virtual(id) => {
                self.shared.tree.lock().unwrap().names(id)?;
                Self::virtual_attr(id)
            }
            Node::Host(inode) => self.attr_of(&inode, &sys::fstat(inode.fd()?.as_fd())?),
        };
        self.put_attr(attr);
        Ok(())
    }

    pub(super) fn setattr(&mut self, request: &Request) -> Result<()> {
        let input = SetattrIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let inode = self.host_node(request.nodeid, libc::EROFS)?;
        inode.writable()?;
        let fd = inode.fd()?;
        if input.valid & set::MODE != 0 {
            // The guest's kernel has already cleared set-group-ID if the caller may not set it.
            self.credentials().keep_setid(true);
            let mode = input.mode & 0o7777;
            let link = MagicLink::new("", fd.as_fd().as_raw_fd());
            sys::chmod_magic(self.shared.proc_self_fd.as_fd(), &link, mode)?;
        }
        if input.valid & (set::UID | set::GID) != 0 {
            self.set_owner(&inode, &input)?;
        }
        if input.valid & set::SIZE != 0 {
            self.set_size(&inode, &input)?;
        }
        if input.valid & (set::ATIME | set::MTIME) != 0 {
            sys::utimens(fd.as_fd(), &times(&input)?)?;
        }
        let attr = self.attr_of(&inode, &sys::fstat(fd.as_fd())?);
        self.put_attr(attr);
        Ok(())
    }

    fn set_owner(&mut self, inode: &Inode, input: &SetattrIn) -> Result<()> {
        let given = |flag, id| if input.valid & flag != 0 { id } else { u32::MAX };
        let (uid, gid) = (given(set::UID, input.uid), given(set::GID, input.gid));
        match self.owners {
            Owners::Host => sys::chown(inode.fd()?.as_fd(), uid, gid),
            Owners::Single(our_uid, our_gid) => {
                let map = |id, ours| match id {
                    u32::MAX => Ok(u32::MAX),
                    0 => Ok(ours),
                    _ => Err(Errno(libc::EPERM)),
                };
                sys::chown(inode.fd()?.as_fd(), map(uid, our_uid)?, map(gid, our_gid)?)
            }
        }
    }

    fn set_size(&mut self, inode: &Inode, input: &SetattrIn) -> Result<()> {
        let len = i64::try_from(input.size).map_err(|_| Errno(libc::EFBIG))?;
        self.credentials().keep_setid(input.valid & set::KILL_SUIDGID == 0);
        if input.valid & set::FH != 0
            && let Ok(handle) = self.handle(input.fh, inode.id)
        {
            return sys::ftruncate(handle.file.as_fd(), len);
        }
        let file = self.open_inode(inode, libc::O_WRONLY)?;
        sys::ftruncate(file.as_fd(), len)
    }

    pub(super) fn statfs(&mut self, request: &Request) -> Result<()> {
        let out = match self.node(request.nodeid)? {
            Node::Virtual(_) => StatfsOut { bsize: 4096, frsize: 4096, namelen: 255, ..Default::default() },
            Node::Host(inode) => {
                let st = sys::statvfs(inode.fd()?.as_fd())?;
                StatfsOut {
                    blocks: st.f_blocks,
                    bfree: st.f_bfree,
                    bavail: st.f_bavail,
                    files: st.f_files,
                    ffree: st.f_ffree,
                    bsize: st.f_bsize as u32,
                    namelen: st.f_namemax as u32,
                    frsize: st.f_frsize as u32,
                }
            }
        };
        out.put(&mut self.reply);
        self.reply.extend_from_slice(&[0; 28]);
        Ok(())
    }
}

fn times(input: &SetattrIn) -> Result<[libc::timespec; 2]> {
    let time = |flag, now_flag, sec: u64, nsec: u32| {
        let (tv_sec, tv_nsec) = match input.valid {
            valid if valid & flag == 0 => (0, libc::UTIME_OMIT),
            valid if valid & now_flag != 0 => (0, libc::UTIME_NOW),
            _ if nsec > 999_999_999 => return Err(Errno(libc::EINVAL)),
            _ => (sec as i64, i64::from(nsec)),
        };
        Ok(libc::timespec { tv_sec, tv_nsec })
    };
    Ok([
        time(set::ATIME, set::ATIME_NOW, input.atime, input.atimensec)?,
        time(set::MTIME, set::MTIME_NOW, input.mtime, input.mtimensec)?,
    ])
}
