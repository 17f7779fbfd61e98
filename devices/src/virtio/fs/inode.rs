//! The inodes that the guest knows, and the files it has open: numbers of the protocol to descriptors of the host.
//!
//! An inode is an O_PATH descriptor: it keeps exactly one file of the host alive, whatever happens to its name, and
//! cannot read, write or run into a device. While it is open its (device, number) pair belongs to no other file, so the
//! pair is the key under which a second lookup finds the same inode.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::dir::Cursor;
use super::errno::{Errno, Result};
use super::share::Bind;
use super::sys::Stat;

/// A file of the host that the guest has looked up.
pub struct Inode {
    /// Its number in the protocol.
    pub id: u64,
    /// The share through which the guest found it, and on whose terms it may use it.
    pub bind: Arc<Bind>,
    /// S_IFMT bits of its mode, which never change.
    pub kind: u32,
    /// Device and number on the host.
    pub key: (u64, u64),
    fd: OwnedFd,
    /// What the file looked like when the guest last opened it; `None` if it could change unseen.
    seen: Mutex<Option<Version>>,
    /// The last name looked up in this directory was that of a known inode.
    pub names_known: AtomicBool,
}

impl Inode {
    /// Its O_PATH descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// It is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == libc::S_IFDIR
    }

    /// It is the file or directory that the share was bound to.
    pub fn is_bind_root(&self) -> bool {
        self.key == self.bind.key
    }

    /// Refuses what changes anything if the share is read-only.
    pub fn writable(&self) -> Result<()> {
        if self.bind.read_only { Err(Errno(libc::EROFS)) } else { Ok(()) }
    }

    /// Notes what the file looks like as the guest opens it; returns whether it looked the same the last time.
    pub fn same_as_seen(&self, stat: &Stat, now: i64) -> bool {
        let version = Version::of(stat, now);
        let mut seen = self.seen.lock().unwrap();
        let same = version.is_some() && *seen == version;
        *seen = version;
        same
    }
}

/// What changes when a file's data does.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    ctime: (i64, i64),
    mtime: (i64, i64),
    size: i64,
}

impl Version {
    /// A file that changed within this time may change again without a new time stamp: host file systems take the time
    /// from a clock of up to 10 ms, and some store whole seconds.
    const SETTLED_S: i64 = 2;

    fn of(stat: &Stat, now: i64) -> Option<Version> {
        (stat.st_ctime < now.saturating_sub(Self::SETTLED_S)).then_some(Version {
            ctime: (stat.st_ctime, stat.st_ctime_nsec),
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            size: stat.st_size,
        })
    }
}

/// A file or directory that the guest has open.
pub struct Handle {
    /// The inode it was opened on.
    pub inode: Arc<Inode>,
    /// The host's open file.
    pub file: File,
    /// Where a directory's reader is; `None` for files.
    pub cursor: Option<Mutex<Cursor>>,
}

struct Known {
    inode: Arc<Inode>,
    lookups: u64,
}

/// Every inode and handle of one guest, bounded by the descriptors the process may have.
pub struct Table {
    inodes: HashMap<u64, Known>,
    by_key: HashMap<(u64, u64, u64), u64>,
    handles: HashMap<u64, Arc<Handle>>,
    next_inode: u64,
    next_handle: u64,
    limit: usize,
}

impl Table {
    /// Returns an empty table for at most `limit` inodes and handles together.
    pub fn new(limit: usize) -> Table {
        Table {
            inodes: HashMap::new(),
            by_key: HashMap::new(),
            handles: HashMap::new(),
            next_inode: super::wire::ROOT_ID + 1,
            next_handle: 1,
            limit,
        }
    }

    /// The inode with this number.
    pub fn inode(&self, id: u64) -> Result<Arc<Inode>> {
        // Linux answers ESTALE with a fresh lookup of the path, which is what a share taken away needs.
        self.inodes.get(&id).map(|known| known.inode.clone()).ok_or(Errno(libc::ESTALE))
    }

    /// Counts a lookup of the inode with this key, if it is known.
    pub fn find(&mut self, bind: &Bind, key: (u64, u64)) -> Option<Arc<Inode>> {
        let known = self.inodes.get_mut(self.by_key.get(&(bind.id, key.0, key.1))?)?;
        known.lookups = known.lookups.saturating_add(1);
        Some(known.inode.clone())
    }

    /// Counts a lookup of the file behind `fd`: the inode known for it, else a new one that keeps `fd`.
    pub fn intern(&mut self, bind: &Arc<Bind>, fd: OwnedFd, stat: &Stat) -> Result<Arc<Inode>> {
        present(bind)?;
        let key = (stat.st_dev, stat.st_ino);
        if let Some(inode) = self.find(bind, key) {
            return Ok(inode);
        }
        self.room()?;
        let id = self.next_inode;
        self.next_inode += 1;
        let inode = Arc::new(Inode {
            id,
            bind: bind.clone(),
            kind: stat.st_mode & libc::S_IFMT,
            key,
            fd,
            seen: Mutex::new(None),
            names_known: AtomicBool::new(false),
        });
        self.by_key.insert((bind.id, key.0, key.1), id);
        self.inodes.insert(id, Known { inode: inode.clone(), lookups: 1 });
        Ok(inode)
    }

    /// Takes `count` lookups back; with the last one the inode goes.
    pub fn forget(&mut self, id: u64, count: u64) {
        let Some(known) = self.inodes.get_mut(&id) else { return };
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups == 0 {
            let (bind, key) = (known.inode.bind.id, known.inode.key);
            self.by_key.remove(&(bind, key.0, key.1));
            self.inodes.remove(&id);
        }
    }

    /// Keeps an open file; returns its number.
    pub fn open(&mut self, handle: Handle) -> Result<u64> {
        present(&handle.inode.bind)?;
        self.room()?;
        let id = self.next_handle;
        self.next_handle += 1;
        self.handles.insert(id, Arc::new(handle));
        Ok(id)
    }

    /// The open file with this number, if it was opened on `inode`.
    pub fn handle(&self, id: u64, inode: u64) -> Result<Arc<Handle>> {
        self.handles.get(&id).filter(|handle| handle.inode.id == inode).cloned().ok_or(Errno(libc::EBADF))
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
        self.handles.retain(|_, handle| handle.inode.bind.id != bind.id);
        self.inodes.retain(|_, known| known.inode.bind.id != bind.id);
        self.by_key.retain(|key, _| key.0 != bind.id);
    }

    /// Closes everything: the guest starts anew. Numbers are not used again.
    pub fn clear(&mut self) {
        self.handles = HashMap::new();
        self.inodes = HashMap::new();
        self.by_key = HashMap::new();
    }

    /// How many inodes and how many handles there are.
    pub fn counts(&self) -> (usize, usize) {
        (self.inodes.len(), self.handles.len())
    }

    fn room(&self) -> Result<()> {
        if self.inodes.len() + self.handles.len() < self.limit { Ok(()) } else { Err(Errno(libc::ENFILE)) }
    }
}

fn present(bind: &Bind) -> Result<()> {
    if bind.revoked.load(Ordering::Relaxed) { Err(Errno(libc::ESTALE)) } else { Ok(()) }
}
