//! Locks between two machines, and between a machine and the host.

use std::fs::{File, OpenOptions};

use super::*;
use crate::share::locks::END;

const READ: u32 = libc::F_RDLCK as u32;
const WRITE: u32 = libc::F_WRLCK as u32;
const UNLOCK: u32 = libc::F_UNLCK as u32;

/// A file that a guest has open: node and handle.
type Open = (u64, u64);

impl Guest {
    /// Returns a guest of another machine that shares this guest's directory.
    fn neighbour(&self) -> Guest {
        let mut other = Guest::new();
        other.tree.bind("/c2", open_path(self.dir.path()), Terms::default()).unwrap();
        other.init();
        other
    }

    fn open_shared(&mut self, path: &str, flags: i32) -> Open {
        let node = self.walk(path);
        (node, self.open(node, flags).unwrap().fh)
    }

    fn setlk(&mut self, (node, fh): Open, input: LkIn) -> Reply {
        self.call(op::SETLK, node, &body(|b| LkIn { fh, ..input }.put(b)))
    }

    /// Locks or unlocks bytes `span`, both ends included. Returns whether it succeeded.
    fn range(&mut self, file: Open, owner: u64, kind: u32, span: (u64, u64)) -> bool {
        answered(
            self.setlk(file, LkIn { owner, start: span.0, end: span.1, kind, ..Default::default() }),
            kind,
        )
    }

    fn flock(&mut self, file: Open, kind: u32) -> bool {
        let whole = LkIn { end: END, kind, lk_flags: LK_FLOCK, ..Default::default() };
        answered(self.setlk(file, whole), kind)
    }

    /// Returns kind and bytes of a lock that is in the way.
    fn conflict(
        &mut self,
        (node, fh): Open,
        owner: u64,
        kind: u32,
        span: (u64, u64),
    ) -> Option<(u32, u64, u64)> {
        let input = LkIn { fh, owner, start: span.0, end: span.1, kind, ..Default::default() };
        let found = LkOut::parse(&self.call(op::GETLK, node, &body(|b| input.put(b))).unwrap()).unwrap();
        assert_eq!(found.pid, 0);
        (found.kind != UNLOCK).then_some((found.kind, found.start, found.end))
    }
}

/// Whether a lock was taken: the reply has attributes then, and EAGAIN otherwise.
fn answered(reply: Reply, kind: u32) -> bool {
    match reply {
        Ok(body) => {
            let len = if kind == UNLOCK { 0 } else { AttrOut::SIZE + Attr::SIZE };
            assert_eq!(body.len(), len);
            true
        }
        Err(errno) => {
            assert_eq!(errno, libc::EAGAIN);
            false
        }
    }
}

/// Two machines with one directory, in which they have opened the file `db`.
fn two() -> (Guest, Open, Guest, Open) {
    let mut first = Guest::new();
    fs::write(first.path("db"), "data").unwrap();
    let mut second = first.neighbour();
    let ours = first.open_shared("c1/rootfs/db", libc::O_RDWR);
    let theirs = second.open_shared("c2/db", libc::O_RDWR);
    (first, ours, second, theirs)
}

