//! What the guest is told of the host's changes.

use super::*;
use crate::share::watch::{LASTING, MAX_NOTICES, MAX_WATCHES};

/// A guest whose root only it writes to.
pub(super) fn owner() -> Guest {
    let (tree, dir) = scratch(Terms { owned: true, ..Terms::default() });
    let mut guest = Guest { server: server(&tree), tree, caller: (0, 0), dir };
    guest.init();
    guest
}

/// A notification: what it is about, and the name.
type Told = (NotifyChangedOut, String);

impl Guest {
    /// Returns all notifications of what has happened so far.
    pub(super) fn told(&mut self) -> Vec<Told> {
        self.server.collect();
        let messages: Vec<_> = std::iter::from_fn(|| self.server.notice()).collect();
        let told = messages.iter().map(|message| {
            let header = OutHeader::parse(message).unwrap();
            assert_eq!((header.len as usize, header.error), (message.len(), NOTIFY_CHANGED));
            let body = &message[OutHeader::SIZE..];
            let name = &body[NotifyChangedOut::SIZE..];
            assert_eq!(name.last(), Some(&0));
            let name = String::from_utf8(name[..name.len() - 1].to_vec()).unwrap();
            let changed = NotifyChangedOut::parse(body).unwrap();
            assert_eq!(changed.namelen as usize, name.len());
            (changed, name)
        });
        told.collect()
    }

    fn missing(&mut self, dir: u64, name: &str) -> EntryOut {
        entry(&self.call(op::LOOKUP, dir, &string(name)).unwrap()).0
    }
}

#[test]
fn names_of_a_watched_directory_last_until_the_host_changes_them() {
    let mut guest = owner();
    let root = guest.rootfs();
    let missing = guest.missing(root, "a");
    assert_eq!((missing.nodeid, missing.entry_valid), (0, LASTING));
    fs::write(guest.path("a"), "1").unwrap();
    let told = guest.told();
    let (changed, name) = &told[0];
    assert_eq!((changed.dir, changed.child, changed.what), (root, 0, CHANGED_NAME));
    assert_eq!((changed.mask, name.as_str()), (libc::IN_CREATE, "a"));
    let (found, _) = guest.lookup(root, "a").unwrap();
    assert_eq!((found.entry_valid, found.attr_valid), (LASTING, LASTING));
    guest.told();
    fs::remove_file(guest.path("a")).unwrap();
    let (changed, name) = guest.told().pop().unwrap();
    assert_eq!((changed.what, changed.mask, name.as_str()), (CHANGED_NAME, libc::IN_DELETE, "a"));
}

#[test]
fn the_guest_is_not_told_of_its_own_changes() {
    let mut guest = owner();
    let root = guest.rootfs();
    guest.missing(root, "a");
    let (node, fh) = guest.make(root, "a");
    guest.write(node, WriteIn { fh, ..Default::default() }, b"data").unwrap();
    guest.setattr(node, SetattrIn { valid: set::MODE, mode: 0o600, ..Default::default() }).unwrap();
    guest.release(node, fh).unwrap();
    let renamed = body(|b| {
        RenameIn { newdir: root }.put(b);
        b.extend_from_slice(&string("a"));
        b.extend_from_slice(&string("b"));
    });
    guest.call(op::RENAME, root, &renamed).unwrap();
    let made = body(|b| {
        MkdirIn { mode: 0o755, umask: 0 }.put(b);
        b.extend_from_slice(&string("d"));
    });
    guest.call(op::MKDIR, root, &made).unwrap();
    guest.call(op::RMDIR, root, &string("d")).unwrap();
    guest.call(op::UNLINK, root, &string("b")).unwrap();
    assert_eq!(guest.told(), []);
    // The same by the host.
    fs::write(guest.path("a"), "").unwrap();
    assert_eq!(guest.told()[0].0.mask, libc::IN_CREATE);
}

