//! The table of the ranges that a guest has locked on the host. [`locks`](super::locks) says what it is for.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::AsFd;

use super::bind::Bind;
use super::errno::{Errno, Result};
use super::inode::DescriptorCount;
use super::sys;
use crate::{Encoder, StateError};

/// Limit of the ranges that a machine has locked, and so of their owners, each of which takes a descriptor for each
/// file. The host's kernel searches all ranges of a file for each lock, which takes up to half a millisecond with this
/// limit.
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
pub type LockOwner = ((u64, u64), u64);

/// The ranges that the guest has locked.
pub struct Locks {
    owners: HashMap<LockOwner, Held>,
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

    /// Writes all ranges. `node` returns the number of a file's node in a bind.
    pub fn save(
        &self,
        node: impl Fn(u64, (u64, u64)) -> Option<u64>,
        state: &mut Encoder,
    ) -> std::result::Result<(), StateError> {
        state.u32(self.owners.len() as u32);
        for ((key, owner), held) in &self.owners {
            let node = node(held.bind, *key).ok_or(StateError::Busy("a locked file is unknown"))?;
            state.u64(node).u64(*owner).u32(held.ranges.0.len() as u32);
            for (start, (end, kind)) in &held.ranges.0 {
                state.u64(*start).u64(*end).u8((*kind == LockKind::Write).into());
            }
        }
        Ok(())
    }

    /// Numbers of owners and of ranges.
    #[cfg(test)]
    pub fn counts(&self) -> (usize, usize) {
        (self.owners.len(), self.ranges)
    }

    /// Adds an owner, unless it has ranges in the file already. `open` opens its descriptor; the number of the bind is
    /// that through which it does. Fails if there is no room for the ranges of another lock.
    pub fn add_owner(
        &mut self,
        key: LockOwner,
        bind: u64,
        open: impl FnOnce() -> Result<(File, DescriptorCount)>,
    ) -> Result<()> {
        // A range in the middle of another one leaves two more.
        if self.ranges + 2 > self.limit {
            return Err(Errno(libc::ENOLCK));
        }
        if let Entry::Vacant(owner) = self.owners.entry(key) {
            let (file, count) = open()?;
            owner.insert(Held { file, ranges: Ranges::default(), bind, _count: count });
        }
        Ok(())
    }

    /// Returns the descriptor with the owner's ranges in the file, if it has any.
    pub fn file(&self, key: LockOwner) -> Option<&File> {
        self.owners.get(&key).map(|held| &held.file)
    }

    pub fn set(&mut self, key: LockOwner, span: Span, kind: LockKind) -> Result<()> {
        let held = self.owners.get_mut(&key).ok_or(Errno(libc::ENOLCK))?;
        sys::lock::set_range(held.file.as_fd(), lock_type(Some(kind)), span.start, length(span))?;
        self.ranges -= held.ranges.0.len();
        held.ranges.set(span, Some(kind));
        self.ranges += held.ranges.0.len();
        Ok(())
    }

    pub fn unset(&mut self, key: LockOwner, span: Span) -> Result<()> {
        let Some(held) = self.owners.get_mut(&key) else { return Ok(()) };
        if self.ranges >= self.limit && held.ranges.splits(span) {
            return Err(Errno(libc::ENOLCK));
        }
        sys::lock::set_range(held.file.as_fd(), lock_type(None), span.start, length(span))?;
        self.ranges -= held.ranges.0.len();
        held.ranges.set(span, None);
        self.ranges += held.ranges.0.len();
        self.drop_idle(key);
        Ok(())
    }

    /// Closes the descriptor of an owner without ranges.
    pub fn drop_idle(&mut self, key: LockOwner) {
        if self.owners.get(&key).is_some_and(|held| held.ranges.0.is_empty()) {
            self.owners.remove(&key);
        }
    }
}

/// The length of a range as fcntl(2) takes it: 0 for all following bytes.
pub fn length(span: Span) -> u64 {
    if span.end == END { 0 } else { span.end - span.start + 1 }
}

pub fn lock_type(kind: Option<LockKind>) -> i32 {
    match kind {
        Some(LockKind::Read) => libc::F_RDLCK,
        Some(LockKind::Write) => libc::F_WRLCK,
        None => libc::F_UNLCK,
    }
}
