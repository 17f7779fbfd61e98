//! Binds, and the changes that they allow.

use super::*;

#[test]
fn the_virtual_root_is_read_only_and_lists_its_shares() {
    let mut guest = Guest::new();
    fs::write(guest.path("single"), "x").unwrap();
    let single = open_path(&guest.path("single"));
    guest.tree.bind("/c1/mounts/0", single, Terms::read_only()).unwrap();
    let root = guest.attr(ROOT_ID);
    assert_eq!((root.mode, root.ino), (libc::S_IFDIR | 0o555, 1));
    let c1 = guest.walk("c1");
    for opcode in [op::READDIR, op::READDIRPLUS] {
        for size in [256, 4096] {
            let names: Vec<_> = guest.list(c1, opcode, size).into_iter().map(|e| e.0).collect();
            assert_eq!(names, [".", "..", "mounts", "rootfs"], "{opcode} {size}");
        }
    }
    let (rootfs, attr) = guest.lookup(c1, "rootfs").unwrap();
    assert_eq!(attr.flags, ATTR_SUBMOUNT);
    assert_eq!(attr.ino, fs::metadata(guest.dir.path()).unwrap().ino());
    let mkdir = body(|b| {
        MkdirIn { mode: 0o755, umask: 0 }.put(b);
        b.extend_from_slice(&string("new"));
    });
    assert_eq!(guest.call(op::MKDIR, c1, &mkdir), Err(libc::EROFS));
    assert_eq!(guest.call(op::RMDIR, c1, &string("rootfs")), Err(libc::EROFS));
    assert_eq!(guest.rename((c1, "rootfs"), (rootfs.nodeid, "x"), 0), Err(libc::EROFS));
    assert_eq!(guest.setattr(c1, SetattrIn::default()), Err(libc::EROFS));
    assert_eq!(guest.open(c1, 0), Err(libc::EISDIR));
    assert_eq!(guest.call(op::STATFS, ROOT_ID, &[]).unwrap().len(), 80);
}

#[test]
fn a_single_file_is_shared_alone() {
    let mut guest = Guest::new();
    fs::write(guest.path("hosts"), "127.0.0.1").unwrap();
    let file = open_path(&guest.path("hosts"));
    guest.tree.bind("/c1/mounts/0", file, Terms::default()).unwrap();
    let mounts = guest.walk("c1/mounts");
    let (found, attr) = guest.lookup(mounts, "0").unwrap();
    assert_eq!((attr.mode & libc::S_IFMT, attr.flags, attr.size), (libc::S_IFREG, 0, 9));
    let listed = guest.list(mounts, op::READDIR, 4096);
    assert_eq!(listed.iter().find(|e| e.0 == "0").unwrap().1, attr.ino);
    let fh = guest.open(found.nodeid, libc::O_RDWR).unwrap().fh;
    assert_eq!(guest.read(found.nodeid, fh, 0, 100).unwrap(), b"127.0.0.1");
    assert_eq!(guest.write(found.nodeid, WriteIn { fh, ..Default::default() }, b"10"), Ok(2));
    assert_eq!(fs::read(guest.path("hosts")).unwrap(), b"107.0.0.1");
    // Its neighbours are not reachable through it.
    assert_eq!(guest.lookup(found.nodeid, "hosts"), Err(libc::ENOTDIR));
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let long = "x".repeat(256);
    for name in ["", ".", "..", "a/b", "/", "../etc", "/etc/passwd"] {
        for opcode in [op::LOOKUP, op::UNLINK, op::RMDIR] {
            assert_eq!(guest.call(opcode, rootfs, &string(name)), Err(libc::EINVAL), "{opcode} {name:?}");
        }
        let after = |len: usize| [vec![0; len], string(name)].concat();
        assert_eq!(guest.call(op::MKDIR, rootfs, &after(8)), Err(libc::EINVAL));
        assert_eq!(guest.call(op::MKNOD, rootfs, &after(16)), Err(libc::EINVAL));
        assert_eq!(guest.call(op::CREATE, rootfs, &after(16)), Err(libc::EINVAL));
        assert_eq!(guest.call(op::SYMLINK, rootfs, &two_names(name, "x")), Err(libc::EINVAL));
        assert_eq!(guest.rename((rootfs, name), (rootfs, "x"), 0), Err(libc::EINVAL));
        assert_eq!(guest.rename((rootfs, "x"), (rootfs, name), 0), Err(libc::EINVAL));
        let link = [&rootfs.to_le_bytes()[..], &string(name)].concat();
        assert_eq!(guest.call(op::LINK, rootfs, &link), Err(libc::EINVAL));
    }
    assert_eq!(guest.call(op::LOOKUP, rootfs, b"no end"), Err(libc::EINVAL));
    assert_eq!(guest.call(op::LOOKUP, rootfs, &string(&long)), Err(libc::ENAMETOOLONG));
}

/// Also binds the directory read-only at /ro. Returns its inode, and those of a file and a directory in it.
fn share_read_only(guest: &mut Guest) -> (u64, u64, u64) {
    fs::write(guest.path("a"), "a").unwrap();
    fs::create_dir(guest.path("d")).unwrap();
    guest.tree.bind("/ro", open_path(&guest.path("")), Terms::read_only()).unwrap();
    (guest.walk("ro"), guest.walk("ro/a"), guest.walk("ro/d"))
}

