//! The inodes that the guest knows, each with its file descriptor on the host.
//!
//! An inode has an O_PATH descriptor. The descriptor pins one file of the host even if its name changes, and cannot be
//! used to read, write or open a device. While it is open, no other file can get the same device and inode number, so
//! these two numbers are the key by which a second lookup finds the same inode.
//!
//! The number of descriptors is limited. At the limit, inodes give up their descriptors if they were not used recently and
//! are still at the location where the guest found them ([`Inode::unpin`]). When such an inode is needed, the descriptor
//! of an open file serves, or it is found again by name ([`Inode::fd`]), however deep, and must be the same file
//! ([`Identity`]). A file that the host or
//! another machine has moved, removed or replaced meanwhile is stale, and the guest looks its name up again. A file
//! that the guest itself moves or removes is pinned before.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::bind::Bind;
use super::errno::{Errno, Result};
use super::identity::Identity;
use super::sys::{self, Stat};

mod saved;

const PIN_FLAGS: i32 = libc::O_PATH | libc::O_NOFOLLOW;

/// RAII guard that counts one of the guest's descriptors.
pub struct DescriptorCount(Arc<AtomicUsize>);

impl DescriptorCount {
    /// Counts one more descriptor.
    pub fn new(count: &Arc<AtomicUsize>) -> DescriptorCount {
        count.fetch_add(1, Ordering::Relaxed);
        DescriptorCount(count.clone())
    }
}

impl Drop for DescriptorCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An inode's descriptor, shared by the inode and the requests that use it.
pub struct Pin {
    fd: PinFd,
    /// `None` if the descriptor is not the inode's own.
    count: Option<DescriptorCount>,
}

enum PinFd {
    Path(OwnedFd),
    /// That of an open file.
    Open(Arc<File>),
}

impl Pin {
    /// Returns a descriptor that is counted by `count`.
    pub fn new(fd: OwnedFd, count: DescriptorCount) -> Pin {
        Pin { fd: PinFd::Path(fd), count: Some(count) }
    }

    /// Whether the file was found again by name for a single request.
    pub fn is_found_anew(&self) -> bool {
        self.count.is_none() && matches!(self.fd, PinFd::Path(_))
    }
}

impl AsFd for Pin {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.fd {
            PinFd::Path(fd) => fd.as_fd(),
            PinFd::Open(file) => file.as_fd(),
        }
    }
}

/// Limit of parent directories that are found again to reach a file. Each takes some system calls, and the descriptor of
/// its parent is closed before the next one is opened. Outdated locations can form a cycle, which ends here.
const MAX_DEPTH: usize = 1 << 16;

/// The directory and name at which the guest last found a file.
#[derive(Clone)]
struct Location {
    dir: Arc<Inode>,
    name: CString,
}

struct State {
    pin: Option<Arc<Pin>>,
    /// The guest's open files, by address.
    open: BTreeMap<usize, Weak<File>>,
    location: Option<Location>,
    /// Identity of the file, recorded when it gave up its descriptor.
    identity: Option<Identity>,
    /// Version of the file when the guest last opened it; `None` if a later change might not be visible in it.
    seen: Option<Version>,
    /// Version of which the guest's kernel knows: that of the last reply, or of the guest's last change.
    told: Option<Version>,
    /// Others have changed the file since they last closed it.
    changed: bool,
}

/// How an inode's file is reached.
enum Known {
    Pinned(Arc<Pin>),
    At(Location, Identity),
    Lost,
}

/// Opens the file at a location again. A file that is no longer there is stale; a shortage of descriptors is not.
fn find_again(dir: &Pin, name: &CStr, identity: &Identity) -> Result<Arc<Pin>> {
    let lost = |errno| match errno {
        Errno(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => Errno(libc::ENFILE),
        _ => Errno(libc::ESTALE),
    };
    let fd = sys::openat(dir.as_fd(), name, PIN_FLAGS, 0).map_err(lost)?;
    match Identity::of(fd.as_fd(), c"").map_err(lost)? == *identity {
        true => Ok(Arc::new(Pin { fd: PinFd::Path(fd), count: None })),
        false => Err(Errno(libc::ESTALE)),
    }
}

/// How a file differs from what the guest's kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The guest's kernel was not told anything before.
    Unknown,
    /// Not at all.
    Same,
    /// At most its data is the same.
    Attributes,
    /// In its data.
    Data,
}

/// A file of the host that the guest has looked up.
pub struct Inode {
    /// Inode number in the protocol.
    pub id: u64,
    /// The bind through which the guest found the file. Its terms apply.
    pub bind: Arc<Bind>,
    /// S_IFMT bits of the file's mode, which never change.
    pub kind: u32,
    /// Device and inode number on the host.
    pub key: (u64, u64),
    /// The guest has used the inode since the table last checked it for eviction.
    pub used: AtomicBool,
    /// The last name looked up in this directory was that of a known inode.
    pub names_known: AtomicBool,
    /// The directory's file system cannot be watched.
    unwatchable: AtomicBool,
    /// The guest has locked a file in this directory.
    locks: AtomicBool,
    /// The inode keeps its descriptor as long as the guest knows it.
    keeps_pin: AtomicBool,
    state: Mutex<State>,
}

