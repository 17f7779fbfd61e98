//! All inodes and open files of one guest, by number, limited by the process's file descriptors.

use std::collections::{BTreeSet, HashMap};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::bind::Bind;
use super::errno::{Errno, Result};
use super::handle::Handle;
use super::identity::Identity;
use super::inode::{DescriptorCount, Inode, Pin};
use super::sys::{self, Stat};

mod saved;

pub use saved::SavedHandle;

/// Number of the root directory, which is also FUSE's.
pub const ROOT_ID: u64 = 1;
/// Limit of inodes that a guest may know. Each takes half a kilobyte of the host's memory, and at least as much of the
/// guest's. Fewer of them have a descriptor.
pub const MAX_INODES: usize = 1 << 22;
/// Number of descriptors that are taken from inodes at once when the limit is reached.
const EVICT: usize = 32;
/// Limit of inodes that are examined for that.
const EVICT_LOOKED_AT: usize = 4096;

struct Known {
    inode: Arc<Inode>,
    lookups: u64,
}

/// The inodes and open files. Their numbers only grow and are never reused.
pub struct Table {
    inodes: HashMap<u64, Known>,
    /// Numbers of the inodes that have a descriptor and may lose it.
    pinned: BTreeSet<u64>,
    by_key: HashMap<(u64, u64, u64), u64>,
    /// Numbers of the binds of which an inode is or was known.
    binds: BTreeSet<u64>,
    handles: HashMap<u64, (Arc<Handle>, DescriptorCount)>,
    /// Numbers of open files of a saved machine that could not be opened again.
    stale: BTreeSet<u64>,
    next_inode: u64,
    next_handle: u64,
    /// Number of descriptors in use.
    descriptors: Arc<AtomicUsize>,
    limit: usize,
    max_inodes: usize,
    /// Inode number at which the next search for a descriptor to take continues.
    hand: u64,
    /// An inode has given up its descriptor since the table was last empty.
    evicted: bool,
}

impl Table {
    /// Returns an empty table for at most `limit` descriptors and `max_inodes` inodes.
    pub fn new(limit: usize, max_inodes: usize) -> Table {
        Table {
            inodes: HashMap::new(),
            pinned: BTreeSet::new(),
            by_key: HashMap::new(),
            binds: BTreeSet::new(),
            handles: HashMap::new(),
            stale: BTreeSet::new(),
            next_inode: ROOT_ID + 1,
            next_handle: 1,
            descriptors: Arc::new(AtomicUsize::new(0)),
            limit,
            max_inodes,
            hand: 0,
            evicted: false,
        }
    }

    /// Returns the inode with this number.
    pub fn inode(&self, id: u64) -> Result<Arc<Inode>> {
        // After ESTALE Linux looks the path up again, which is right for a bind that was removed.
        let known = self.inodes.get(&id).ok_or(Errno(libc::ESTALE))?;
        known.inode.used.store(true, Ordering::Relaxed);
        Ok(known.inode.clone())
    }

    /// Returns the inode with this key, if it is known.
    fn known(&mut self, bind: &Bind, key: (u64, u64)) -> Option<&mut Known> {
        self.inodes.get_mut(self.by_key.get(&(bind.id, key.0, key.1))?)
    }

    /// Counts a lookup of this file's inode, if it is known and certainly the same file.
    pub fn find(&mut self, bind: &Bind, stat: &Stat) -> Option<Arc<Inode>> {
        let evicted = self.evicted;
        let known = self.known(bind, (stat.st_dev, stat.st_ino))?;
        // Some file systems give the same number to several files. Without a descriptor, a removed file's number may have
        // gone to another.
        let held = !evicted || known.inode.is_pinned() || known.inode.is_open();
        if !held || known.inode.kind != stat.st_mode & libc::S_IFMT {
            return None;
        }
        known.lookups = known.lookups.saturating_add(1);
        known.inode.used.store(true, Ordering::Relaxed);
        Some(known.inode.clone())
    }

    /// Returns the inode of this file, if the guest knows it.
    pub fn find_known(&self, bind: &Bind, stat: &Stat) -> Option<Arc<Inode>> {
        self.inode_in(bind.id, (stat.st_dev, stat.st_ino))
    }

    /// Counts one more lookup of an inode that the guest knows.
    pub fn hold(&mut self, id: u64) -> Result<()> {
        let known = self.inodes.get_mut(&id).ok_or(Errno(libc::ESTALE))?;
        known.lookups = known.lookups.saturating_add(1);
        Ok(())
    }

