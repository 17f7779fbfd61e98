//! Directory entries: lookup, creation, rename, link and removal.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::server::{Node, Request, ShareServer, take_name, take_string};
use super::wire::{
    Attr, BatchForgetIn, ForgetIn, ForgetOne, LinkIn, MkdirIn, MknodIn, Rename2In, RenameIn, op,
};
use crate::share::errno::{Errno, Result};
use crate::share::inode::Inode;
use crate::share::magic_link::MagicLink;
use crate::share::sys::{self, Stat};
use crate::share::tree::Child;

/// Limit of the length of a symbolic link's target, without NUL.
const MAX_TARGET: usize = 4095;
const LOOKUP_FLAGS: i32 = libc::O_PATH | libc::O_NOFOLLOW;

impl ShareServer {
    pub(super) fn lookup(&mut self, request: &Request) -> Result<()> {
        let name = take_name(&mut { request.body })?;
        let found = match self.node(request.nodeid)? {
            Node::Virtual(id) => self.lookup_virtual(id, name),
            Node::Host(dir) => self.lookup_host(&dir, name).map(|(inode, stat)| {
                self.put_entry(&inode, &stat, Some(dir.key.0));
            }),
        };
        match found {
            Err(Errno(libc::ENOENT)) => {
                // The guest caches a missing name as long as an existing one.
                self.put_node(0, Attr::default());
                Ok(())
            }
            found => found,
        }
    }

    fn lookup_virtual(&mut self, id: u64, name: &CStr) -> Result<()> {
        // The tree stays locked until the inode is in the table: unbind() then finds it there.
        let shared = self.shared.clone();
        let tree = shared.tree.lock().unwrap();
        match tree.child(id, name.to_bytes())? {
            Child::Dir(child) => self.put_node(child, Self::virtual_attr(child)),
            Child::Bind(bind) => {
                let (inode, stat) = shared.enter(&bind)?;
                self.put_entry(&inode, &stat, None);
            }
        }
        Ok(())
    }

    /// Looks up a name in a host directory and counts the lookup.
    pub(super) fn lookup_host(&self, dir: &Arc<Inode>, name: &CStr) -> Result<(Arc<Inode>, Stat)> {
        if !dir.is_dir() {
            return Err(Errno(libc::ENOTDIR));
        }
        let dir_fd = dir.fd()?;
        // If the last name looked up here was that of a known inode, this one probably is too, and stat is enough.
        if dir.names_known.load(Ordering::Relaxed) {
            let stat = sys::stat_at(dir_fd.as_fd(), name)?;
            let known = self.shared.table.lock().unwrap().find(&dir.bind, &stat);
            if let Some(inode) = known {
                inode.found_at(dir, name);
                return Ok((inode, stat));
            }
        }
        let fd = sys::openat(dir_fd.as_fd(), name, LOOKUP_FLAGS, 0)?;
        let stat = sys::fstat(fd.as_fd())?;
        let mut table = self.shared.table.lock().unwrap();
        let known = table.find(&dir.bind, &stat);
        dir.names_known.store(known.is_some(), Ordering::Relaxed);
        let inode = known.map_or_else(|| table.intern(&dir.bind, fd, &stat), Ok)?;
        inode.found_at(dir, name);
        Ok((inode, stat))
    }

    /// Counts a lookup of a newly created file, open as `file`.
    pub(super) fn intern_open(&self, dir: &Inode, file: BorrowedFd) -> Result<(Arc<Inode>, Stat)> {
        let stat = sys::fstat(file)?;
        let link = MagicLink::new("", file.as_raw_fd());
        let fd = sys::openat(self.shared.proc_self_fd.as_fd(), &link, libc::O_PATH, 0)?;
        Ok((self.shared.table.lock().unwrap().intern(&dir.bind, fd, &stat)?, stat))
    }

    pub(super) fn forget(&mut self, opcode: u32, request: &Request) {
        let mut table = self.shared.table.lock().unwrap();
        if opcode == op::FORGET {
            if let Some(one) = ForgetIn::parse(request.body) {
                table.forget(request.nodeid, one.nlookup);
            }
            return;
        }
        let Some(batch) = BatchForgetIn::parse(request.body) else { return };
        let entries = request.body[BatchForgetIn::SIZE..].chunks_exact(ForgetOne::SIZE);
        for one in entries.take(batch.count as usize).filter_map(ForgetOne::parse) {
            table.forget(one.nodeid, one.nlookup);
        }
    }

    pub(super) fn mkdir(&mut self, request: &Request) -> Result<()> {
        let input = MkdirIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let name = take_name(&mut &request.body[MkdirIn::SIZE..])?;
        let dir = self.growable_dir(request.nodeid)?;
        let (creating, mode) = self.credentials().create_as(request.caller, input.umask, input.mode & 0o7777);
        sys::mkdirat(dir.fd()?.as_fd(), name, mode)?;
        drop(creating);
        self.reply_entry(&dir, name)
    }

    pub(super) fn mknod(&mut self, request: &Request) -> Result<()> {
        let input = MknodIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let name = take_name(&mut &request.body[MknodIn::SIZE..])?;
        let dir = match input.mode & libc::S_IFMT {
            libc::S_IFREG => self.growable_dir(request.nodeid)?,
            _ => self.writable_dir(request.nodeid)?,
        };
        if input.mode & libc::S_IFMT == libc::S_IFDIR {
            return Err(Errno(libc::EPERM));
        }
        dir.bind.nodes.check(input.mode, input.rdev)?;
        let (creating, mode) = self.credentials().create_as(request.caller, input.umask, input.mode);
        sys::mknodat(dir.fd()?.as_fd(), name, mode, input.rdev)?;
        drop(creating);
        self.reply_entry(&dir, name)
    }