#[test]
fn the_guest_is_told_what_of_a_file_has_changed() {
    let mut guest = owner();
    let root = guest.rootfs();
    fs::write(guest.path("a"), "1").unwrap();
    let node = guest.lookup(root, "a").unwrap().0.nodeid;
    guest.told();
    fs::write(guest.path("a"), "22").unwrap();
    let told = guest.told();
    let data = told.iter().find(|(changed, _)| changed.what == CHANGED_DATA).unwrap();
    assert_eq!((data.0.dir, data.0.child), (root, node));
    let closed = told.iter().filter(|(changed, _)| changed.mask & libc::IN_CLOSE_WRITE != 0);
    assert_eq!(closed.count(), 1);
    fs::set_permissions(guest.path("a"), fs::Permissions::from_mode(0o640)).unwrap();
    let (changed, _) = guest.told().pop().unwrap();
    assert_eq!((changed.child, changed.what), (node, CHANGED_ATTR));
}

#[test]
fn a_change_that_the_guest_sees_before_its_event_is_told_as_well() {
    let mut guest = owner();
    let root = guest.rootfs();
    let (node, fh) = guest.make(root, "a");
    guest.write(node, WriteIn { fh, ..Default::default() }, b"guest").unwrap();
    assert_eq!(guest.told(), []);
    fs::write(guest.path("a"), "the host").unwrap();
    guest.open(node, libc::O_RDONLY).unwrap();
    let told = guest.told();
    assert_eq!((told[0].0.child, told[0].0.what), (node, CHANGED_DATA));
    // What the guest truncates is its own.
    guest.open(node, libc::O_RDWR | libc::O_TRUNC).unwrap();
    guest.setattr(node, SetattrIn { valid: set::SIZE, size: 3, ..Default::default() }).unwrap();
    assert_eq!(guest.told(), []);
}

#[test]
fn attributes_last_only_if_no_change_can_be_missed() {
    let mut guest = owner();
    let root = guest.rootfs();
    fs::write(guest.path("a"), "").unwrap();
    fs::create_dir(guest.path("d")).unwrap();
    // Nobody has looked into the directory.
    assert_eq!(guest.lookup(root, "d").unwrap().0.attr_valid, 1);
    let dir = guest.lookup(root, "d").unwrap().0.nodeid;
    guest.missing(dir, "x");
    assert_eq!(guest.lookup(root, "d").unwrap().0.attr_valid, LASTING);
    assert_eq!(guest.lookup(root, "a").unwrap().0.attr_valid, LASTING);
    fs::hard_link(guest.path("a"), guest.path("b")).unwrap();
    assert_eq!(guest.lookup(root, "a").unwrap().0.attr_valid, 1);
    // Others write to the files of a volume, through mappings too.
    let mut volume = Guest::new();
    let root = volume.rootfs();
    fs::write(volume.path("a"), "").unwrap();
    let (found, _) = volume.lookup(root, "a").unwrap();
    assert_eq!((found.entry_valid, found.attr_valid), (LASTING, 1));
}

#[test]
fn everything_expires_if_the_guest_does_not_read_its_notifications() {
    let mut guest = owner();
    let root = guest.rootfs();
    guest.missing(root, "a");
    for number in 0..=MAX_NOTICES {
        fs::create_dir(guest.path(&number.to_string())).unwrap();
    }
    let told = guest.told();
    assert!(told.len() <= MAX_NOTICES);
    assert_eq!((told[0].0.dir, u64::from(told[0].0.cookie)), (0, LASTING));
}

#[test]
fn watches_are_limited_and_end_when_a_directory_is_forgotten() {
    let mut guest = owner();
    let root = guest.rootfs();
    let mut dirs = Vec::new();
    for number in 0..MAX_WATCHES {
        let name = number.to_string();
        fs::create_dir(guest.path(&name)).unwrap();
        let dir = guest.lookup(root, &name).unwrap().0.nodeid;
        dirs.push((dir, guest.missing(dir, "x").entry_valid));
    }
    let watched = dirs.iter().filter(|(_, valid)| *valid == LASTING).count();
    // The root is watched as well. A host may allow fewer.
    assert!((1..MAX_WATCHES).contains(&watched), "{watched} are watched");
    let (last, valid) = dirs[MAX_WATCHES - 1];
    assert_eq!(valid, 1);
    guest.forget(dirs[0].0, 1);
    assert_eq!(guest.missing(last, "x").entry_valid, LASTING);
}

#[test]
fn what_generates_its_files_is_not_watched() {
    let mut guest = owner();
    guest.tree.bind("/c1/proc", open_path(Path::new("/proc")), Terms::default()).unwrap();
    let proc = guest.walk("c1/proc");
    assert_eq!(guest.missing(proc, "missing").entry_valid, 1);
}
