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

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::AsFd;
use std::time::SystemTime;

use super::attributes::Attributes;
use super::bind::Bind;
use super::errno::{Errno, Result};
use super::inode::{DescriptorCount, Inode};
use super::operations::{Node, OpenFile, Operations};
use super::sys;

/// Limit of the ranges that a machine has locked, and so of their owners, each of which takes a descriptor for each file.
/// The host's kernel searches all ranges of a file for each lock, which takes up to half a millisecond with this limit.
pub const MAX_RANGES: usize = 1 << 14;
/// The last byte of a file of any length.
pub const END: u64 = i64::MAX as u64;

/// The effect of a lock on others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// Shared: others may have shared locks.
    Read,
    /// Exclusive.
    Write,
}

/// A range of bytes in an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// Last byte, [`END`] for all.
    pub end: u64,
}

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

/// Ranges of an owner that do not overlap, by first byte.
#[derive(Default)]
struct Ranges(BTreeMap<u64, (u64, LockKind)>);

impl Ranges {
    /// Sets or removes the lock of a range, as the host's kernel does.
    fn set(&mut self, span: Span, kind: Option<LockKind>) {
        let Span { mut start, mut end } = span;
        // Neighbours of the same kind become one range.
        let (from, to) = (start.saturating_sub(1), end.saturating_add(1));
        let touched: Vec<u64> = {
            let before = self.0.range(..from).next_back().filter(|(_, (last, _))| *last >= from);
            before.into_iter().chain(self.0.range(from..=to)).map(|(first, _)| *first).collect()
        };
        for first in touched {
            let Some((last, of)) = self.0.remove(&first) else { continue };
            if kind == Some(of) {
                (start, end) = (start.min(first), end.max(last));
                continue;
            }
            if first < span.start {
                self.0.insert(first, (last.min(span.start - 1), of));
            }
            if last > span.end {
                self.0.insert(first.max(span.end + 1), (last, of));
            }
        }
        if let Some(kind) = kind {
            self.0.insert(start, (end, kind));
        }
    }

    /// Whether removing a range leaves two ranges of one.
    fn splits(&self, span: Span) -> bool {
        let before = self.0.range(..span.start).next_back();
        before.is_some_and(|(_, (last, _))| *last > span.end)
    }
}

/// What an owner has locked in a file.
struct Held {
    /// The open file description that has the locks.
    file: File,
    ranges: Ranges,
    /// Number of the bind through which `file` was opened.
    bind: u64,
    _count: DescriptorCount,
}

/// A file (device and inode number on the host) and an owner.
type Key = ((u64, u64), u64);

/// The ranges that the guest has locked.
pub struct Locks {
    owners: HashMap<Key, Held>,
    /// Number of ranges of all owners.
    ranges: usize,
    limit: usize,
}

impl Locks {
    /// Returns a table for at most `limit` ranges.
    pub fn new(limit: usize) -> Locks {
        Locks { owners: HashMap::new(), ranges: 0, limit }
    }

    /// Gives all locks back.
    pub fn clear(&mut self) {
        *self = Locks::new(self.limit);
    }

    /// Gives back the locks that were taken through a bind.
    pub fn purge(&mut self, bind: &Bind) {
        self.owners.retain(|_, held| held.bind != bind.id);
        self.ranges = self.owners.values().map(|held| held.ranges.0.len()).sum();
    }

    /// Numbers of owners and of ranges.
    #[cfg(test)]
    pub fn counts(&self) -> (usize, usize) {
        (self.owners.len(), self.ranges)
    }

    fn set(&mut self, key: Key, span: Span, kind: LockKind) -> Result<()> {
        let held = self.owners.get_mut(&key).ok_or(Errno(libc::ENOLCK))?;
        sys::set_range(held.file.as_fd(), lock_type(Some(kind)), span.start, length(span))?;
        self.ranges -= held.ranges.0.len();
        held.ranges.set(span, Some(kind));
        self.ranges += held.ranges.0.len();
        Ok(())
    }

