//! What the file server does to learn of changes by the host, and to tell the guest of them.

use std::ffi::{CStr, CString};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{
    BEGIN_AFTER, BUFFER_LEN, COLLECT_EVERY, Concerns, EVENTS, Event, MAX_WATCHES, NAMES, Notice, ON_CHILD,
    WATCHABLE, take_event,
};
use crate::share::attributes::Validity;
use crate::share::inode::{Inode, Seen};
use crate::share::magic_link::MagicLink;
use crate::share::operations::{Node, Operations};
use crate::share::sys::{self, Stat};

impl Operations {
    /// Sets whether the guest can be told what the host changes. Returns whether it will be.
    pub fn set_watching(&mut self, on: bool) -> bool {
        // The path of a watched directory depends on the thread's working directory.
        self.credentials();
        let mut watch = self.watch.borrow_mut();
        let on = on && watch.events.is_some();
        watch.begin = on.then(|| Instant::now() + BEGIN_AFTER);
        self.watching.set(on);
        on
    }

    /// Watches a directory in which the guest looks up names.
    pub(in crate::share) fn watch(&self, dir: &Arc<Inode>) {
        if !self.watching.get() || self.watch.borrow().has(dir.id) || dir.unwatchable() {
            return;
        }
        {
            let mut watch = self.watch.borrow_mut();
            if watch.begin.is_some_and(|begin| Instant::now() < begin) {
                if watch.waiting.len() < MAX_WATCHES {
                    watch.waiting.insert(dir.id);
                }
                return;
            }
        }
        let Ok(pin) = dir.fd() else { return };
        let known = sys::file_system(pin.as_fd()).is_ok_and(|(kind, _)| WATCHABLE.contains(&kind));
        if !known {
            dir.set_unwatchable();
            return;
        }
        let prefix = if self.in_proc_self_fd.get() { "" } else { "/proc/self/fd/" };
        self.watch.borrow_mut().add(dir.id, &MagicLink::new(prefix, pin.as_fd().as_raw_fd()));
    }

    /// Returns how long the guest may cache the names in a directory.
    pub(in crate::share) fn names_in(&self, dir: &Inode) -> Validity {
        match self.watching.get() && self.watch.borrow().has(dir.id) {
            _ if dir.has_locks() => Validity::Once,
            true => Validity::Lasting,
            false => Validity::Brief,
        }
    }

    /// Returns how long the guest may cache a listing of a directory, and that a name is missing in it.
    pub fn names_of(&self, dir: u64) -> Validity {
        match self.node(dir) {
            Ok(Node::Host(inode)) => self.names_in(&inode),
            _ => Validity::Brief,
        }
    }

    /// Whether the guest is told when the file's attributes change: all its names are in a watched directory, and nobody
    /// writes to it through a mapping.
    pub(in crate::share) fn attributes_last(&self, inode: &Inode, stat: &Stat) -> bool {
        if !self.watching.get() || !inode.bind.owned {
            return false;
        }
        let watch = self.watch.borrow();
        let parent = inode.parent().is_some_and(|dir| watch.has(dir));
        let whole = if inode.is_dir() { watch.has(inode.id) } else { stat.st_nlink == 1 };
        whole && (parent || inode.is_dir() && inode.is_bind_root())
    }

    /// Records that the guest itself changes a name.
    pub(in crate::share) fn note_own(&self, dir: &Inode, name: &CStr, event: u32) {
        if self.watching.get() {
            self.watch.borrow_mut().note(dir.id, name, event);
        }
    }

    /// Records how the guest itself leaves a file that it changes, if it is told of changes by others.
    pub(in crate::share) fn note_own_data(&self, inode: &Inode, file: BorrowedFd) -> Option<Stat> {
        let stat = self.watching.get().then(|| sys::fstat(file).ok()).flatten()?;
        inode.tell(&stat);
        Some(stat)
    }

    /// Records that the guest learns a file's attributes. If its data has changed, the guest must forget the pages, too,
    /// although the event was not read yet.
    pub(in crate::share) fn note_reply(&self, inode: &Inode, stat: &Stat) {
        if !self.watching.get() || inode.see(stat) != Seen::Data || inode.kind != libc::S_IFREG {
            return;
        }
        let Some((dir, name)) = inode.location() else { return };
        let mut watch = self.watch.borrow_mut();
        if watch.has(dir.id) {
            watch.add_notice(Notice {
                dir: dir.id,
                child: inode.id,
                event: libc::IN_MODIFY | ON_CHILD,
                cookie: 0,
                name: name.into_bytes(),
                concerns: Concerns { data: true, ..Concerns::default() },
            });
        }
    }

    /// Ends the watch of a node that the guest has forgotten.
    pub(in crate::share) fn unwatch(&self, node: u64) {
        if self.watching.get() {
            self.watch.borrow_mut().remove(node);
        }
    }

