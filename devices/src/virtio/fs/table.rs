//! Every inode and open file of one guest, by number, bounded by the descriptors the process may have.

use std::collections::{BTreeSet, HashMap};
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::dir::Cursor;
use super::errno::{Errno, Result};
use super::identity::Identity;
use super::inode::{Inode, Pin, Slot};
use super::share::Bind;
use super::sys::Stat;

/// The most inodes that a guest may know. One takes half a kilobyte of the host's memory, and at least as much of the
/// guest's; those with descriptors are fewer.
pub const MAX_INODES: usize = 1 << 22;
/// How many descriptors are taken from inodes at once when they run out.
const EVICT: usize = 32;
/// How many inodes are looked at for that.
const EVICT_LOOKED_AT: usize = 4096;

/// A file or directory that the guest has open.
pub struct Handle {
    /// The inode it was opened on.
    pub inode: Arc<Inode>,
    /// The host's open file.
    pub file: File,
    /// Where a directory's reader is; `None` for files.
    pub cursor: Option<Mutex<Cursor>>,
}

impl Handle {
    /// Returns an open file, of which its inode knows.
    pub fn new(inode: &Arc<Inode>, file: File, cursor: Option<Mutex<Cursor>>) -> Handle {
        inode.open.fetch_add(1, Ordering::Relaxed);
        Handle { inode: inode.clone(), file, cursor }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.inode.open.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Known {
    inode: Arc<Inode>,
    lookups: u64,
}

/// Inodes and open files. Numbers only grow, and are never used again.
pub struct Table {
    inodes: HashMap<u64, Known>,
    /// Those among them that have a descriptor.
    pinned: BTreeSet<u64>,
    by_key: HashMap<(u64, u64, u64), u64>,
    /// The shares of which an inode is known, or was.
    binds: BTreeSet<u64>,
    handles: HashMap<u64, (Arc<Handle>, Slot)>,
    next_inode: u64,
    next_handle: u64,
    /// Descriptors in use.
    descriptors: Arc<AtomicUsize>,
    limit: usize,
    max_inodes: usize,
    /// Where the search for a descriptor to take goes on.
    hand: u64,
    /// Some inode has given its descriptor up since the table was last empty.
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
            next_inode: super::wire::ROOT_ID + 1,
            next_handle: 1,
            descriptors: Arc::new(AtomicUsize::new(0)),
            limit,
            max_inodes,
            hand: 0,
            evicted: false,
        }
    }

    /// The inode with this number.
    pub fn inode(&self, id: u64) -> Result<Arc<Inode>> {
        // Linux answers ESTALE with a fresh lookup of the path, which is what a share taken away needs.
        let known = self.inodes.get(&id).ok_or(Errno(libc::ESTALE))?;
        known.inode.used.store(true, Ordering::Relaxed);
        Ok(known.inode.clone())
    }

    /// The inode with this key, if it is known.
    fn known(&mut self, bind: &Bind, key: (u64, u64)) -> Option<&mut Known> {
        self.inodes.get_mut(self.by_key.get(&(bind.id, key.0, key.1))?)
    }

    /// Counts a lookup of the inode of this file, if it is known and surely the same.
    pub fn find(&mut self, bind: &Bind, stat: &Stat) -> Option<Arc<Inode>> {
        let evicted = self.evicted;
        let known = self.known(bind, (stat.st_dev, stat.st_ino))?;
        // Some file systems give one number to several files.
        if evicted && !known.inode.is_pinned() || known.inode.kind != stat.st_mode & libc::S_IFMT {
            return None;
        }
        known.lookups = known.lookups.saturating_add(1);
        known.inode.used.store(true, Ordering::Relaxed);
        Some(known.inode.clone())
    }

    /// Counts one more lookup of an inode that the guest has.
    pub fn hold(&mut self, id: u64) -> Result<()> {
        let known = self.inodes.get_mut(&id).ok_or(Errno(libc::ESTALE))?;
        known.lookups = known.lookups.saturating_add(1);
        Ok(())
    }

    /// Counts a lookup of the file behind `fd`: the inode known for it, else a new one that keeps `fd`.
    pub fn intern(&mut self, bind: &Arc<Bind>, fd: OwnedFd, stat: &Stat) -> Result<Arc<Inode>> {
        present(bind)?;
        if let Some(inode) = self.find(bind, stat) {
            return Ok(inode);
        }
        self.room()?;
        let key = (stat.st_dev, stat.st_ino);
        let slot = Slot::take(&self.descriptors);
        if let Some(known) = self.known(bind, key).filter(|known| !known.inode.is_pinned()) {
            // It had given its descriptor up, and gets this one, if it is not another file with the same number.
            if known.inode.is(&Identity::of(fd.as_fd(), c"")?) {
                known.lookups = known.lookups.saturating_add(1);
                let inode = known.inode.clone();
                inode.pin(Pin::new(fd, slot));
                self.pinned.insert(inode.id);
                return Ok(inode);
            }
        }
        if self.inodes.len() >= self.max_inodes {
            return Err(Errno(libc::ENFILE));
        }
        let id = self.next_inode;
        self.next_inode += 1;
        let inode = Arc::new(Inode::new(id, bind, Pin::new(fd, slot), stat));
        self.by_key.insert((bind.id, key.0, key.1), id);
        self.binds.insert(bind.id);
        self.pinned.insert(id);
        self.inodes.insert(id, Known { inode: inode.clone(), lookups: 1 });
        Ok(inode)
    }