fn of_host(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// Locks bytes of `file` as a process of the host does, with the locks of an open file description.
fn host_range(file: &File, kind: u32, start: u64, len: u64) -> bool {
    match sys::lock::set_range(file.as_fd(), kind as i32, start, len) {
        Err(errno) => {
            assert_eq!(errno, Errno(libc::EAGAIN));
            false
        }
        Ok(()) => true,
    }
}

#[test]
fn ranges_hold_between_machines_and_against_the_host() {
    let (mut first, ours, mut second, theirs) = two();
    let host = of_host(&first.path("db"));
    assert!(first.range(ours, 1, WRITE, (0, 9)));
    assert!(!second.range(theirs, 1, READ, (5, 5)) && !host_range(&host, READ, 9, 1));
    assert!(second.range(theirs, 1, WRITE, (10, END)) && !host_range(&host, WRITE, 1 << 40, 1));
    assert_eq!(second.conflict(theirs, 1, WRITE, (3, END)), Some((WRITE, 0, 9)));
    assert_eq!(first.conflict(ours, 1, READ, (0, END)), Some((WRITE, 10, END)));
    assert_eq!(first.conflict(ours, 1, READ, (0, 9)), None);
    assert!(first.range(ours, 1, UNLOCK, (0, END)) && second.range(theirs, 1, UNLOCK, (0, END)));
    // The host's lock first.
    assert!(host_range(&host, WRITE, 4, 4) && !first.range(ours, 1, WRITE, (0, 4)));
    assert_eq!(first.conflict(ours, 1, READ, (0, END)), Some((WRITE, 4, 7)));
    drop(host);
    assert!(first.range(ours, 1, WRITE, (0, 4)));
}

#[test]
fn a_conversion_that_is_refused_leaves_the_range_as_it_was() {
    let (mut first, ours, mut second, theirs) = two();
    assert!(first.range(ours, 1, READ, (0, 9)) && second.range(theirs, 1, READ, (0, 9)));
    assert!(!first.range(ours, 1, WRITE, (0, 9)));
    assert!(second.range(theirs, 1, UNLOCK, (0, 9)) && !second.range(theirs, 1, WRITE, (9, 9)));
    assert!(first.range(ours, 1, WRITE, (0, 9)) && first.range(ours, 1, READ, (0, 9)));
    assert!(second.range(theirs, 1, READ, (0, 9)));
}

#[test]
fn ranges_are_split_and_joined_and_their_descriptors_closed() {
    let (mut first, ours, mut second, theirs) = two();
    let open = first.tree.descriptors();
    let steps: [(u32, (u64, u64), usize); 8] = [
        (WRITE, (10, 29), 1),
        (READ, (15, 19), 3),
        (UNLOCK, (17, 17), 4),
        (READ, (16, 18), 3),
        (WRITE, (30, 39), 3),
        (UNLOCK, (0, 9), 3),
        (WRITE, (0, END), 1),
        (UNLOCK, (50, END), 1),
    ];
    for (kind, span, ranges) in steps {
        assert!(first.range(ours, 1, kind, span));
        assert_eq!(first.tree.lock_counts(), (1, ranges), "{kind} {span:?}");
    }
    assert_eq!(first.tree.descriptors(), open + 1);
    assert!(second.range(theirs, 1, WRITE, (50, END)) && !second.range(theirs, 1, READ, (49, 49)));
    assert!(first.range(ours, 1, UNLOCK, (0, 49)));
    assert_eq!((first.tree.lock_counts(), first.tree.descriptors()), ((0, 0), open));
    // A lock that is refused keeps no descriptor either.
    assert!(!first.range(ours, 2, READ, (60, 60)));
    assert_eq!((first.tree.lock_counts(), first.tree.descriptors()), ((0, 0), open));
}

#[test]
fn two_owners_of_a_machine_exclude_each_other() {
    let (mut first, ours, ..) = two();
    let again = first.open_shared("c1/rootfs/db", libc::O_RDWR);
    assert!(first.range(ours, 1, WRITE, (0, 0)));
    assert!(!first.range(again, 2, WRITE, (0, 0)) && first.range(again, 1, WRITE, (0, 0)));
}

#[test]
fn flock_holds_between_machines_and_against_the_host_and_ends_with_the_file() {
    let (mut first, ours, mut second, theirs) = two();
    let host = of_host(&first.path("db"));
    assert!(first.flock(ours, READ) && second.flock(theirs, READ));
    assert!(!second.flock(theirs, WRITE) && host.try_lock().is_err());
    // The refused conversion has lost the shared lock, as on one kernel.
    assert!(first.flock(ours, WRITE) && !second.flock(theirs, READ));
    assert!(second.range(theirs, 1, WRITE, (0, END)), "flock and fcntl are independent");
    first.release(ours.0, ours.1).unwrap();
    host.try_lock().unwrap();
    assert!(!second.flock(theirs, WRITE));
    host.unlock().unwrap();
    assert!(second.flock(theirs, WRITE) && second.flock(theirs, UNLOCK));
    host.try_lock().unwrap();
}

#[test]
fn a_directory_can_be_locked() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let open = guest.call(op::OPENDIR, rootfs, &body(|b| OpenIn::default().put(b))).unwrap();
    let dir = (rootfs, OpenOut::parse(&open).unwrap().fh);
    let host = File::open(guest.dir.path()).unwrap();
    assert!(guest.flock(dir, WRITE) && host.try_lock().is_err());
    assert!(guest.range(dir, 1, READ, (0, END)));
    let write = LkIn { owner: 1, end: END, kind: WRITE, ..Default::default() };
    assert_eq!(guest.setlk(dir, write), Err(libc::EBADF));
}

