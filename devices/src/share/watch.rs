//! What the host changes in directories of which the guest's kernel remembers names.
//!
//! The server watches each directory in which the guest has looked up a name, with inotify(7): its watches belong to
//! inodes, so they work on any mount and on overlayfs, and need no path. An event that follows from an operation of the
//! guest's own is recognized: for names by the list of these operations, for attributes and data because the file is as
//! the guest last saw it. Everything else becomes a [`Notice`].
//!
//! inotify does not see what is written through a mapping, nor changes of remote file systems by other hosts. The latter
//! are not watched ([`WATCHABLE`]).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::sys;

mod operations;

/// Limit of watched directories. Each takes about 1 KiB of the host's kernel memory, and counts for
/// fs.inotify.max_user_watches.
pub const MAX_WATCHES: usize = 4096;
/// Limit of notices that wait for the guest. If there are more, everything that the guest remembers expires.
pub const MAX_NOTICES: usize = 1024;
/// Limit of operations whose events were not read yet.
const MAX_OWN: usize = 4096;
/// Time from the guest's first request to the first watch. The host's kernel waits some milliseconds when an inotify
/// descriptor with watches is closed, which a short-lived machine need not pay for.
pub const BEGIN_AFTER: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_millis(500) };
/// Time between two readings of the events while there are any: most follow from the guest's own operations.
const COLLECT_EVERY: Duration = Duration::from_millis(20);
/// Seconds for which the guest may remember what is watched.
pub const LASTING: u64 = 24 * 60 * 60;
/// Size of the buffer for events.
const BUFFER_LEN: usize = 16 << 10;
/// Bytes of `struct inotify_event` before the name.
const HEADER: usize = 16;

const NAMES: u32 = libc::IN_CREATE | libc::IN_DELETE | libc::IN_MOVED_FROM | libc::IN_MOVED_TO;
const EVENTS: u32 = NAMES | libc::IN_ATTRIB | libc::IN_MODIFY | libc::IN_CLOSE_WRITE | libc::IN_ONLYDIR;
/// Linux's FS_EVENT_ON_CHILD: an event of a file, not of a name.
const ON_CHILD: u32 = 0x0800_0000;

/// Types of file systems that only this host's kernel changes (include/uapi/linux/magic.h): ext2 to ext4, XFS, Btrfs,
/// F2FS, tmpfs, overlayfs, ZFS, bcachefs.
const WATCHABLE: [i64; 8] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994, 0x794c_7630, 0x2fc1_2fc1, 0xca45_1a4e];

/// What a change concerns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Concerns {
    /// The name leads to another file, or to none.
    pub name: bool,
    /// The file's attributes.
    pub attributes: bool,
    /// The file's data and attributes.
    pub data: bool,
}

/// A change by the host, for the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    /// Number of the directory; 0 if everything may have changed.
    pub dir: u64,
    /// Number of the file, 0 if the guest does not know it.
    pub child: u64,
    /// Event for inotify(7) in the guest, 0 for none.
    pub event: u32,
    /// Connects the two events of a renaming.
    pub cookie: u32,
    /// The file's name.
    pub name: Vec<u8>,
    /// What the guest must forget.
    pub concerns: Concerns,
}

/// A change of a name by the guest.
struct Own {
    dir: u64,
    name: CString,
    event: u32,
}

/// The watched directories, and what has happened in them.
#[derive(Default)]
pub struct Watch {
    /// The inotify descriptor. `None` if the guest cannot be told, or the host has none to give.
    events: Option<File>,
    /// Numbers of the directories of a watch. Several binds can contain one directory.
    dirs: HashMap<i32, Vec<u64>>,
    watches: HashMap<u64, i32>,
    own: VecDeque<Own>,
    notices: VecDeque<Notice>,
    /// When the first directory is watched. `None` if the guest cannot be told of changes.
    begin: Option<Instant>,
    /// Directories in which the guest has looked up names before that.
    waiting: BTreeSet<u64>,
}

impl Watch {
    /// Returns a watch without directories. If the host has no inotify descriptor to give, it never has any.
    pub fn new() -> Watch {
        let events = sys::inotify().inspect_err(|errno| {
            log::debug!("file server: watch: {}", std::io::Error::from(*errno));
        });
        Watch { events: events.ok(), ..Watch::default() }
    }

    /// Whether the directory with this number is watched.
    pub fn has(&self, dir: u64) -> bool {
        self.watches.contains_key(&dir)
    }

    /// Watches a directory, whose descriptor has the path `path`, as long as the limits allow it.
    fn add(&mut self, dir: u64, path: &CStr) {
        let Some(events) = self.events.as_ref().filter(|_| self.watches.len() < MAX_WATCHES) else { return };
        // Beyond the host's own limit the guest asks again every second.
        if let Ok(watch) = sys::inotify_add(events.as_fd(), path, EVENTS) {
            self.dirs.entry(watch).or_default().push(dir);
            self.watches.insert(dir, watch);
        }
    }

    /// Ends the watch of a directory that the guest has forgotten.
    fn remove(&mut self, dir: u64) {
        let Some(watch) = self.watches.remove(&dir) else { return };
        let Some(dirs) = self.dirs.get_mut(&watch) else { return };
        dirs.retain(|known| *known != dir);
        if dirs.is_empty() {
            self.dirs.remove(&watch);
            if let Some(events) = &self.events {
                sys::inotify_remove(events.as_fd(), watch);
            }
        }
    }

    /// Records that the guest itself changes a name.
    fn note(&mut self, dir: u64, name: &CStr, event: u32) {
        if self.has(dir) && self.own.len() < MAX_OWN {
            self.own.push_back(Own { dir, name: name.to_owned(), event });
        }
    }

    /// Whether the guest itself has caused an event.
    fn is_own(&mut self, dir: u64, name: &[u8], event: u32) -> bool {
        let matches = |own: &Own| own.dir == dir && own.event == event && own.name.to_bytes() == name;
        match self.own.iter().position(matches) {
            Some(at) => self.own.remove(at).is_some(),
            None => false,
        }
    }

    fn add_notice(&mut self, notice: Notice) {
        if self.notices.len() >= MAX_NOTICES {
            self.lose();
        } else if self.notices.back() != Some(&notice) {
            self.notices.push_back(notice);
        }
    }

    /// Makes everything expire, because events are lost.
    pub(super) fn lose(&mut self) {
        self.notices.clear();
        self.notices.push_back(Notice { cookie: LASTING as u32, ..Notice::default() });
    }

    /// Ends all watches when the guest starts a new session.
    pub fn clear(&mut self) {
        let dirs: Vec<u64> = self.watches.keys().copied().collect();
        dirs.into_iter().for_each(|dir| self.remove(dir));
        self.own.clear();
        self.notices.clear();
        self.waiting.clear();
    }
}

/// One event of inotify(7).
struct Event<'a> {
    watch: i32,
    mask: u32,
    cookie: u32,
    /// Empty if the event is the directory's own.
    name: &'a [u8],
}

/// Takes the event at the front of `bytes`.
fn take_event<'a>(bytes: &mut &'a [u8]) -> Option<Event<'a>> {
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let (watch, mask, cookie, len) = (word(0)? as i32, word(4)?, word(8)?, word(12)? as usize);
    let name = bytes.get(HEADER..HEADER + len)?;
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    *bytes = &bytes[HEADER + len..];
    Some(Event { watch, mask, cookie, name })
}