impl Inode {
    /// Returns the inode of the file behind `pin`.
    pub fn new(id: u64, bind: &Arc<Bind>, pin: Pin, stat: &Stat) -> Inode {
        Inode {
            id,
            bind: bind.clone(),
            kind: stat.st_mode & libc::S_IFMT,
            key: (stat.st_dev, stat.st_ino),
            used: AtomicBool::new(true),
            names_known: AtomicBool::new(false),
            unwatchable: AtomicBool::new(false),
            locks: AtomicBool::new(false),
            keeps_pin: AtomicBool::new(false),
            state: Mutex::new(State {
                pin: Some(Arc::new(pin)),
                open: BTreeMap::new(),
                location: None,
                identity: None,
                seen: None,
                told: None,
                changed: false,
            }),
        }
    }

    /// Returns a descriptor of the file: the inode's own, that of an open file, or else one found again by name, which is
    /// closed when the caller drops it.
    pub fn fd(&self) -> Result<Arc<Pin>> {
        let mut missing = Vec::new();
        let mut at = match self.look_up() {
            Known::Pinned(pin) => return Ok(pin),
            Known::Lost => return Err(Errno(libc::ESTALE)),
            Known::At(location, identity) => {
                let parent = location.dir.clone();
                missing.push((location.name, identity));
                parent
            }
        };
        let mut pin = loop {
            let parent = match at.look_up() {
                Known::Pinned(pin) => break pin,
                Known::At(location, identity) if missing.len() < MAX_DEPTH => {
                    missing.push((location.name, identity));
                    location.dir
                }
                _ => return Err(Errno(libc::ESTALE)),
            };
            at = parent;
        };
        while let Some((name, identity)) = missing.pop() {
            pin = find_again(&pin, &name, &identity)?;
        }
        Ok(pin)
    }

    fn look_up(&self) -> Known {
        let state = self.state.lock().unwrap();
        if let Some(pin) = &state.pin {
            return Known::Pinned(pin.clone());
        }
        if let Some(file) = state.open.values().find_map(Weak::upgrade) {
            return Known::Pinned(Arc::new(Pin { fd: PinFd::Open(file), count: None }));
        }
        match (&state.location, &state.identity) {
            (Some(location), Some(identity)) if self.can_be(identity) => {
                Known::At(location.clone(), identity.clone())
            }
            _ => Known::Lost,
        }
    }

    /// Adds an open file of the guest.
    pub fn opened(&self, file: &Arc<File>) {
        self.state.lock().unwrap().open.insert(Arc::as_ptr(file).addr(), Arc::downgrade(file));
    }

    /// Removes an open file of the guest.
    pub fn closed(&self, file: &Arc<File>) {
        self.state.lock().unwrap().open.remove(&Arc::as_ptr(file).addr());
    }

    /// Whether the guest has opened the file.
    pub fn is_open(&self) -> bool {
        !self.state.lock().unwrap().open.is_empty()
    }

    /// Records the location at which the guest found the file.
    pub fn found_at(&self, dir: &Arc<Inode>, name: &CStr) {
        let mut state = self.state.lock().unwrap();
        let same = |location: &Location| location.dir.id == dir.id && location.name.as_c_str() == name;
        if !state.location.as_ref().is_some_and(same) {
            state.location = Some(Location { dir: dir.clone(), name: name.to_owned() });
        }
    }

    /// Returns the directory and name at which the guest last found the file.
    pub fn location(&self) -> Option<(Arc<Inode>, CString)> {
        self.state
            .lock()
            .unwrap()
            .location
            .as_ref()
            .map(|location| (location.dir.clone(), location.name.clone()))
    }

    /// Returns the number of the directory in which the guest last found the file.
    pub fn parent(&self) -> Option<u64> {
        self.state.lock().unwrap().location.as_ref().map(|location| location.dir.id)
    }

    /// Whether changes in the directory cannot be watched.
    pub fn unwatchable(&self) -> bool {
        self.unwatchable.load(Ordering::Relaxed)
    }

    /// Whether the guest has locked a file in this directory, whose names others then change as well.
    pub fn has_locks(&self) -> bool {
        self.locks.load(Ordering::Relaxed)
    }

    /// Records that the guest has locked the file. A container's own root is not shared.
    pub fn note_lock(&self) {
        let state = self.state.lock().unwrap();
        if let Some(location) = state.location.as_ref().filter(|_| !self.bind.owned) {
            location.dir.locks.store(true, Ordering::Relaxed);
        }
    }

    /// Records that changes in the directory cannot be watched.
    pub fn set_unwatchable(&self) {
        self.unwatchable.store(true, Ordering::Relaxed);
    }

    /// Records what the guest's kernel knows of the file.
    pub fn tell(&self, stat: &Stat) {
        self.state.lock().unwrap().told = Some(Version::at(stat));
    }

