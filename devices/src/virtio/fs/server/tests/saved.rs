//! A server that goes on from the state of another one.

use super::*;
use crate::share::watch::LASTING;

/// What the tests know of a guest's files: the root, and a file `a` in the directory `d`, which is open.
struct Known {
    root: u64,
    dir: u64,
    node: u64,
    fh: u64,
}

/// Returns a guest that has written to the file `d/a`, and has it open.
fn writer() -> (Guest, Known) {
    let mut guest = Guest::new();
    let root = guest.rootfs();
    fs::create_dir(guest.path("d")).unwrap();
    let dir = guest.lookup(root, "d").unwrap().0.nodeid;
    let (node, fh) = guest.make(dir, "a");
    guest.write(node, WriteIn { fh, ..Default::default() }, b"hello").unwrap();
    (guest, Known { root, dir, node, fh })
}

impl Guest {
    /// Returns the guest behind a new server, in which /c1/rootfs is bound to the same directory.
    fn moved(mut self) -> std::result::Result<Guest, StateError> {
        let state = self.server.save()?;
        let tree = ShareTree::new().unwrap();
        tree.bind("/c1/rootfs", open_path(self.dir.path()), Terms::default()).unwrap();
        let mut server = server(&tree);
        server.restore(&state)?;
        Ok(Guest { server, tree, ..self })
    }

    fn why_not(self) -> String {
        self.moved().map(drop).unwrap_err().to_string()
    }
}

#[test]
fn files_have_their_numbers_and_stay_open() {
    let (guest, known) = writer();
    let mut guest = guest.moved().unwrap();
    assert_eq!(guest.read(known.node, known.fh, 1, 9).unwrap(), b"ello");
    let more = WriteIn { fh: known.fh, offset: 5, ..Default::default() };
    guest.write(known.node, more, b" world").unwrap();
    assert_eq!(fs::read(guest.path("d/a")).unwrap(), b"hello world");
    assert_eq!(guest.lookup(known.root, "d").unwrap().0.nodeid, known.dir);
    assert_eq!(guest.lookup(known.dir, "a").unwrap().0.nodeid, known.node);
    assert_eq!(guest.rootfs(), known.root);
    // New numbers are none of the old ones.
    let (node, fh) = guest.make(known.dir, "b");
    assert!(node > known.node && fh > known.fh, "{node} {fh}");
    guest.release(known.node, known.fh).unwrap();
    assert_eq!(guest.read(known.node, known.fh, 0, 9), Err(libc::EBADF));
    // The file was looked up once before and once after the save.
    guest.forget(known.node, 1);
    assert_eq!(guest.attr(known.node).size, 11);
    guest.forget(known.node, 1);
    let body = body(|b| GetattrIn::default().put(b));
    assert_eq!(guest.call(op::GETATTR, known.node, &body), Err(libc::ESTALE));
}

#[test]
fn a_file_that_was_removed_or_replaced_since_is_stale_and_no_other() {
    let (mut guest, known) = writer();
    let (node, fh) = guest.make(known.root, "b");
    let (gone, gone_fh) = guest.make(known.root, "c");
    let state = guest.server.save().unwrap();
    fs::remove_file(guest.path("c")).unwrap();
    // The file keeps its number, so the new one is another.
    fs::rename(guest.path("b"), guest.path("kept")).unwrap();
    fs::write(guest.path("b"), "other").unwrap();
    let tree = ShareTree::new().unwrap();
    tree.bind("/c1/rootfs", open_path(guest.dir.path()), Terms::default()).unwrap();
    let mut server = server(&tree);
    server.restore(&state).unwrap();
    let mut guest = Guest { server, tree, ..guest };
    for (node, fh) in [(node, fh), (gone, gone_fh)] {
        assert_eq!(guest.read(node, fh, 0, 9), Err(libc::ESTALE));
        assert_eq!(guest.release(node, fh), Err(libc::ESTALE));
        assert_eq!(guest.read(node, fh, 0, 9), Err(libc::EBADF));
    }
    assert_eq!(guest.read(known.node, known.fh, 0, 9).unwrap(), b"hello");
    assert_ne!(guest.lookup(known.root, "b").unwrap().0.nodeid, node);
}

#[test]
fn a_directory_is_read_on_from_its_offset() {
    let mut guest = Guest::new();
    let root = guest.rootfs();
    (0..50).for_each(|n| fs::write(guest.path(&format!("file-{n}")), "").unwrap());
    let open = guest.call(op::OPENDIR, root, &body(|b| OpenIn::default().put(b))).unwrap();
    let fh = OpenOut::parse(&open).unwrap().fh;
    let read = |guest: &mut Guest, offset| {
        let input = ReadIn { fh, offset, size: 512, ..Default::default() };
        let reply = guest.call(op::READDIR, root, &body(|b| input.put(b))).unwrap();
        let (mut names, mut rest, mut next) = (Vec::new(), &reply[..], offset);
        // The last one has no name and says how far the directory was read.
        while let Some(entry) = Dirent::parse(rest).filter(|entry| entry.namelen != 0) {
            names.push(rest[Dirent::SIZE..][..entry.namelen as usize].to_vec());
            next = entry.off;
            rest = &rest[Dirent::SIZE + (entry.namelen as usize).next_multiple_of(8)..];
        }
        (names, next)
    };
    let (mut names, mut offset) = read(&mut guest, 0);
    let mut guest = guest.moved().unwrap();
    loop {
        let (more, next) = read(&mut guest, offset);
        if more.is_empty() {
            break;
        }
        names.extend(more);
        offset = next;
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 52);
}