    fn unset(&mut self, key: Key, span: Span) -> Result<()> {
        let Some(held) = self.owners.get_mut(&key) else { return Ok(()) };
        if self.ranges >= self.limit && held.ranges.splits(span) {
            return Err(Errno(libc::ENOLCK));
        }
        sys::set_range(held.file.as_fd(), lock_type(None), span.start, length(span))?;
        self.ranges -= held.ranges.0.len();
        held.ranges.set(span, None);
        self.ranges += held.ranges.0.len();
        self.drop_idle(key);
        Ok(())
    }

    /// Closes the descriptor of an owner without ranges.
    fn drop_idle(&mut self, key: Key) {
        if self.owners.get(&key).is_some_and(|held| held.ranges.0.is_empty()) {
            self.owners.remove(&key);
        }
    }
}

impl Operations {
    /// Locks a range, or returns EAGAIN. Locks of the owner in the same range are replaced; after an error they are as
    /// before.
    pub fn lock_range(&mut self, what: &Lockable, kind: LockKind) -> Result<()> {
        let (span, handle) = (checked(what.span)?, self.handle(what.file)?);
        let inode = &handle.inode;
        let key = (inode.key, what.owner);
        let mut locks = self.shared.locks.lock().unwrap();
        // A range in the middle of another one leaves two more.
        if locks.ranges + 2 > locks.limit {
            return Err(Errno(libc::ENOLCK));
        }
        if let Entry::Vacant(owner) = locks.owners.entry(key) {
            let few = |errno| if errno == Errno(libc::ENFILE) { Errno(libc::ENOLCK) } else { errno };
            let count = self.shared.table.lock().unwrap().descriptor().map_err(few)?;
            let file = self.open_to_lock(inode)?;
            let held = Held { file, ranges: Ranges::default(), bind: inode.bind.id, _count: count };
            owner.insert(held);
        }
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
        let held = locks.owners.get(&(handle.inode.key, what.owner));
        let file = held.map_or(&handle.file, |held| &held.file);
        let found = sys::get_range(file.as_fd(), lock_type(Some(kind)), span.start, length(span))?;
        Ok(found.map(|(found, start, len)| {
            let end = if len == 0 { END } else { start.saturating_add(len - 1) };
            (Span { start, end }, if found == libc::F_WRLCK { LockKind::Write } else { LockKind::Read })
        }))
    }

    /// Locks an open file or directory as flock(2) does, or returns EAGAIN. Like there, a conversion that is refused
    /// loses the lock. `None` unlocks.
    pub fn lock_file(&self, file: OpenFile, kind: Option<LockKind>) -> Result<()> {
        sys::flock(self.handle(file)?.file.as_fd(), kind.map(|kind| kind == LockKind::Write))
    }

    /// Returns the attributes of a node that was locked, and whether it may have changed since the guest last opened or
    /// locked it, so that the guest's cached pages are out of date.
    pub fn after_lock(&self, node: u64) -> Result<(Attributes, bool)> {
        let Node::Host(inode) = self.node(node)? else { return Err(Errno(libc::EBADF)) };
        let stat = sys::fstat(inode.fd()?.as_fd())?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        Ok((self.attributes_of(&inode, &stat), !inode.same_as_seen(&stat, now)))
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

fn checked(span: Span) -> Result<Span> {
    if span.start > span.end || span.end > END { Err(Errno(libc::EINVAL)) } else { Ok(span) }
}

/// The length of a range as fcntl(2) takes it: 0 for all following bytes.
fn length(span: Span) -> u64 {
    if span.end == END { 0 } else { span.end - span.start + 1 }
}

fn lock_type(kind: Option<LockKind>) -> i32 {
    match kind {
        Some(LockKind::Read) => libc::F_RDLCK,
        Some(LockKind::Write) => libc::F_WRLCK,
        None => libc::F_UNLCK,
    }
}