#[test]
fn locks_end_with_the_session_and_with_the_bind() {
    let (mut first, ours, mut second, theirs) = two();
    let node = ours.0;
    assert!(first.range(ours, 1, WRITE, (0, 9)) && first.flock(ours, WRITE));
    first.init();
    assert!(second.range(theirs, 1, WRITE, (0, 9)) && second.flock(theirs, WRITE));
    let host = of_host(&first.path("db"));
    second.tree.unbind("/c2").unwrap();
    assert!(host_range(&host, WRITE, 0, 0) && host.try_lock().is_ok());
    assert_eq!(second.tree.lock_counts(), (0, 0));
    let stale = LkIn { owner: 1, end: 9, kind: WRITE, ..Default::default() };
    assert_eq!(first.setlk((node, ours.1), stale), Err(libc::EBADF));
}

#[test]
fn a_read_only_bind_has_read_locks_only() {
    let mut guest = Guest::new();
    fs::write(guest.path("f"), "").unwrap();
    let dir = open_path(guest.dir.path());
    guest.tree.bind("/ro", dir, Terms::read_only()).unwrap();
    let file = guest.open_shared("ro/f", libc::O_RDONLY);
    assert!(guest.range(file, 1, READ, (0, END)) && guest.flock(file, WRITE));
    let write = LkIn { owner: 1, end: 9, kind: WRITE, ..Default::default() };
    assert_eq!(guest.setlk(file, write), Err(libc::EBADF));
    assert_eq!(guest.tree.lock_counts(), (1, 1));
}

/// SQLite's journal, for example, which another machine removes under its lock.
#[test]
fn names_beside_a_locked_file_are_asked_for_each_time() {
    let (_first, _ours, mut second, theirs) = two();
    let dir = second.walk("c2");
    assert_ne!(second.lookup(dir, "db").unwrap().0.entry_valid, 0);
    assert!(second.range(theirs, 1, READ, (0, 0)));
    assert_eq!(second.lookup(dir, "db").unwrap().0.entry_valid, 0);
    let missing = second.call(op::LOOKUP, dir, &string("db-journal")).unwrap();
    let missing = EntryOut::parse(&missing).unwrap();
    assert_eq!((missing.nodeid, missing.entry_valid), (0, 0));
}

#[test]
fn one_machine_at_a_time_has_a_file_mapped() {
    let (mut first, ours, mut second, theirs) = two();
    for guest in [&first, &second] {
        let parent = fs::File::open(first.dir.path()).unwrap();
        guest.tree.set_mapping_registry(parent.into(), c"vmm".into());
    }
    let map = LkIn { kind: WRITE, end: END, lk_flags: LK_MAPPING, ..Default::default() };
    let again = first.open(ours.0, libc::O_RDWR).unwrap().fh;
    assert!(first.setlk(ours, map).is_ok() && first.setlk((ours.0, again), map).is_ok());
    assert_eq!(second.setlk(theirs, map), Err(libc::EAGAIN));
    // What the other machine wrote is new to this one.
    first.release(ours.0, ours.1).unwrap();
    assert_eq!(second.setlk(theirs, map), Err(libc::EAGAIN));
    first.release(ours.0, again).unwrap();
    assert!(second.setlk(theirs, map).is_ok());
    let other = first.open(ours.0, libc::O_RDWR).unwrap().fh;
    assert_eq!(first.setlk((ours.0, other), map), Err(libc::EAGAIN));
    second.init();
    assert!(first.setlk((ours.0, other), map).is_ok());
}