#[test]
fn an_open_file_that_the_guest_has_moved_is_found() {
    let (mut guest, known) = writer();
    guest.rename((known.dir, "a"), (known.root, "b"), 0).unwrap();
    let mut guest = guest.moved().unwrap();
    assert_eq!(guest.read(known.node, known.fh, 0, 9).unwrap(), b"hello");
    assert_eq!(guest.lookup(known.root, "b").unwrap().0.nodeid, known.node);
}

#[test]
fn a_file_that_was_moved_and_is_not_open_is_found_when_it_is_looked_up() {
    let (mut guest, known) = writer();
    guest.release(known.node, known.fh).unwrap();
    fs::rename(guest.path("d/a"), guest.path("b")).unwrap();
    let mut guest = guest.moved().unwrap();
    assert_eq!(guest.lookup(known.root, "b").unwrap().0.nodeid, known.node);
    assert_eq!(guest.attr(known.node).size, 5);
}

#[test]
fn what_cannot_be_found_again_is_refused_by_name() {
    let (mut guest, known) = writer();
    guest.call(op::UNLINK, known.dir, &string("a")).unwrap();
    let why = "the file \"a\", which the container has open, was removed or replaced";
    assert_eq!(guest.why_not(), why);
}

#[test]
fn locks_are_taken_again() {
    let (mut guest, known) = writer();
    let kind = libc::F_WRLCK as u32;
    let lock = LkIn { fh: known.fh, owner: 1, start: 2, end: 9, kind, ..Default::default() };
    guest.call(op::SETLK, known.node, &body(|b| lock.put(b))).unwrap();
    let lock = LkIn { fh: known.fh, lk_flags: LK_FLOCK, kind, ..Default::default() };
    guest.call(op::SETLK, known.node, &body(|b| lock.put(b))).unwrap();
    let state = guest.server.save().unwrap();
    let again = |dir: &TempDir| {
        let tree = ShareTree::new().unwrap();
        tree.bind("/c1/rootfs", open_path(dir.path()), Terms::default()).unwrap();
        let mut server = server(&tree);
        server.restore(&state).map(|()| (server, tree))
    };
    let error = again(&guest.dir).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "another process has locked the file \"a\"");
    // The machine that was saved has ended.
    let Guest { server, tree, dir, .. } = guest;
    drop((server, tree));
    let (_server, tree) = again(&dir).unwrap();
    assert_eq!(tree.lock_counts(), (1, 1));
    let file = fs::OpenOptions::new().read(true).write(true).open(dir.path().join("d/a")).unwrap();
    assert!(sys::lock::flock(file.as_fd(), Some(false)).is_err());
    let found = sys::lock::get_range(file.as_fd(), libc::F_RDLCK, 0, 0).unwrap().expect("a lock");
    assert_eq!((found.l_start, found.l_len), (2, 8));
}

#[test]
fn a_share_with_other_binds_is_refused() {
    let (mut guest, _) = writer();
    let state = guest.server.save().unwrap();
    let tree = ShareTree::new().unwrap();
    let restored = |tree: &ShareTree| server(tree).restore(&state).unwrap_err().to_string();
    assert!(restored(&tree).ends_with("the container has other mounts"));
    tree.bind("/c1/rootfs", open_path(&guest.path("d/a")), Terms::default()).unwrap();
    assert_eq!(restored(&tree), "the container has no mount of the same kind at \"/c1/rootfs\"");
}

#[test]
fn everything_that_the_guest_remembers_expires() {
    let mut guest = super::watch::owner();
    let root = guest.rootfs();
    fs::write(guest.path("a"), "1").unwrap();
    assert_eq!(guest.lookup(root, "a").unwrap().0.entry_valid, LASTING);
    guest.told();
    let mut guest = guest.moved().unwrap();
    let (told, name) = guest.told().remove(0);
    assert_eq!((told.dir, u64::from(told.cookie), name.as_str()), (0, LASTING, ""));
}

#[test]
fn a_truncated_state_is_refused() {
    let (mut guest, _) = writer();
    let state = guest.server.save().unwrap();
    for len in 0..state.len() {
        let tree = ShareTree::new().unwrap();
        tree.bind("/c1/rootfs", open_path(guest.dir.path()), Terms::default()).unwrap();
        server(&tree).restore(&state[..len]).unwrap_err();
    }
}

#[test]
fn a_server_with_a_corrupted_state_stays_within_the_share() {
    let (mut guest, known) = writer();
    let state = guest.server.save().unwrap();
    for at in 0..state.len() {
        for flip in [1, 0x80, 0xff] {
            let mut state = state.clone();
            state[at] ^= flip;
            let tree = ShareTree::new().unwrap();
            tree.bind("/c1/rootfs", open_path(guest.dir.path()), Terms::default()).unwrap();
            let mut server = server(&tree);
            if server.restore(&state).is_err() {
                continue;
            }
            guest.server = server;
            // Nothing but this directory is bound, so what is read can only be a file of it.
            let read = guest.read(known.node, known.fh, 0, 9);
            assert!(read.is_err() || read == Ok(b"hello".to_vec()), "{at} {flip}: {read:?}");
            let _ = guest.lookup(known.root, "d");
            let _ = guest.lookup(known.dir, "a");
        }
    }
}
