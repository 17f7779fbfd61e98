//! Directory entries: lookup, creation, rename, link and removal.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::attributes::Entry;
use super::errno::{Errno, Result};
use super::inode::Inode;
use super::magic_link::MagicLink;
use super::names::Name;
use super::operations::{Caller, NewFile, Node, Operations};
use super::sys::{self, Stat};
use super::tree::Child;

/// Limit of the length of a symbolic link's target, without NUL.
const MAX_TARGET: usize = 4095;
const LOOKUP_FLAGS: i32 = libc::O_PATH | libc::O_NOFOLLOW;

/// A renaming of an entry.
#[derive(Clone, Copy, Debug)]
pub struct Rename<'a> {
    /// Number of the directory with the entry.
    pub from: u64,
    /// Name of the entry.
    pub old: Name<'a>,
    /// Number of the directory to which it moves.
    pub to: u64,
    /// The entry's new name.
    pub new: Name<'a>,
    /// Flags of renameat2(2).
    pub flags: u32,
    /// Owner of the whiteout that RENAME_WHITEOUT creates.
    pub caller: Caller,
}

impl Operations {
    /// Looks up a name in a directory.
    pub fn lookup(&self, dir: u64, name: Name) -> Result<Entry> {
        match self.node(dir)? {
            Node::Virtual(id) => self.lookup_virtual(id, name),
            Node::Host(dir) => {
                let (inode, stat) = self.lookup_host(&dir, name.as_c_str())?;
                self.sockets.found(&inode, name.as_c_str());
                Ok(self.entry(&inode, &stat, Some(&dir)))
            }
        }
    }

    fn lookup_virtual(&self, id: u64, name: Name) -> Result<Entry> {
        // The tree stays locked until the inode is in the table: unbind() then finds it there.
        let tree = self.shared.tree.lock().unwrap();
        match tree.child(id, name.as_c_str().to_bytes())? {
            Child::Dir(child) => Ok(Entry::of_virtual(child)),
            Child::Bind(bind) => {
                let (inode, stat) = self.shared.enter(&bind)?;
                Ok(self.entry(&inode, &stat, None))
            }
        }
    }

    /// Looks up a name in a host directory and counts the lookup.
    pub(super) fn lookup_host(&self, dir: &Arc<Inode>, name: &CStr) -> Result<(Arc<Inode>, Stat)> {
        if !dir.is_dir() {
            return Err(Errno(libc::ENOTDIR));
        }
        self.watch(dir);
        let dir_fd = dir.fd()?;
        // If the last name looked up here was that of a known inode, this one probably is too, and stat is enough.
        if dir.names_known.load(Ordering::Relaxed) {
            let stat = self.or_as_caller(|| sys::stat_at(dir_fd.as_fd(), name))?;
            let known = self.shared.table.lock().unwrap().find(&dir.bind, &stat);
            if let Some(inode) = known {
                inode.found_at(dir, name);
                return Ok((inode, stat));
            }
        }
        let fd = self.or_as_caller(|| sys::openat(dir_fd.as_fd(), name, LOOKUP_FLAGS, 0))?;
        let stat = sys::fstat(fd.as_fd())?;
        let mut table = self.shared.table.lock().unwrap();
        let known = table.find(&dir.bind, &stat);
        dir.names_known.store(known.is_some(), Ordering::Relaxed);
        let inode = known.map_or_else(|| table.intern(&dir.bind, fd, &stat), Ok)?;
        inode.found_at(dir, name);
        Ok((inode, stat))
    }

    /// Returns the entry that is now at `name`.
    pub(super) fn lookup_entry(&self, dir: &Arc<Inode>, name: &CStr) -> Result<Entry> {
        let (inode, stat) = self.lookup_host(dir, name)?;
        Ok(self.entry(&inode, &stat, Some(dir)))
    }

    /// Counts a lookup of a newly created file, open as `file`.
    pub(super) fn intern_open(&self, dir: &Inode, file: BorrowedFd) -> Result<(Arc<Inode>, Stat)> {
        let stat = sys::fstat(file)?;
        let link = MagicLink::new("", file.as_raw_fd());
        let fd = sys::openat(self.shared.proc_self_fd.as_fd(), &link, libc::O_PATH, 0)?;
        Ok((self.shared.table.lock().unwrap().intern(&dir.bind, fd, &stat)?, stat))
    }