    /// Compares the file with what the guest's kernel knows, and records that it is told.
    pub fn see(&self, stat: &Stat) -> Seen {
        let now = Version::at(stat);
        let mut state = self.state.lock().unwrap();
        let seen = match state.told.replace(now) {
            Some(told) if told == now => Seen::Same,
            Some(told) if (told.mtime, told.size) == (now.mtime, now.size) => Seen::Attributes,
            Some(_) => Seen::Data,
            None => Seen::Unknown,
        };
        state.changed |= seen == Seen::Data;
        seen
    }

    /// Whether others have changed the file's data since they last closed it. `closes`: they close it now.
    pub fn changed_by_others(&self, closes: bool) -> bool {
        let mut state = self.state.lock().unwrap();
        let changed = state.changed;
        state.changed &= !closes;
        changed
    }

    /// Clears the location when the guest has forgotten the file. Inodes whose locations form a cycle would otherwise
    /// keep each other alive.
    pub fn lose_place(&self) {
        self.state.lock().unwrap().location = None;
    }

    /// Whether the inode has its own descriptor.
    pub fn is_pinned(&self) -> bool {
        self.state.lock().unwrap().pin.is_some()
    }

    /// Gives the inode its own descriptor.
    pub fn pin(&self, pin: Pin) {
        self.state.lock().unwrap().pin = Some(Arc::new(pin));
    }

    /// Whether the inode keeps its descriptor.
    pub fn keeps_pin(&self) -> bool {
        self.keeps_pin.load(Ordering::Relaxed)
    }

    /// Makes the inode keep its descriptor. Returns false if it has none.
    pub fn keep_pin(&self) -> bool {
        let state = self.state.lock().unwrap();
        self.keeps_pin.store(state.pin.is_some(), Ordering::Relaxed);
        state.pin.is_some()
    }

    /// Gives up the descriptor if the file can be found again by name. Returns whether it did.
    pub fn unpin(&self) -> bool {
        if self.keeps_pin() {
            return false;
        }
        let (pin, location) = {
            let state = self.state.lock().unwrap();
            let (Some(pin), Some(location)) = (&state.pin, &state.location) else { return false };
            (pin.clone(), location.clone())
        };
        let Ok(own) = Identity::of(pin.as_fd(), c"") else { return false };
        let there = || location.dir.fd().and_then(|dir| Identity::of(dir.as_fd(), &location.name));
        if !self.can_be(&own) || there() != Ok(own.clone()) {
            return false;
        }
        let mut state = self.state.lock().unwrap();
        state.identity = Some(own);
        state.pin.take().is_some()
    }

    /// Whether `found` has the key and type that the guest was told, independent of the recorded identity.
    fn can_be(&self, found: &Identity) -> bool {
        (found.key, found.kind) == (self.key, self.kind)
    }

    /// Whether `found` is this inode's file, and not another that got its number while the inode had no descriptor.
    pub fn is(&self, found: &Identity) -> bool {
        self.state.lock().unwrap().identity.as_ref() == Some(found)
    }

    /// Replaces the recorded identity, as if the file system could not distinguish the files.
    #[cfg(test)]
    pub fn remember(&self, other: Identity) {
        self.state.lock().unwrap().identity = Some(other);
    }

    /// Refuses a file of another type than the inode's.
    pub fn check_kind(&self, stat: &Stat) -> Result<()> {
        if stat.st_mode & libc::S_IFMT == self.kind { Ok(()) } else { Err(Errno(libc::ESTALE)) }
    }

    /// Whether the file is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == libc::S_IFDIR
    }

    /// Whether this is the file or directory of the bind itself.
    pub fn is_bind_root(&self) -> bool {
        self.key == self.bind.key
    }

    /// Refuses changes if the bind is read-only.
    pub fn writable(&self) -> Result<()> {
        if self.bind.read_only { Err(Errno(libc::EROFS)) } else { Ok(()) }
    }

    /// Refuses a new directory or empty file if the bind is read-only and does not allow mount points.
    pub fn growable(&self) -> Result<()> {
        if self.bind.mount_points.load(Ordering::Relaxed) { Ok(()) } else { self.writable() }
    }

    /// Records the version of the file when the guest opens it. Returns whether it is the same as at the last open.
    pub fn same_as_seen(&self, stat: &Stat, now: i64) -> bool {
        let version = Version::of(stat, now);
        let mut state = self.state.lock().unwrap();
        let same = version.is_some() && state.seen == version;
        state.seen = version;
        same
    }
}

/// Attributes of a file that change whenever its data changes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    ctime: (i64, i64),
    mtime: (i64, i64),
    size: i64,
}

impl Version {
    /// Seconds within which a file may change again without a new time stamp: file systems use a clock with a
    /// resolution of up to 10 ms, and some store whole seconds.
    const SETTLED_S: i64 = 2;

    fn of(stat: &Stat, now: i64) -> Option<Version> {
        (stat.st_ctime < now.saturating_sub(Self::SETTLED_S)).then(|| Version::at(stat))
    }

    fn at(stat: &Stat) -> Version {
        Version {
            ctime: (stat.st_ctime, stat.st_ctime_nsec),
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            size: stat.st_size,
        }
    }
}