    /// Counts a lookup of the file of `fd`. Returns its known inode, or else a new one, which keeps `fd`.
    pub fn intern(&mut self, bind: &Arc<Bind>, fd: OwnedFd, stat: &Stat) -> Result<Arc<Inode>> {
        present(bind)?;
        if let Some(inode) = self.find(bind, stat) {
            return Ok(inode);
        }
        self.room()?;
        let key = (stat.st_dev, stat.st_ino);
        let count = DescriptorCount::new(&self.descriptors);
        if let Some(known) = self.known(bind, key).filter(|known| !known.inode.is_pinned()) {
            // The inode has given up its descriptor. It gets `fd`, unless that is another file with the same number.
            if known.inode.is(&Identity::of(fd.as_fd(), c"")?) {
                known.lookups = known.lookups.saturating_add(1);
                let inode = known.inode.clone();
                inode.pin(Pin::new(fd, count));
                self.pinned.insert(inode.id);
                return Ok(inode);
            }
        }
        if self.inodes.len() >= self.max_inodes {
            return Err(Errno(libc::ENFILE));
        }
        let id = self.next_inode;
        self.next_inode += 1;
        let inode = Arc::new(Inode::new(id, bind, Pin::new(fd, count), stat));
        self.by_key.insert((bind.id, key.0, key.1), id);
        self.binds.insert(bind.id);
        self.pinned.insert(id);
        self.inodes.insert(id, Known { inode: inode.clone(), lookups: 1 });
        Ok(inode)
    }

    /// Takes back `count` lookups, and removes the inode if none is left. Returns whether it did.
    pub fn forget(&mut self, id: u64, count: u64) -> bool {
        let Some(known) = self.inodes.get_mut(&id) else { return false };
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups == 0 {
            let key = (known.inode.bind.id, known.inode.key.0, known.inode.key.1);
            // The key may belong to a newer file.
            if self.by_key.get(&key) == Some(&id) {
                self.by_key.remove(&key);
            }
            known.inode.lose_place();
            self.inodes.remove(&id);
            self.pinned.remove(&id);
            return true;
        }
        false
    }

    /// Whether inodes may be without a descriptor, so that a file must be pinned before its name is removed.
    pub fn has_evicted(&self) -> bool {
        self.evicted
    }

    /// Whether descriptors will soon have to be taken from inodes.
    pub fn is_crowded(&self) -> bool {
        self.descriptors.load(Ordering::Relaxed) > self.limit / 2
    }

    /// Lets an inode keep its descriptor, if it has one and descriptors are not scarce. Returns whether it does.
    pub fn keep(&mut self, inode: &Inode) -> bool {
        if self.is_crowded() || !inode.keep_pin() {
            return false;
        }
        self.pinned.remove(&inode.id);
        true
    }

    /// Returns the inode of a file in one bind, if it is known.
    pub fn inode_in(&self, bind: u64, key: (u64, u64)) -> Option<Arc<Inode>> {
        let known = self.inodes.get(self.by_key.get(&(bind, key.0, key.1))?)?;
        Some(known.inode.clone())
    }

    /// Records that the file with this key is now at `name` in `dir`, in every bind that knows both.
    pub fn moved(&mut self, key: (u64, u64), dir: &Arc<Inode>, name: &CStr) {
        for bind in &self.binds {
            let own = *bind == dir.bind.id;
            let there = if own { Some(dir.clone()) } else { self.inode_in(*bind, dir.key) };
            if let (Some(inode), Some(there)) = (self.inode_in(*bind, key), there) {
                inode.found_at(&there, name);
            }
        }
    }

    /// Pins all inodes of the file with this key that have given up their descriptors. There can be several: if a
    /// directory is bound twice, or binds are nested, each bind has its own inode for the file. The file is at `name` in
    /// `dir`.
    pub fn pin(&mut self, key: (u64, u64), dir: BorrowedFd, name: &CStr) -> Result<()> {
        let inodes: Vec<_> = self.binds.iter().filter_map(|bind| self.inode_in(*bind, key)).collect();
        // An open file is not lost with its name.
        for inode in inodes.into_iter().filter(|inode| !inode.is_pinned() && !inode.is_open()) {
            self.room()?;
            let fd = sys::openat(dir, name, libc::O_PATH | libc::O_NOFOLLOW, 0)?;
            // A stale inode stays stale.
            if inode.is(&Identity::of(fd.as_fd(), c"")?) {
                inode.pin(Pin::new(fd, DescriptorCount::new(&self.descriptors)));
                self.pinned.insert(inode.id);
            }
        }
        Ok(())
    }

