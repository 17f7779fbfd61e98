//! Guests that know more files than the server can have open.

use super::*;
use crate::share::handle::MAX_BUFFERS;
use crate::share::identity::Identity;

#[test]
fn open_files_are_limited() {
    let mut guest = Guest::new();
    guest.tree.set_limit(20);
    let rootfs = guest.rootfs();
    let (node, fh) = guest.make(rootfs, "a");
    let results: Vec<_> = (0..20).map(|_| guest.open(node, 0)).collect();
    // One descriptor is the root's and one that of the first open file, which serves the inode as well.
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 18);
    assert_eq!(results.last(), Some(&Err(libc::ENFILE)));
    assert_eq!(guest.lookup(rootfs, "a").unwrap().0.nodeid, node);
    fs::write(guest.path("b"), "").unwrap();
    assert_eq!(guest.lookup(rootfs, "b"), Err(libc::ENFILE));
    guest.release(node, fh).unwrap();
    guest.lookup(rootfs, "b").unwrap();
}

/// Returns a guest with a limit of 50 descriptors that knows 200 files, each of which contains its name.
fn crowded() -> (Guest, u64, Vec<u64>) {
    let mut guest = Guest::new();
    guest.tree.set_limit(50);
    let rootfs = guest.rootfs();
    let nodes = (0..200).map(|n| {
        let name = format!("f{n}");
        fs::write(guest.path(&name), &name).unwrap();
        guest.lookup(rootfs, &name).unwrap().0.nodeid
    });
    let nodes = nodes.collect();
    assert!(guest.tree.descriptors() <= 50);
    (guest, rootfs, nodes)
}

#[test]
fn a_guest_may_know_more_files_than_there_are_descriptors() {
    let (mut guest, rootfs, nodes) = crowded();
    for (n, node) in nodes.iter().enumerate() {
        let name = format!("f{n}");
        assert_eq!(guest.attr(*node).size, name.len() as u64);
        let fh = guest.open(*node, libc::O_RDONLY).unwrap().fh;
        assert_eq!(guest.read(*node, fh, 0, 9).unwrap(), name.as_bytes());
        guest.release(*node, fh).unwrap();
        assert_eq!(guest.lookup(rootfs, &name).unwrap().0.nodeid, *node);
    }
    assert!(guest.tree.descriptors() <= 50);
    for node in nodes {
        guest.forget(node, 2);
    }
    assert_eq!((guest.tree.counts().0, guest.tree.descriptors()), (1, 1));
}

#[test]
fn an_open_file_takes_one_descriptor_and_is_not_lost_with_its_name() {
    let (mut guest, rootfs, nodes) = crowded();
    let open: Vec<_> =
        nodes[..48].iter().map(|node| (*node, guest.open(*node, libc::O_RDONLY).unwrap().fh)).collect();
    assert!(guest.tree.descriptors() <= 50);
    assert!(nodes[..48].iter().all(|node| guest.tree.inode(*node).is_open()));
    fs::remove_file(guest.path("f0")).unwrap();
    guest.call(op::UNLINK, rootfs, &string("f1")).unwrap();
    assert_eq!((guest.attr(nodes[0]).nlink, guest.attr(nodes[1]).nlink), (0, 0));
    for (n, (node, fh)) in open.into_iter().enumerate() {
        assert_eq!(guest.read(node, fh, 0, 9).unwrap(), format!("f{n}").as_bytes());
        guest.release(node, fh).unwrap();
    }
    assert_eq!(guest.attr(nodes[2]).nlink, 1);
    assert!(guest.tree.descriptors() <= 50);
}