    /// The descriptor that is readable when something has happened.
    pub fn events(&self) -> Option<RawFd> {
        self.watch.borrow().events.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// When the first directories must be watched, if the guest has looked up names in any.
    pub fn due(&self) -> Option<Instant> {
        let watch = self.watch.borrow();
        watch.begin.filter(|_| !watch.waiting.is_empty())
    }

    /// Begins to watch if it is time, and reads all events that have happened. Returns after which time it must be called
    /// again, `None` for when there is an event or it is [`due`](Self::due).
    pub fn collect(&self) -> Option<Duration> {
        let begin = self.watch.borrow().begin?;
        if Instant::now() >= begin {
            self.watch_waiting();
        }
        self.read_events().then_some(COLLECT_EVERY)
    }

    /// Watches the directories in which the guest has looked up names before it was time.
    fn watch_waiting(&self) {
        let waiting = std::mem::take(&mut self.watch.borrow_mut().waiting);
        for dir in waiting {
            let known = self.shared.table.lock().unwrap().inode(dir);
            if let Ok(dir) = known {
                self.watch(&dir);
            }
        }
    }

    /// Reads all events that have happened. Returns whether there was one.
    fn read_events(&self) -> bool {
        let mut buffer = vec![0; BUFFER_LEN];
        let mut any = false;
        loop {
            let len = match &self.watch.borrow().events {
                // An error means that there is no event.
                Some(events) => (&*events).read(&mut buffer).unwrap_or(0),
                None => 0,
            };
            if len == 0 {
                // The events of all earlier operations have been read.
                self.watch.borrow_mut().own.clear();
                return any;
            }
            any = true;
            let mut rest = &buffer[..len];
            while let Some(event) = take_event(&mut rest) {
                self.handle_event(&event);
            }
        }
    }

    fn handle_event(&self, event: &Event) {
        if event.mask & libc::IN_Q_OVERFLOW != 0 {
            let mut watch = self.watch.borrow_mut();
            watch.own.clear();
            watch.lose();
            return;
        }
        if event.mask & libc::IN_IGNORED != 0 {
            let mut watch = self.watch.borrow_mut();
            for dir in watch.dirs.remove(&event.watch).unwrap_or_default() {
                watch.watches.remove(&dir);
            }
            return;
        }
        let dirs = self.watch.borrow().dirs.get(&event.watch).cloned().unwrap_or_default();
        for dir in dirs {
            let Ok(inode) = self.shared.table.lock().unwrap().inode(dir) else {
                // The bind was removed.
                self.watch.borrow_mut().remove(dir);
                continue;
            };
            if let Some(notice) = self.notice(&inode, event) {
                self.watch.borrow_mut().add_notice(notice);
            }
        }
    }

    /// Returns what the guest must be told of an event in `dir`.
    fn notice(&self, dir: &Arc<Inode>, event: &Event) -> Option<Notice> {
        let (mask, kind) = (event.mask & EVENTS, event.mask & libc::IN_ISDIR);
        let name = event.name.to_vec();
        let (id, cookie) = (dir.id, event.cookie);
        if mask & NAMES != 0 {
            let own = self.watch.borrow_mut().is_own(id, event.name, mask & NAMES);
            let concerns = Concerns { name: true, ..Concerns::default() };
            return (!own).then_some(Notice {
                dir: id,
                child: 0,
                event: mask | kind,
                cookie,
                name,
                concerns,
            });
        }
        let fd = dir.fd().ok()?;
        if name.is_empty() {
            // The directory itself.
            let seen = dir.see(&sys::fstat(fd.as_fd()).ok()?);
            let concerns = Concerns { attributes: true, ..Concerns::default() };
            return (seen != Seen::Same).then(|| Notice {
                dir: id,
                child: id,
                concerns,
                ..Notice::default()
            });
        }
        let stat = sys::stat_at(fd.as_fd(), &CString::new(event.name).ok()?).ok()?;
        let child = self.shared.table.lock().unwrap().find_known(&dir.bind, &stat);
        let seen = child.as_ref().map_or(Seen::Unknown, |child| child.see(&stat));
        let closes = mask & libc::IN_CLOSE_WRITE != 0;
        let others = child.as_ref().is_none_or(|child| child.changed_by_others(closes));
        if seen == Seen::Same && !(closes && others) {
            return None;
        }
        let concerns = Concerns {
            name: false,
            attributes: seen == Seen::Attributes,
            data: matches!(seen, Seen::Data | Seen::Unknown),
        };
        let child = child.map_or(0, |child| child.id);
        Some(Notice { dir: id, child, event: mask | kind | ON_CHILD, cookie, name, concerns })
    }

    /// The notices that the guest has not got yet, oldest first.
    pub fn next_notice(&self) -> Option<Notice> {
        self.watch.borrow_mut().notices.pop_front()
    }

    /// Whether there are notices that the guest has not got yet.
    pub fn has_notices(&self) -> bool {
        !self.watch.borrow().notices.is_empty()
    }
}