    /// Takes `count` lookups back; with the last one the inode goes.
    pub fn forget(&mut self, id: u64, count: u64) {
        let Some(known) = self.inodes.get_mut(&id) else { return };
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups == 0 {
            let key = (known.inode.bind.id, known.inode.key.0, known.inode.key.1);
            // The key may have gone to a newer file.
            if self.by_key.get(&key) == Some(&id) {
                self.by_key.remove(&key);
            }
            known.inode.lose_place();
            self.inodes.remove(&id);
            self.pinned.remove(&id);
        }
    }

    /// Some inodes may have no descriptor of their own: what is about to lose its name must be pinned.
    pub fn has_evicted(&self) -> bool {
        self.evicted
    }

    /// Descriptors will soon have to be taken from inodes.
    pub fn is_crowded(&self) -> bool {
        self.descriptors.load(Ordering::Relaxed) > self.limit / 2
    }

    /// The inode of a file in one share, if it is known.
    fn inode_in(&self, bind: u64, key: (u64, u64)) -> Option<Arc<Inode>> {
        let known = self.inodes.get(self.by_key.get(&(bind, key.0, key.1))?)?;
        Some(known.inode.clone())
    }

    /// Notes that the file with this key is now at `name` in `dir`, in every share that knows both.
    pub fn moved(&mut self, key: (u64, u64), dir: &Arc<Inode>, name: &CStr) {
        for bind in &self.binds {
            let own = *bind == dir.bind.id;
            let there = if own { Some(dir.clone()) } else { self.inode_in(*bind, dir.key) };
            if let (Some(inode), Some(there)) = (self.inode_in(*bind, key), there) {
                inode.found_at(&there, name);
            }
        }
    }

    /// Pins the inodes of the file with this key that have given their descriptors up. Directories overlap where one is
    /// bound twice or lies below another: each share has an inode of its own for the file.
    pub fn pin(&mut self, key: (u64, u64)) -> Result<()> {
        let inodes: Vec<_> = self.binds.iter().filter_map(|bind| self.inode_in(*bind, key)).collect();
        for inode in inodes.into_iter().filter(|inode| !inode.is_pinned()) {
            self.room()?;
            // One that is stale already has nothing to lose.
            if let Ok(found) = inode.fd() {
                let fd = found.as_fd().try_clone_to_owned()?;
                inode.pin(Pin::new(fd, Slot::take(&self.descriptors)));
                self.pinned.insert(inode.id);
            }
        }
        Ok(())
    }

    /// Keeps an open file; returns its number.
    pub fn open(&mut self, handle: Handle) -> Result<u64> {
        present(&handle.inode.bind)?;
        self.room()?;
        let id = self.next_handle;
        self.next_handle += 1;
        self.handles.insert(id, (Arc::new(handle), Slot::take(&self.descriptors)));
        Ok(id)
    }

    /// The open file with this number, if it was opened on `inode`.
    pub fn handle(&self, id: u64, inode: u64) -> Result<Arc<Handle>> {
        let known = self.handles.get(&id).filter(|(handle, _)| handle.inode.id == inode);
        known.map(|(handle, _)| handle.clone()).ok_or(Errno(libc::EBADF))
    }

    /// Gives up the open file with this number. It closes when the last one drops it.
    pub fn close(&mut self, id: u64, inode: u64) -> Result<Arc<Handle>> {
        let handle = self.handle(id, inode)?;
        self.handles.remove(&id);
        Ok(handle)
    }

    /// Closes everything that belongs to a share, and keeps requests at work from adding to it.
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

    /// Closes everything: the guest starts anew.
    pub fn clear(&mut self) {
        self.handles = HashMap::new();
        self.inodes.values().for_each(|known| known.inode.lose_place());
        self.inodes = HashMap::new();
        self.pinned = BTreeSet::new();
        self.by_key = HashMap::new();
        self.binds = BTreeSet::new();
        self.evicted = false;
    }

    /// How many inodes and how many open files there are.
    pub fn counts(&self) -> (usize, usize) {
        (self.inodes.len(), self.handles.len())
    }

    /// What directories that are being read take of memory.
    #[cfg(test)]
    pub fn listing_bytes(&self) -> usize {
        let cursors = self.handles.values().filter_map(|(handle, _)| handle.cursor.as_ref());
        cursors.map(|cursor| cursor.lock().unwrap().bytes()).sum()
    }

    #[cfg(test)]
    pub fn descriptors(&self) -> usize {
        self.descriptors.load(Ordering::Relaxed)
    }

    /// Makes room for one more descriptor, if need be by taking some from inodes that can do without.
    fn room(&mut self) -> Result<()> {
        let full = |count: &AtomicUsize, limit| count.load(Ordering::Relaxed) >= limit;
        if full(&self.descriptors, self.limit) && self.evict(false) == 0 {
            self.evict(true);
        }
        if full(&self.descriptors, self.limit) { Err(Errno(libc::ENFILE)) } else { Ok(()) }
    }

    /// Takes descriptors from inodes that can do without, first from those that were not used lately; returns how many.
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