#[test]
fn a_directory_is_found_again_however_deep() {
    const DEPTH: usize = 600;
    let mut guest = Guest::new();
    guest.tree.set_limit(20);
    let mut dirs = vec![guest.rootfs()];
    let mkdir = body(|b| {
        MkdirIn { mode: 0o755, umask: 0 }.put(b);
        b.extend_from_slice(&string("d"));
    });
    for n in 0..DEPTH {
        dirs.push(entry(&guest.call(op::MKDIR, dirs[n], &mkdir).unwrap()).0.nodeid);
    }
    assert!(guest.tree.descriptors() <= 20);
    for dir in [DEPTH / 2, DEPTH - 30, 300, 1] {
        assert!(!guest.tree.inode(dirs[dir]).is_pinned());
        assert_eq!(guest.attr(dirs[dir]).mode & libc::S_IFMT, libc::S_IFDIR);
        guest.lookup(dirs[dir], "d").unwrap();
    }
    for n in (0..DEPTH).rev() {
        guest.call(op::RMDIR, dirs[n], &string("d")).unwrap();
        guest.forget(dirs[n + 1], 3);
    }
    assert_eq!(guest.tree.counts().0, 1);
}

#[test]
fn directories_are_found_again_too() {
    let mut guest = Guest::new();
    guest.tree.set_limit(20);
    let rootfs = guest.rootfs();
    let mut dirs = vec![rootfs];
    for n in 0..60 {
        let path = guest.path(&vec!["d"; n + 1].join("/"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "").unwrap();
        dirs.push(guest.lookup(dirs[n], "d").unwrap().0.nodeid);
    }
    assert!(guest.tree.descriptors() <= 20);
    for dir in &dirs[1..] {
        guest.lookup(*dir, "file").unwrap();
        assert_eq!(guest.attr(*dir).mode & libc::S_IFMT, libc::S_IFDIR);
    }
    // Moving a directory in the middle moves everything below it.
    guest.rename((dirs[29], "d"), (rootfs, "moved"), 0).unwrap();
    guest.attr(dirs[60]);
    // The host reverses parent and child: the outdated places form a cycle.
    let (a, b) = (guest.path("a"), guest.path("a/b"));
    fs::create_dir_all(&b).unwrap();
    let a_node = guest.lookup(rootfs, "a").unwrap().0.nodeid;
    let b_node = guest.lookup(a_node, "b").unwrap().0.nodeid;
    fs::rename(&b, guest.path("b")).unwrap();
    fs::rename(&a, guest.path("b/a")).unwrap();
    assert_eq!(guest.lookup(b_node, "a").unwrap().0.nodeid, a_node);
    for dir in &dirs {
        guest.call(op::GETATTR, *dir, &[0; 16]).unwrap();
        guest.call(op::LOOKUP, *dir, &string("file")).unwrap();
    }
    let _ = guest.call(op::GETATTR, a_node, &[0; 16]);
    let _ = guest.call(op::GETATTR, b_node, &[0; 16]);
    guest.tree.unbind("/c1/rootfs").unwrap();
    assert_eq!(guest.tree.descriptors(), 0);
}

#[test]
fn what_the_guest_moves_and_removes_is_not_lost_without_a_descriptor() {
    let (mut guest, rootfs, nodes) = crowded();
    guest.call(op::UNLINK, rootfs, &string("f0")).unwrap();
    assert_eq!(guest.attr(nodes[0]).nlink, 0);
    guest.rename((rootfs, "f1"), (rootfs, "f2"), 0).unwrap();
    assert_eq!((guest.attr(nodes[1]).nlink, guest.attr(nodes[2]).nlink), (1, 0));
    let link = [&nodes[3].to_le_bytes()[..], &string("g3")].concat();
    assert_eq!(entry(&guest.call(op::LINK, rootfs, &link).unwrap()).0.nodeid, nodes[3]);
    assert!(guest.tree.descriptors() <= 50);
}

#[test]
fn what_the_host_moves_meanwhile_is_looked_up_again() {
    let (mut guest, rootfs, nodes) = crowded();
    fs::rename(guest.path("f0"), guest.path("moved")).unwrap();
    fs::remove_file(guest.path("f1")).unwrap();
    fs::write(guest.path("f1"), "another").unwrap();
    for node in &nodes[..2] {
        assert_eq!(guest.call(op::GETATTR, *node, &[0; 16]), Err(libc::ESTALE));
        assert_eq!(guest.open(*node, 0), Err(libc::ESTALE));
    }
    assert_eq!(guest.lookup(rootfs, "moved").unwrap().0.nodeid, nodes[0]);
    guest.attr(nodes[0]);
    // The host may have given the removed file's number to the new one.
    let (another, attr) = guest.lookup(rootfs, "f1").unwrap();
    assert_eq!(attr.size, 7);
    assert_ne!(another.nodeid, nodes[1]);
}

/// Like [`crowded`], for a guest in whose share the directory is bound twice. Returns both roots.
fn crowded_twice() -> (Guest, [u64; 2], Vec<u64>) {
    let (mut guest, rootfs, nodes) = crowded();
    guest.tree.bind("/c1/mounts/0", open_path(guest.dir.path()), Terms::default()).unwrap();
    let second = guest.walk("c1/mounts/0");
    for node in &nodes[..8] {
        assert!(!guest.tree.inode(*node).is_pinned());
    }
    (guest, [rootfs, second], nodes)
}

#[test]
fn a_file_removed_in_one_bind_is_not_lost_in_another() {
    let (mut guest, [rootfs, second], nodes) = crowded_twice();
    guest.call(op::UNLINK, second, &string("f0")).unwrap();
    guest.rename((second, "f1"), (second, "f2"), 0).unwrap();
    guest.rename((second, "f3"), (second, "f4"), libc::RENAME_EXCHANGE).unwrap();
    let links: Vec<u32> = nodes[..5].iter().map(|node| guest.attr(*node).nlink).collect();
    assert_eq!(links, [0, 1, 0, 1, 1]);
    for (name, node) in [("f2", nodes[1]), ("f4", nodes[3]), ("f3", nodes[4])] {
        assert_eq!(guest.lookup(rootfs, name).unwrap().0.nodeid, node);
    }
    assert!(guest.tree.descriptors() <= 50);
}

#[test]
fn a_directory_removed_in_one_bind_is_not_lost_in_another() {
    let mut guest = Guest::new();
    guest.tree.set_limit(20);
    let rootfs = guest.rootfs();
    guest.tree.bind("/c1/mounts/0", open_path(guest.dir.path()), Terms::default()).unwrap();
    let second = guest.walk("c1/mounts/0");
    let mut look_up = |name: String| {
        fs::create_dir(guest.path(&name)).unwrap();
        guest.lookup(rootfs, &name).unwrap().0.nodeid
    };
    let dirs: Vec<u64> = (0..60).map(|n| look_up(format!("d{n}"))).collect();
    assert!(!guest.tree.inode(dirs[0]).is_pinned());
    guest.call(op::RMDIR, second, &string("d0")).unwrap();
    assert_eq!(guest.attr(dirs[0]).nlink, 0);
}

#[test]
fn a_number_that_went_to_a_fifo_is_not_opened() {
    for kind_too in [false, true] {
        let (mut guest, _, nodes) = crowded();
        let inode = guest.tree.inode(nodes[0]);
        assert!(!inode.is_pinned());
        fs::remove_file(guest.path("f0")).unwrap();
        let dir = open_path(guest.dir.path());
        sys::mknodat(dir.as_fd(), c"f0", libc::S_IFIFO | 0o600, 0).unwrap();
        // Opening a FIFO would wait for its other end.
        let _end = fs::OpenOptions::new().read(true).write(true).open(guest.path("f0")).unwrap();
        // As on a file system that reuses inode numbers and has a coarse clock and no handles.
        let fifo = Identity::of(dir.as_fd(), c"f0").unwrap();
        let kind = if kind_too { fifo.kind } else { libc::S_IFREG };
        inode.remember(Identity { kind, ..fifo });
        assert_eq!(guest.open(nodes[0], libc::O_RDONLY), Err(libc::ESTALE));
        assert_eq!(
            guest.setattr(nodes[0], SetattrIn { valid: set::SIZE, ..Default::default() }),
            Err(libc::ESTALE)
        );
    }
}

/// On a file system that reuses inode numbers (ext4, xfs) most of the new files get the removed file's number.
#[test]
fn a_file_with_the_number_of_a_removed_one_is_another_file() {
    let (mut guest, rootfs, nodes) = crowded();
    for (n, node) in nodes[..100].iter().enumerate() {
        let name = format!("f{n}");
        let path = guest.path(&name);
        if guest.tree.inode(*node).is_pinned() {
            continue;
        }
        fs::remove_file(&path).unwrap();
        if n % 2 == 0 {
            fs::write(&path, "another").unwrap();
        } else {
            let dir = open_path(guest.dir.path());
            let name = std::ffi::CString::new(name.clone()).unwrap();
            sys::mknodat(dir.as_fd(), &name, libc::S_IFIFO | 0o600, 0).unwrap();
        }
        assert_eq!(guest.open(*node, libc::O_RDONLY), Err(libc::ESTALE), "{name}");
        assert_ne!(guest.lookup(rootfs, &name).unwrap().0.nodeid, *node, "{name}");
    }
}

#[test]
fn inodes_are_limited() {
    let mut guest = Guest::new();
    guest.tree.set_max_inodes(10);
    let rootfs = guest.rootfs();
    for n in 0..10 {
        fs::write(guest.path(&format!("f{n}")), "").unwrap();
    }
    let results: Vec<_> = (0..10).map(|n| guest.lookup(rootfs, &format!("f{n}"))).collect();
    assert!(results[..9].iter().all(|result| result.is_ok()));
    assert_eq!(results[9], Err(libc::ENFILE));
    guest.forget(results[0].unwrap().0.nodeid, 1);
    guest.lookup(rootfs, "f9").unwrap();
}

#[test]
fn directories_that_are_being_read_take_a_bounded_amount_of_memory() {
    const OPEN: usize = 600;
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    for n in 0..20 {
        fs::write(guest.path(&format!("f{n:02}")), "").unwrap();
    }
    let expected = guest.list(rootfs, op::READDIR, 4096);
    let open = |guest: &mut Guest| {
        let reply = guest.call(op::OPENDIR, rootfs, &body(|b| OpenIn::default().put(b))).unwrap();
        OpenOut::parse(&reply).unwrap().fh
    };
    let handles: Vec<u64> = (0..OPEN).map(|_| open(&mut guest)).collect();
    // The reply to each request has space for one entry.
    let mut next = |fh, offset| {
        let input = ReadIn { fh, offset, size: 32 + Dirent::SIZE as u32, ..Default::default() };
        let reply = guest.call(op::READDIR, rootfs, &body(|b| input.put(b))).unwrap();
        let dirent = Dirent::parse(&reply).filter(|dirent| dirent.namelen != 0)?;
        let name = reply[Dirent::SIZE..][..dirent.namelen as usize].to_vec();
        assert!(guest.tree.listing_bytes() <= MAX_BUFFERS * (16 << 10));
        Some((String::from_utf8(name).unwrap(), dirent.off))
    };
    let first: Vec<_> = handles.iter().map(|fh| next(*fh, 0).unwrap()).collect();
    // Directories that have lost their records continue after the first entry.
    for at in [0, 1, OPEN - 1] {
        let (mut names, mut offset) = (vec![first[at].0.clone()], first[at].1);
        while let Some((name, off)) = next(handles[at], offset) {
            names.push(name);
            offset = off;
        }
        names.sort();
        assert!(names.iter().eq(expected.iter().map(|(name, ..)| name)), "{names:?}");
    }
}