    /// Stores an open file. Returns its number.
    pub fn open(&mut self, handle: impl Into<Arc<Handle>>) -> Result<u64> {
        let handle = handle.into();
        present(&handle.inode.bind)?;
        // The descriptor of the open file serves its inode as well.
        if self.is_crowded() && handle.inode.unpin() {
            self.pinned.remove(&handle.inode.id);
            self.evicted = true;
        }
        self.room()?;
        let id = self.next_handle;
        self.next_handle += 1;
        self.handles.insert(id, (handle, DescriptorCount::new(&self.descriptors)));
        Ok(id)
    }

    /// Returns the open file with this number, if it was opened on `inode`.
    pub fn handle(&self, id: u64, inode: u64) -> Result<Arc<Handle>> {
        let known = self.handles.get(&id).filter(|(handle, _)| handle.inode.id == inode);
        let missing = if self.stale.contains(&id) { libc::ESTALE } else { libc::EBADF };
        known.map(|(handle, _)| handle.clone()).ok_or(Errno(missing))
    }

    /// Removes and returns the open file with this number. It is closed when its last reference is dropped.
    pub fn close(&mut self, id: u64, inode: u64) -> Result<Arc<Handle>> {
        let handle = self.handle(id, inode).inspect_err(|_| _ = self.stale.remove(&id))?;
        self.handles.remove(&id);
        Ok(handle)
    }

    /// Closes all files and forgets all inodes of a bind, and prevents requests in progress from adding new ones.
    pub fn purge(&mut self, bind: &Bind) {
        bind.revoked.store(true, Ordering::Relaxed);
        self.handles.retain(|_, (handle, _)| handle.inode.bind.id != bind.id);
        self.inodes.retain(|_, known| {
            let keep = known.inode.bind.id != bind.id;
            if !keep {
                known.inode.lose_place();
            }
            keep
        });
        self.pinned.retain(|id| self.inodes.contains_key(id));
        self.by_key.retain(|key, _| key.0 != bind.id);
        self.binds.remove(&bind.id);
    }

    /// Closes all files and forgets all inodes, when the guest starts a new session.
    pub fn clear(&mut self) {
        self.handles = HashMap::new();
        self.stale = BTreeSet::new();
        self.inodes.values().for_each(|known| known.inode.lose_place());
        self.inodes = HashMap::new();
        self.pinned = BTreeSet::new();
        self.by_key = HashMap::new();
        self.binds = BTreeSet::new();
        self.evicted = false;
    }

    /// Numbers of inodes and of open files.
    pub fn counts(&self) -> (usize, usize) {
        (self.inodes.len(), self.handles.len())
    }

    /// Size of the buffers of all open directories, in bytes.
    #[cfg(test)]
    pub fn listing_bytes(&self) -> usize {
        let cursors = self.handles.values().filter_map(|(handle, _)| handle.cursor.as_ref());
        cursors.map(|cursor| cursor.lock().unwrap().bytes()).sum()
    }

    #[cfg(test)]
    pub fn descriptors(&self) -> usize {
        self.descriptors.load(Ordering::Relaxed)
    }

    /// Counts a descriptor that belongs to no inode and no open file.
    pub fn descriptor(&mut self) -> Result<DescriptorCount> {
        self.room()?;
        Ok(DescriptorCount::new(&self.descriptors))
    }

    /// Makes one more descriptor available, if necessary by taking some from inodes that can be found again.
    fn room(&mut self) -> Result<()> {
        let full = |count: &AtomicUsize, limit| count.load(Ordering::Relaxed) >= limit;
        if full(&self.descriptors, self.limit) && self.evict(false) == 0 {
            self.evict(true);
        }
        if full(&self.descriptors, self.limit) { Err(Errno(libc::ENFILE)) } else { Ok(()) }
    }

    /// Takes descriptors from inodes that can be found again: those that were not used recently, or with `used_too`
    /// any. Returns the number of descriptors taken.
    fn evict(&mut self, used_too: bool) -> usize {
        let mut freed = 0;
        for _ in 0..EVICT_LOOKED_AT.min(self.pinned.len() + 1) {
            let Some(id) = self.pinned.range(self.hand..).next().copied() else {
                self.hand = 0;
                continue;
            };
            self.hand = id + 1;
            let Some(known) = self.inodes.get(&id) else { continue };
            let used = known.inode.used.swap(false, Ordering::Relaxed);
            if (used_too || !used) && known.inode.unpin() {
                self.pinned.remove(&id);
                self.evicted = true;
                freed += 1;
                if freed == EVICT {
                    break;
                }
            }
        }
        freed
    }
}

fn present(bind: &Bind) -> Result<()> {
    if bind.revoked.load(Ordering::Relaxed) { Err(Errno(libc::ESTALE)) } else { Ok(()) }
}