#[test]
fn invented_locks_are_answered() {
    let (mut first, ours, ..) = two();
    let lock = LkIn { owner: 1, start: 0, end: 9, kind: WRITE, ..Default::default() };
    for (input, error) in [
        (LkIn { kind: 3, ..lock }, libc::EINVAL),
        (LkIn { kind: u32::MAX, ..lock }, libc::EINVAL),
        (LkIn { start: 10, ..lock }, libc::EINVAL),
        (LkIn { end: END + 1, ..lock }, libc::EINVAL),
        (LkIn { start: u64::MAX, end: u64::MAX, ..lock }, libc::EINVAL),
        (LkIn { lk_flags: LK_MAPPING | LK_FLOCK, ..lock }, libc::EINVAL),
        (LkIn { lk_flags: 4, ..lock }, libc::EINVAL),
        (LkIn { lk_flags: u32::MAX, ..lock }, libc::EINVAL),
    ] {
        assert_eq!(first.setlk(ours, input), Err(error), "{input:?}");
        let get = first.call(op::GETLK, ours.0, &body(|b| LkIn { fh: ours.1, ..input }.put(b)));
        assert_eq!(get, Err(error), "{input:?}");
    }
    let rootfs = first.rootfs();
    for other in [(ours.0, 99), (rootfs, ours.1), (ROOT_ID, ours.1), (99, ours.1)] {
        for lk_flags in [0, LK_FLOCK, LK_MAPPING] {
            assert_eq!(first.setlk(other, LkIn { lk_flags, ..lock }), Err(libc::EBADF), "{other:?}");
        }
    }
    assert_eq!(first.setlk(ours, LkIn { kind: UNLOCK, owner: 77, ..lock }), Ok(vec![]));
    assert_eq!(first.tree.lock_counts(), (0, 0));
}

#[test]
fn ranges_and_their_owners_have_a_limit() {
    let (mut first, ours, ..) = two();
    first.tree.set_lock_limit(8);
    let lock = |owner: u64, at: u64| LkIn { owner, start: at, end: at, kind: READ, ..Default::default() };
    for number in 0..4 {
        first.setlk(ours, lock(number, 0)).unwrap();
    }
    for number in 1..4 {
        first.setlk(ours, lock(3, 10 * number)).unwrap();
    }
    assert_eq!(first.setlk(ours, lock(9, 0)), Err(libc::ENOLCK));
    assert_eq!(first.setlk(ours, lock(3, 50)), Err(libc::ENOLCK));
    assert_eq!(first.tree.lock_counts(), (4, 7));
    assert!(first.range(ours, 3, UNLOCK, (0, END)) && first.range(ours, 9, READ, (0, 2)));
    // Unlocking the middle of a range needs one more.
    first.tree.set_lock_limit(2);
    assert!(first.range(ours, 1, READ, (0, 9)) && first.range(ours, 1, UNLOCK, (5, 5)));
    let middle = LkIn { owner: 1, start: 2, end: 2, kind: UNLOCK, ..Default::default() };
    assert_eq!(first.setlk(ours, middle), Err(libc::ENOLCK));
    assert!(first.range(ours, 1, UNLOCK, (0, 2)) && first.range(ours, 1, UNLOCK, (0, END)));
    assert_eq!(first.tree.lock_counts(), (0, 0));
}

#[test]
fn cached_pages_are_kept_only_if_the_file_is_certainly_unchanged() {
    let (mut first, ours, ..) = two();
    let changed = |guest: &mut Guest| {
        let reply = guest.setlk(ours, LkIn { owner: 1, end: 9, kind: READ, ..Default::default() }).unwrap();
        AttrOut::parse(&reply).unwrap().dummy
    };
    // The file was just written: a change within the resolution of its times would not show.
    assert_eq!((changed(&mut first), changed(&mut first)), (1, 1));
    assert_eq!(first.attr(ours.0).size, 4);
    fs::write(first.path("db"), "longer").unwrap();
    let reply = first.setlk(ours, LkIn { owner: 1, end: 9, kind: READ, ..Default::default() }).unwrap();
    assert_eq!(Attr::parse(&reply[AttrOut::SIZE..]).unwrap().size, 6);
}
