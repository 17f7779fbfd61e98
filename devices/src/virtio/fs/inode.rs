//! The inodes that the guest knows: numbers of the protocol to descriptors of the host.
//!
//! An inode is an O_PATH descriptor: it keeps exactly one file of the host alive, whatever happens to its name, and
//! cannot read, write or run into a device. While it is open its (device, number) pair belongs to no other file, so the
//! pair is the key under which a second lookup finds the same inode.
//!
//! A process has only so many descriptors. When they run out, inodes that are not open, were not used lately and still
//! are where the guest found them give theirs up, and are found again under that name when they are needed:
//! [`Inode::unpin`], [`Inode::fd`]. What is found there must be the same file ([`Identity`]): one that the host, or
//! another machine, has moved, removed or replaced meanwhile is stale, which makes the guest look its name up again.
//! What the guest itself moves or removes is pinned before.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::errno::{Errno, Result};
use super::identity::Identity;
use super::share::Bind;
use super::sys::{self, Stat};

const PIN_FLAGS: i32 = libc::O_PATH | libc::O_NOFOLLOW;

/// A place in the count of the guest's descriptors.
pub struct Slot(Arc<AtomicUsize>);

impl Slot {
    /// Takes a place.
    pub fn take(count: &Arc<AtomicUsize>) -> Slot {
        count.fetch_add(1, Ordering::Relaxed);
        Slot(count.clone())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An inode's descriptor, shared by whoever is at work with it.
pub struct Pin {
    fd: OwnedFd,
    /// None for one that was opened for a single request.
    slot: Option<Slot>,
}

impl Pin {
    /// Returns a descriptor that counts.
    pub fn new(fd: OwnedFd, slot: Slot) -> Pin {
        Pin { fd, slot: Some(slot) }
    }

    /// It was opened for a single request.
    pub fn is_found_anew(&self) -> bool {
        self.slot.is_none()
    }
}

impl AsFd for Pin {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Directories above that are found again one from the other, at most.
const MAX_DEPTH: usize = 256;

/// Where the guest last found a file.
#[derive(Clone)]
struct Place {
    dir: Arc<Inode>,
    name: CString,
}

struct State {
    pin: Option<Arc<Pin>>,
    place: Option<Place>,
    /// What tells the file from others; known once it has not been pinned.
    identity: Option<Identity>,
    /// What the file looked like when the guest last opened it; `None` if it could change unseen.
    seen: Option<Version>,
}

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
    /// How many open files and directories the guest has of it.
    pub open: AtomicUsize,
    /// Used since the table last looked for a descriptor to take.
    pub used: AtomicBool,
    /// The last name looked up in this directory was that of a known inode.
    pub names_known: AtomicBool,
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
            open: AtomicUsize::new(0),
            used: AtomicBool::new(true),
            names_known: AtomicBool::new(false),
            state: Mutex::new(State { pin: Some(Arc::new(pin)), place: None, identity: None, seen: None }),
        }
    }

    /// An O_PATH descriptor of the file: the one that pins it, else one found anew, which whoever holds it closes.
    pub fn fd(&self) -> Result<Arc<Pin>> {
        self.fd_within(MAX_DEPTH)
    }

    fn fd_within(&self, depth: usize) -> Result<Arc<Pin>> {
        let stale = Errno(libc::ESTALE);
        // The lock is not held on the way up: places may be out of date and lead round in a circle.
        let (place, identity) = {
            let state = self.state.lock().unwrap();
            match &state.pin {
                Some(pin) => return Ok(pin.clone()),
                None => (state.place.clone().ok_or(stale)?, state.identity.clone().ok_or(stale)?),
            }
        };
        let dir = place.dir.fd_within(depth.checked_sub(1).ok_or(stale)?)?;
        let fd = sys::openat(dir.as_fd(), &place.name, PIN_FLAGS, 0).map_err(|_| stale)?;
        let found = Identity::of(fd.as_fd(), c"").map_err(|_| stale)?;
        if found != identity || !self.can_be(&found) {
            return Err(stale);
        }
        Ok(Arc::new(Pin { fd, slot: None }))
    }

    /// Notes where the guest found the file.
    pub fn found_at(&self, dir: &Arc<Inode>, name: &CStr) {
        let mut state = self.state.lock().unwrap();
        let same = |place: &Place| place.dir.id == dir.id && place.name.as_c_str() == name;
        if !state.place.as_ref().is_some_and(same) {
            state.place = Some(Place { dir: dir.clone(), name: name.to_owned() });
        }
    }

    /// Where the guest last found it.
    pub fn place(&self) -> Option<(Arc<Inode>, CString)> {
        self.state.lock().unwrap().place.as_ref().map(|place| (place.dir.clone(), place.name.clone()))
    }

    /// Forgets where it was found: the guest knows the file no more. Places in a circle would keep each other alive.
    pub fn lose_place(&self) {
        self.state.lock().unwrap().place = None;
    }

    /// The file keeps its descriptor.
    pub fn is_pinned(&self) -> bool {
        self.state.lock().unwrap().pin.is_some()
    }

    /// Pins the file to a descriptor of it.
    pub fn pin(&self, pin: Pin) {
        self.state.lock().unwrap().pin = Some(Arc::new(pin));
    }

    /// Gives the descriptor up if the file can be found again; returns whether it did.
    pub fn unpin(&self) -> bool {
        let (pin, place) = {
            let state = self.state.lock().unwrap();
            let (Some(pin), Some(place)) = (&state.pin, &state.place) else { return false };
            (pin.clone(), place.clone())
        };
        if self.open.load(Ordering::Relaxed) != 0 {
            return false;
        }
        let Ok(own) = Identity::of(pin.as_fd(), c"") else { return false };
        let found = place.dir.fd().and_then(|dir| Identity::of(dir.as_fd(), &place.name));
        if !self.can_be(&own) || found != Ok(own.clone()) {
            return false;
        }
        let mut state = self.state.lock().unwrap();
        state.identity = Some(own);
        state.pin.take().is_some()
    }

    /// What the guest was told of the file is true of this one, whatever is remembered beside.
    fn can_be(&self, found: &Identity) -> bool {
        (found.key, found.kind) == (self.key, self.kind)
    }

    /// The file that is now found with its number is the one that it stands for, and not another to which the number has
    /// gone while it was not pinned.
    pub fn is(&self, found: &Identity) -> bool {
        self.state.lock().unwrap().identity.as_ref() == Some(found)
    }

    /// Has it remember another file, as if that were the same by all that the file system tells.
    #[cfg(test)]
    pub fn remember(&self, other: Identity) {
        self.state.lock().unwrap().identity = Some(other);
    }

    /// Refuses what is not of its kind.
    pub fn check_kind(&self, stat: &Stat) -> Result<()> {
        if stat.st_mode & libc::S_IFMT == self.kind { Ok(()) } else { Err(Errno(libc::ESTALE)) }
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

    /// Refuses a new directory or empty file, unless mount points may be made in the share.
    pub fn growable(&self) -> Result<()> {
        if self.bind.mount_points.load(Ordering::Relaxed) { Ok(()) } else { self.writable() }
    }

    /// Notes what the file looks like as the guest opens it; returns whether it looked the same the last time.
    pub fn same_as_seen(&self, stat: &Stat, now: i64) -> bool {
        let version = Version::of(stat, now);
        let mut state = self.state.lock().unwrap();
        let same = version.is_some() && state.seen == version;
        state.seen = version;
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