    pub(super) fn symlink(&mut self, request: &Request) -> Result<()> {
        let mut body = request.body;
        let name = take_name(&mut body)?;
        let target = take_string(&mut body)?;
        let dir = self.writable_dir(request.nodeid)?;
        if target.count_bytes() > MAX_TARGET {
            return Err(Errno(libc::ENAMETOOLONG));
        }
        let (creating, _) = self.credentials().create_as(request.caller, 0, 0);
        sys::symlinkat(target, dir.fd()?.as_fd(), name)?;
        drop(creating);
        self.reply_entry(&dir, name)
    }

    /// Replies with the file that is now at `name`.
    fn reply_entry(&mut self, dir: &Arc<Inode>, name: &CStr) -> Result<()> {
        let (inode, stat) = self.lookup_host(dir, name)?;
        self.put_entry(&inode, &stat, Some(dir.key.0));
        Ok(())
    }

    pub(super) fn readlink(&mut self, request: &Request) -> Result<()> {
        let inode = self.host_node(request.nodeid, libc::EINVAL)?;
        if inode.kind != libc::S_IFLNK {
            return Err(Errno(libc::EINVAL));
        }
        let start = self.reply.len();
        self.reply.resize(start + MAX_TARGET + 1, 0);
        let len = sys::readlink(inode.fd()?.as_fd(), &mut self.reply[start..])?;
        self.reply.truncate(start + len);
        Ok(())
    }

    pub(super) fn unlink(&mut self, request: &Request, flags: i32) -> Result<()> {
        let name = take_name(&mut { request.body })?;
        let dir = self.writable_dir(request.nodeid)?;
        self.pin_at(&dir, name)?;
        sys::unlinkat(dir.fd()?.as_fd(), name, flags)
    }

    /// Pins the file at a name that is about to be removed, in every bind in which the guest knows the file. Otherwise its
    /// inode number could be given to another file.
    fn pin_at(&self, dir: &Inode, name: &CStr) -> Result<()> {
        if !self.shared.table.lock().unwrap().has_evicted() {
            return Ok(());
        }
        match sys::stat_at(dir.fd()?.as_fd(), name) {
            Ok(stat) => self.shared.table.lock().unwrap().pin((stat.st_dev, stat.st_ino)),
            // The caller's system call will report the error.
            Err(_) => Ok(()),
        }
    }

    pub(super) fn rename(&mut self, request: &Request) -> Result<()> {
        let input = RenameIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        self.rename_to(request, input.newdir, 0, &request.body[RenameIn::SIZE..])
    }

    pub(super) fn rename2(&mut self, request: &Request) -> Result<()> {
        let input = Rename2In::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        self.rename_to(request, input.newdir, input.flags, &request.body[Rename2In::SIZE..])
    }

    fn rename_to(&mut self, request: &Request, to: u64, flags: u32, mut names: &[u8]) -> Result<()> {
        let old = take_name(&mut names)?;
        let new = take_name(&mut names)?;
        let from = self.writable_dir(request.nodeid)?;
        let to = self.writable_dir(to)?;
        if from.bind.id != to.bind.id {
            return Err(Errno(libc::EXDEV));
        }
        self.pin_at(&from, old)?;
        self.pin_at(&to, new)?;
        // A whiteout is a new inode, which must belong to the caller. Other renames create nothing.
        let caller = if flags & libc::RENAME_WHITEOUT == 0 { (0, 0) } else { request.caller };
        let (creating, _) = self.credentials().create_as(caller, 0, 0);
        sys::renameat(from.fd()?.as_fd(), old, to.fd()?.as_fd(), new, flags)?;
        drop(creating);
        self.note_place(&to, new);
        if flags & libc::RENAME_EXCHANGE != 0 {
            self.note_place(&from, old);
        }
        Ok(())
    }

    /// Records the new place of a moved file. A file with an outdated place cannot give up its descriptor.
    fn note_place(&self, dir: &Arc<Inode>, name: &CStr) {
        if !self.shared.table.lock().unwrap().is_crowded() {
            return;
        }
        if let Ok(stat) = dir.fd().and_then(|fd| sys::stat_at(fd.as_fd(), name)) {
            self.shared.table.lock().unwrap().moved((stat.st_dev, stat.st_ino), dir, name);
        }
    }

    pub(super) fn link(&mut self, request: &Request) -> Result<()> {
        let input = LinkIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let name = take_name(&mut &request.body[LinkIn::SIZE..])?;
        let dir = self.writable_dir(request.nodeid)?;
        let inode = self.host_node(input.oldnodeid, libc::EPERM)?;
        if inode.bind.id != dir.bind.id {
            return Err(Errno(libc::EXDEV));
        }
        let fd = inode.fd()?;
        let link = MagicLink::new("", fd.as_fd().as_raw_fd());
        sys::link_magic(self.shared.proc_self_fd.as_fd(), &link, dir.fd()?.as_fd(), name)?;
        let stat = sys::fstat(fd.as_fd())?;
        let mut table = self.shared.table.lock().unwrap();
        let inode = match table.find(&inode.bind, &stat) {
            Some(inode) => inode,
            None => table.intern(&inode.bind, fd.as_fd().try_clone_to_owned()?, &stat)?,
        };
        drop(table);
        inode.found_at(&dir, name);
        self.put_entry(&inode, &stat, Some(dir.key.0));
        Ok(())
    }
}
