//! Locks of the guest that hold between machines and against the host.
//!
//! The guest's kernel keeps all locks of its processes, makes them wait for each other, and asks for each lock that is
//! free in the guest (resources/kernel/patches/fuse-locks.patch). The server takes it on the host or refuses it with
//! EAGAIN. It never waits, so no thread and no request belongs to a process that waits for a lock.
//!
//! flock(2) belongs to an open file, so the server locks the open file's own descriptor. A range, of fcntl(2) with or
//! without F_OFD_, belongs to an owner: a process, or an open file. The server locks it as an open file description
//! lock on a descriptor that it opens for each file and owner, and closes when the owner has no range any more. All
//! locks end with the machine's process, because its descriptors do.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::attributes::Attributes;
use super::errno::Errno;
use super::inode::Inode;
use super::lock_table::{length, lock_type};
use super::operations::{Node, OpenFile, Operations};
use super::sys;

use crate::{Decoder, Encoder, StateError};

pub use super::lock_table::{END, LockKind, Span};

type Result<T, E = Errno> = std::result::Result<T, E>;

/// The owner of ranges in an open file, and one of them.
#[derive(Clone, Copy, Debug)]
pub struct Lockable {
    /// The open file, which decides whether the owner may lock.
    pub file: OpenFile,
    /// Number of the owner.
    pub owner: u64,
    /// The range.
    pub span: Span,
}

impl Operations {
    /// Locks a range, or returns EAGAIN. Locks of the owner in the same range are replaced; after an error they are as
    /// before.
    pub fn lock_range(&mut self, what: &Lockable, kind: LockKind) -> Result<()> {
        let (span, handle) = (checked(what.span)?, self.handle(what.file)?);
        let inode = &handle.inode;
        let key = (inode.key, what.owner);
        let mut locks = self.shared.locks.lock().unwrap();
        locks.add_owner(key, inode.bind.id, || {
            let few = |errno| if errno == Errno(libc::ENFILE) { Errno(libc::ENOLCK) } else { errno };
            let count = self.shared.table.lock().unwrap().descriptor().map_err(few)?;
            Ok((self.open_to_lock(inode)?, count))
        })?;
        let result = locks.set(key, span, kind);
        locks.drop_idle(key);
        result
    }

    /// Unlocks a range.
    pub fn unlock_range(&self, what: &Lockable) -> Result<()> {
        let (span, handle) = (checked(what.span)?, self.handle(what.file)?);
        self.shared.locks.lock().unwrap().unset((handle.inode.key, what.owner), span)
    }

    /// Returns a lock that prevents the owner from locking a range, if there is one.
    pub fn conflict(&self, what: &Lockable, kind: LockKind) -> Result<Option<(Span, LockKind)>> {
        let (span, handle) = (checked(what.span)?, self.handle(what.file)?);
        let locks = self.shared.locks.lock().unwrap();
        // Another descriptor would see the owner's own locks.
        let file = locks.file((handle.inode.key, what.owner)).unwrap_or(&handle.file);
        let found = sys::lock::get_range(file.as_fd(), lock_type(Some(kind)), span.start, length(span))?;
        Ok(found.map(|lock| {
            let (start, len) = (lock.l_start as u64, lock.l_len as u64);
            let end = if len == 0 { END } else { start.saturating_add(len - 1) };
            let writes = i32::from(lock.l_type) == libc::F_WRLCK;
            (Span { start, end }, if writes { LockKind::Write } else { LockKind::Read })
        }))
    }

    /// Whether processes outside of the guest may lock a node's file and rely on it: that of a volume which can be written
    /// to.
    pub fn has_other_users(&self, node: u64) -> Result<bool> {
        Ok(match self.node(node)? {
            Node::Virtual(_) => false,
            Node::Host(inode) => !inode.bind.owned && !inode.bind.read_only,
        })
    }

    /// Locks an open file or directory as flock(2) does, or returns EAGAIN. Like there, a conversion that is refused
    /// loses the lock. `None` unlocks.
    pub fn lock_file(&self, file: OpenFile, kind: Option<LockKind>) -> Result<()> {
        let handle = self.handle(file)?;
        let locked = sys::lock::flock(handle.file.as_fd(), kind.map(|kind| kind == LockKind::Write));
        let held = match kind.filter(|_| locked.is_ok()) {
            None => 0,
            Some(LockKind::Read) => libc::LOCK_SH,
            Some(LockKind::Write) => libc::LOCK_EX,
        };
        handle.flocked.store(held, Ordering::Relaxed);
        locked
    }

    /// Returns the attributes of a node that was locked, and whether it may have changed since the guest last opened or
    /// locked it, so that the guest's cached pages are out of date.
    pub fn after_lock(&self, node: u64) -> Result<(Attributes, bool)> {
        let Node::Host(inode) = self.node(node)? else { return Err(Errno(libc::EBADF)) };
        inode.note_lock();
        let stat = sys::fstat(inode.fd()?.as_fd())?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        Ok((self.attributes_of(&inode, &stat), !inode.same_as_seen(&stat, now)))
    }

    /// Takes the ranges again that [`save_locks`](Self::save_locks) wrote. Those of a stale file are lost with it.
    pub(super) fn restore_locks(&self, state: &mut Decoder) -> Result<(), StateError> {
        let mut locks = self.shared.locks.lock().unwrap();
        for _ in 0..state.u32()? {
            let (id, owner) = (state.u64()?, state.u64()?);
            let inode = self.shared.table.lock().unwrap().inode(id);
            let inode = inode.map_err(|_| StateError::Damaged("the file of a lock"))?;
            let key = (inode.key, owner);
            let added = locks.add_owner(key, inode.bind.id, || {
                let count = self.shared.table.lock().unwrap().descriptor()?;
                Ok((self.open_to_lock(&inode)?, count))
            });
            for _ in 0..state.u32()? {
                let span = Span { start: state.u64()?, end: state.u64()? };
                let kind = if state.u8()? != 0 { LockKind::Write } else { LockKind::Read };
                let span = checked(span).map_err(|_| StateError::Damaged("a lock"))?;
                if added.is_ok() {
                    locks.set(key, span, kind).map_err(|_| taken(&inode))?;
                }
            }
        }
        Ok(())
    }

    /// Writes the ranges that the guest has locked.
    pub(super) fn save_locks(&self, state: &mut Encoder) -> Result<(), StateError> {
        let locks = self.shared.locks.lock().unwrap();
        let table = self.shared.table.lock().unwrap();
        locks.save(|bind, key| Some(table.inode_in(bind, key)?.id), state)
    }

    /// Opens a file to lock it: for writing as well if that is possible, because its owner may lock for writing later.
    fn open_to_lock(&self, inode: &Inode) -> Result<File> {
        // A lease of another process must not delay the server.
        let flags = libc::O_RDONLY | libc::O_NONBLOCK;
        if inode.writable().is_ok() && !inode.is_dir() {
            match self.open_inode(inode, libc::O_RDWR | libc::O_NONBLOCK) {
                Err(Errno(libc::EACCES | libc::EPERM | libc::EROFS | libc::ETXTBSY)) => {}
                result => return result,
            }
        }
        self.open_inode(inode, flags)
    }
}

/// The error for a lock that others have taken since.
pub(super) fn taken(inode: &Inode) -> StateError {
    let name = inode.location().map(|(_, name)| name).unwrap_or_default();
    StateError::Refused(format!("another process has locked the file {name:?}"))
}

fn checked(span: Span) -> Result<Span> {
    if span.start > span.end || span.end > END { Err(Errno(libc::EINVAL)) } else { Ok(span) }
}