    /// Creates a directory.
    pub fn mkdir(&mut self, dir: u64, name: Name, new: &NewFile) -> Result<Entry> {
        let dir = self.growable_dir(dir)?;
        let (creating, mode) = self.create_as(new, new.mode & 0o7777);
        sys::mkdirat(dir.fd()?.as_fd(), name.as_c_str(), mode)?;
        drop(creating);
        self.note_own(&dir, name.as_c_str(), libc::IN_CREATE);
        let (inode, stat) = self.lookup_host(&dir, name.as_c_str())?;
        let empty = self.watch_empty(&inode);
        let mut entry = self.entry(&inode, &stat, Some(&dir));
        entry.attributes.empty = empty;
        Ok(entry)
    }

    /// Creates a file, FIFO, socket or device node. `rdev` is the number of a device, or the type of a socket that a process
    /// of the guest binds to the name.
    pub fn mknod(&mut self, dir: u64, name: Name, new: &NewFile, rdev: u32) -> Result<Entry> {
        let dir = match new.mode & libc::S_IFMT {
            libc::S_IFREG => self.growable_dir(dir)?,
            _ => self.writable_dir(dir)?,
        };
        if new.mode & libc::S_IFMT == libc::S_IFDIR {
            return Err(Errno(libc::EPERM));
        }
        dir.bind.nodes.check(new.mode, rdev)?;
        let bound = self.bind_socket(&dir, name.as_c_str(), new, rdev)?;
        if bound.is_none() {
            let (creating, mode) = self.create_as(new, new.mode);
            sys::mknodat(dir.fd()?.as_fd(), name.as_c_str(), mode, rdev)?;
            drop(creating);
        }
        self.note_own(&dir, name.as_c_str(), libc::IN_CREATE);
        let (inode, stat) = self.lookup_host(&dir, name.as_c_str())?;
        self.sockets.made(&inode, bound);
        Ok(self.entry(&inode, &stat, Some(&dir)))
    }

    /// Creates a symbolic link to `target`.
    pub fn symlink(&mut self, dir: u64, name: Name, target: &CStr, caller: Caller) -> Result<Entry> {
        let dir = self.writable_dir(dir)?;
        if target.count_bytes() > MAX_TARGET {
            return Err(Errno(libc::ENAMETOOLONG));
        }
        let (creating, _) = self.create_as(&NewFile { caller, mode: 0, umask: 0 }, 0);
        sys::symlinkat(target, dir.fd()?.as_fd(), name.as_c_str())?;
        drop(creating);
        self.note_own(&dir, name.as_c_str(), libc::IN_CREATE);
        self.lookup_entry(&dir, name.as_c_str())
    }

    /// Appends the target of a symbolic link to `target`. After an error, `target` may be longer than before.
    pub fn readlink(&self, node: u64, target: &mut Vec<u8>) -> Result<()> {
        let inode = self.host_node(node, libc::EINVAL)?;
        if inode.kind != libc::S_IFLNK {
            return Err(Errno(libc::EINVAL));
        }
        let start = target.len();
        target.resize(start + MAX_TARGET + 1, 0);
        let len = sys::readlink(inode.fd()?.as_fd(), c"", &mut target[start..])?;
        target.truncate(start + len);
        Ok(())
    }

    /// Removes an entry that is not a directory.
    pub fn unlink(&self, dir: u64, name: Name) -> Result<()> {
        self.remove(dir, name, 0)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, dir: u64, name: Name) -> Result<()> {
        self.remove(dir, name, libc::AT_REMOVEDIR)
    }

    /// Whether a file that the guest has removed may still have a name, which keeps its directory from being removed, until
    /// the guest has closed and forgotten it.
    pub fn has_lingering_names(&self) -> bool {
        self.lingering.get()
    }

    /// Notes that a name is about to be removed or replaced. NFS renames a file that has a descriptor instead of removing it.
    fn note_removal(&self, dir: &Inode, pin: BorrowedFd) {
        const NFS_SUPER_MAGIC: i64 = 0x6969;
        if self.removal.get().0 != dir.key.0 {
            let renames = sys::file_system(pin).is_ok_and(|(kind, _)| kind == NFS_SUPER_MAGIC);
            self.removal.set((dir.key.0, renames));
        }
        self.lingering.set(self.lingering.get() || self.removal.get().1);
    }