/// Checks that existing files and names cannot be changed, and that nothing but directories and empty files is created.
fn assert_no_change(guest: &mut Guest, ro: u64, file: u64, dir: u64) {
    let refused = Err(libc::EROFS);
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
        assert_eq!(guest.open(file, flags), Err(libc::EROFS));
    }
    let named = |len: usize| [vec![0; len], string("new")].concat();
    assert_eq!(guest.call(op::MKNOD, ro, &named(16)), refused);
    assert_eq!(guest.call(op::CREATE, ro, &named(16)), refused);
    assert_eq!(guest.call(op::TMPFILE, ro, &named(16)), refused);
    assert_eq!(guest.call(op::SYMLINK, ro, &two_names("l", "a")), refused);
    assert_eq!(guest.call(op::UNLINK, ro, &string("a")), refused);
    assert_eq!(guest.call(op::RMDIR, ro, &string("d")), refused);
    assert_eq!(guest.rename((ro, "a"), (ro, "b"), 0), refused);
    assert_eq!(guest.rename((dir, "a"), (ro, "b"), 0), refused);
    let link = [&file.to_le_bytes()[..], &string("b")].concat();
    assert_eq!(guest.call(op::LINK, ro, &link), refused);
    let mode = SetattrIn { valid: set::MODE, mode: 0o777, ..Default::default() };
    assert_eq!(guest.setattr(file, mode), Err(libc::EROFS));
    assert_eq!(guest.setxattr(file, "user.a", b"x"), refused);
    assert_eq!(guest.call(op::REMOVEXATTR, file, &string("user.a")), refused);
    let fh = guest.open(file, libc::O_RDONLY).unwrap().fh;
    assert_eq!(guest.read(file, fh, 0, 9).unwrap(), b"a");
    assert_eq!(guest.write(file, WriteIn { fh, ..Default::default() }, b"x"), Err(libc::EBADF));
}

#[test]
fn a_read_only_share_accepts_mount_points_while_allowed() {
    let mut guest = Guest::new();
    let (ro, file, dir) = share_read_only(&mut guest);
    let mkdir = |name: &str| [vec![0; 8], string(name)].concat();
    let mknod = |name: &str| {
        body(|b| {
            MknodIn { mode: libc::S_IFREG | 0o644, ..Default::default() }.put(b);
            b.extend_from_slice(&string(name));
        })
    };
    assert_eq!(guest.call(op::MKNOD, ro, &mknod("f")), Err(libc::EROFS));

    guest.tree.allow_mount_points("/ro", true).unwrap();
    let made = entry(&guest.call(op::MKNOD, ro, &mknod("f")).unwrap()).0.nodeid;
    assert_eq!(guest.open(made, libc::O_WRONLY).unwrap_err(), libc::EROFS);
    guest.call(op::MKDIR, ro, &mkdir("new")).unwrap();
    assert_eq!(guest.call(op::MKNOD, ro, &mknod("a")), Err(libc::EEXIST));
    assert_no_change(&mut guest, ro, file, dir);

    guest.tree.allow_mount_points("/ro", false).unwrap();
    assert_eq!(guest.call(op::MKNOD, ro, &mknod("g")), Err(libc::EROFS));
    assert_eq!(guest.call(op::MKDIR, ro, &mkdir("later")), Err(libc::EROFS));
    assert!(guest.tree.allow_mount_points("/ro/d", true).is_err());
    assert!(guest.tree.allow_mount_points("/c1", true).is_err());
}

#[test]
fn a_read_only_share_refuses_every_change() {
    let mut guest = Guest::new();
    let (ro, file, dir) = share_read_only(&mut guest);
    assert_eq!(guest.call(op::MKDIR, ro, &[vec![0; 8], string("new")].concat()), Err(libc::EROFS));
    assert_no_change(&mut guest, ro, file, dir);
    // The same directory through the other bind is another file system, and writable.
    let rootfs = guest.rootfs();
    assert_ne!(guest.lookup(rootfs, "a").unwrap().0.nodeid, file);
    guest.make(rootfs, "b");
}

#[test]
fn unbinding_closes_everything_at_once() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, fh) = guest.make(rootfs, "a");
    assert_eq!(guest.tree.counts(), (2, 1));
    guest.tree.unbind("/c1/rootfs").unwrap();
    assert_eq!(guest.tree.counts(), (0, 0));
    assert_eq!(guest.call(op::GETATTR, node, &[0; 16]), Err(libc::ESTALE));
    assert_eq!(guest.lookup(rootfs, "a"), Err(libc::ESTALE));
    assert_eq!(guest.read(node, fh, 0, 1), Err(libc::EBADF));
    assert_eq!(guest.lookup(ROOT_ID, "c1"), Err(libc::ENOENT));
    // A later bind at the same path has another inode.
    guest.tree.bind("/c1/rootfs", open_path(&guest.path("")), Terms::default()).unwrap();
    assert_ne!(guest.rootfs(), rootfs);
}