    fn remove(&self, dir: u64, name: Name, flags: i32) -> Result<()> {
        let dir = self.writable_dir(dir)?;
        let pin = dir.fd()?;
        self.note_removal(&dir, pin.as_fd());
        self.pin_at(pin.as_fd(), name.as_c_str())?;
        self.or_as_caller(|| sys::unlinkat(pin.as_fd(), name.as_c_str(), flags))?;
        self.note_own(&dir, name.as_c_str(), libc::IN_DELETE);
        Ok(())
    }

    /// Pins the file at a name that is about to be removed, in every bind in which the guest knows the file. Otherwise
    /// its inode number could be given to another file.
    fn pin_at(&self, dir: BorrowedFd, name: &CStr) -> Result<()> {
        if !self.shared.table.lock().unwrap().has_evicted() {
            return Ok(());
        }
        match sys::stat_at(dir, name) {
            Ok(stat) => self.shared.table.lock().unwrap().pin((stat.st_dev, stat.st_ino), dir, name),
            // The caller's system call will report the error.
            Err(_) => Ok(()),
        }
    }

    /// Renames an entry. Both directories must be in the same bind.
    pub fn rename(&mut self, rename: &Rename) -> Result<()> {
        let (old, new, flags) = (rename.old.as_c_str(), rename.new.as_c_str(), rename.flags);
        let from = self.writable_dir(rename.from)?;
        let to = self.writable_dir(rename.to)?;
        if from.bind.id != to.bind.id {
            return Err(Errno(libc::EXDEV));
        }
        let (source, target) = (from.fd()?, to.fd()?);
        self.pin_at(source.as_fd(), old)?;
        self.pin_at(target.as_fd(), new)?;
        self.note_removal(&to, target.as_fd());
        // A whiteout is a new inode, which must belong to the caller. Other renames create nothing.
        let caller = if flags & libc::RENAME_WHITEOUT == 0 { Caller::ROOT } else { rename.caller };
        let (creating, _) = self.create_as(&NewFile { caller, mode: 0, umask: 0 }, 0);
        self.or_as_caller(|| sys::renameat(source.as_fd(), old, target.as_fd(), new, flags))?;
        drop(creating);
        self.note_own(&from, old, libc::IN_MOVED_FROM);
        self.note_own(&to, new, libc::IN_MOVED_TO);
        if flags & libc::RENAME_EXCHANGE != 0 {
            self.note_own(&to, new, libc::IN_MOVED_FROM);
            self.note_own(&from, old, libc::IN_MOVED_TO);
        }
        self.note_place(&to, new);
        if flags & libc::RENAME_EXCHANGE != 0 {
            self.note_place(&from, old);
        }
        Ok(())
    }

    /// Records the new location of a moved file. A file with an outdated location cannot give up its descriptor.
    fn note_place(&self, dir: &Arc<Inode>, name: &CStr) {
        if !self.shared.table.lock().unwrap().is_crowded() {
            return;
        }
        if let Ok(stat) = dir.fd().and_then(|fd| sys::stat_at(fd.as_fd(), name)) {
            self.shared.table.lock().unwrap().moved((stat.st_dev, stat.st_ino), dir, name);
        }
    }

    /// Creates a hard link to `node`, which must be in the same bind as the directory.
    pub fn link(&self, node: u64, dir: u64, name: Name) -> Result<Entry> {
        let name = name.as_c_str();
        let dir = self.writable_dir(dir)?;
        let inode = self.host_node(node, libc::EPERM)?;
        if inode.bind.id != dir.bind.id {
            return Err(Errno(libc::EXDEV));
        }
        let fd = inode.fd()?;
        let link = MagicLink::new("", fd.as_fd().as_raw_fd());
        let pin = dir.fd()?;
        self.or_as_caller(|| sys::link_magic(self.shared.proc_self_fd.as_fd(), &link, pin.as_fd(), name))?;
        self.note_own(&dir, name, libc::IN_CREATE);
        let stat = sys::fstat(fd.as_fd())?;
        let mut table = self.shared.table.lock().unwrap();
        let inode = match table.find(&inode.bind, &stat) {
            Some(inode) => inode,
            None => {
                let fd = sys::openat(self.shared.proc_self_fd.as_fd(), &link, libc::O_PATH, 0)?;
                table.intern(&inode.bind, fd, &stat)?
            }
        };
        drop(table);
        inode.found_at(&dir, name);
        Ok(self.entry(&inode, &stat, Some(&dir)))
    }
}
