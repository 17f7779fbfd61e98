//! Names: links, renames, directories.

use super::*;
use crate::share::watch::LASTING;

#[test]
fn symbolic_links_are_data_for_the_host() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let reply = guest.call(op::SYMLINK, rootfs, &two_names("passwd", "/etc/passwd")).unwrap();
    let (found, attr) = entry(&reply);
    assert_eq!(attr.mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(guest.call(op::READLINK, found.nodeid, &[]).unwrap(), b"/etc/passwd");
    assert_eq!(guest.open(found.nodeid, 0), Err(libc::ELOOP));
    assert_eq!(guest.lookup(found.nodeid, "x"), Err(libc::ENOTDIR));
    // The server does not follow a link to a directory, even if the host created the link.
    symlink("/etc", guest.path("etc")).unwrap();
    let etc = guest.lookup(rootfs, "etc").unwrap().0.nodeid;
    assert_eq!(guest.lookup(etc, "passwd"), Err(libc::ENOTDIR));
    assert_eq!(guest.call(op::OPENDIR, etc, &[0; 8]), Err(libc::ENOTDIR));
    let long = "x".repeat(4096);
    assert_eq!(guest.call(op::SYMLINK, rootfs, &two_names("l", &long)), Err(libc::ENAMETOOLONG));
    // Times and owner are the link's own.
    let times = SetattrIn { valid: set::MTIME, mtime: 5, ..Default::default() };
    assert_eq!(guest.setattr(found.nodeid, times).unwrap().mtime, 5);
    assert_eq!(fs::symlink_metadata(guest.path("passwd")).unwrap().mtime(), 5);
}

#[test]
fn renames_replace_exchange_and_refuse() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    for name in ["a", "b", "c"] {
        fs::write(guest.path(name), name).unwrap();
    }
    guest.rename((rootfs, "a"), (rootfs, "b"), 0).unwrap();
    assert_eq!(fs::read(guest.path("b")).unwrap(), b"a");
    assert_eq!(guest.rename((rootfs, "b"), (rootfs, "c"), libc::RENAME_NOREPLACE), Err(libc::EEXIST));
    guest.rename((rootfs, "b"), (rootfs, "c"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(fs::read(guest.path("c")).unwrap(), b"a");
    let plain = body(|b| {
        RenameIn { newdir: rootfs }.put(b);
        b.extend_from_slice(&two_names("c", "d"));
    });
    guest.call(op::RENAME, rootfs, &plain).unwrap();
    assert!(guest.path("d").exists());
    let other = tempfile::tempdir().unwrap();
    guest.tree.bind("/c1/mounts/0", open_path(other.path()), Terms::default()).unwrap();
    let mount = guest.walk("c1/mounts/0");
    assert_eq!(guest.rename((rootfs, "d"), (mount, "d"), 0), Err(libc::EXDEV));
    let node = guest.walk("c1/rootfs/d");
    let link = [&node.to_le_bytes()[..], &string("d")].concat();
    assert_eq!(guest.call(op::LINK, mount, &link), Err(libc::EXDEV));
}

#[test]
fn hard_links_are_one_inode() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, _) = guest.make(rootfs, "a");
    let link = [&node.to_le_bytes()[..], &string("b")].concat();
    let (found, attr) = entry(&guest.call(op::LINK, rootfs, &link).unwrap());
    assert_eq!((found.nodeid, attr.nlink), (node, 2));
    assert_eq!(guest.lookup(rootfs, "b").unwrap().0.nodeid, node);
    // CREATE, LINK and LOOKUP: three lookups.
    guest.forget(node, 2);
    guest.attr(node);
    guest.forget(node, 1);
    assert_eq!(guest.call(op::GETATTR, node, &[0; 16]), Err(libc::ESTALE));
    // A hard link to a symbolic link is a symbolic link, too.
    let reply = guest.call(op::SYMLINK, rootfs, &two_names("s", "nowhere")).unwrap();
    let link = [&entry(&reply).0.nodeid.to_le_bytes()[..], &string("s2")].concat();
    guest.call(op::LINK, rootfs, &link).unwrap();
    assert_eq!(fs::read_link(guest.path("s2")).unwrap(), Path::new("nowhere"));
}

#[test]
fn large_directories_are_listed_whole() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    for index in 0..1500 {
        fs::write(guest.path(&format!("a file with a long name {index}")), "").unwrap();
    }
    for (opcode, size) in [(op::READDIR, 4096), (op::READDIRPLUS, 4096), (op::READDIRPLUS, 300_000)] {
        let names = guest.list(rootfs, opcode, size);
        assert_eq!(names.len(), 1502, "{opcode} {size}");
        assert!(names.windows(2).all(|pair| pair[0].0 != pair[1].0));
        assert!(names.iter().all(|e| (opcode == op::READDIR || e.0.starts_with('.')) == (e.2 == 0)));
    }
    let listed = guest.list(rootfs, op::READDIRPLUS, 4096);
    // The rootfs and all files, each once.
    assert_eq!(guest.tree.counts().0, 1501);
    for (_, _, nodeid) in listed {
        guest.forget(nodeid, 3);
    }
    assert_eq!(guest.tree.counts().0, 1);
}

#[test]
fn a_directory_can_be_read_again_and_from_the_middle() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    for name in ["a", "b", "c"] {
        fs::write(guest.path(name), "").unwrap();
    }
    let open = guest.call(op::OPENDIR, rootfs, &[0; 8]).unwrap();
    let fh = OpenOut::parse(&open).unwrap().fh;
    let mut read = |offset, size| {
        let input = ReadIn { fh, offset, size, ..Default::default() };
        guest.call(op::READDIR, rootfs, &body(|b| input.put(b))).unwrap()
    };
    let all = read(0, 4096);
    assert_eq!(read(0, 4096), all);
    let first = Dirent::parse(&all).unwrap();
    let second = &all[Dirent::SIZE + (first.namelen as usize).next_multiple_of(8)..];
    assert_eq!(read(first.off, 4096), second);
    let trailer = Dirent::SIZE as u32;
    assert_eq!(read(first.off, 32 + trailer)[..32], second[..32]);
    assert_eq!(read(0, 10 + trailer).len(), Dirent::SIZE);
    let input = ReadIn { fh, offset: u64::MAX, size: 4096, ..Default::default() };
    assert_eq!(guest.call(op::READDIR, rootfs, &body(|b| input.put(b))), Err(libc::EINVAL));
}

#[test]
fn host_changes_show_in_attributes_and_lookups() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, _) = guest.make(rootfs, "a");
    let file = fs::OpenOptions::new().write(true).open(guest.path("a")).unwrap();
    file.write_at(b"host", 0).unwrap();
    assert_eq!(guest.attr(node).size, 4);
    fs::rename(guest.path("a"), guest.path("b")).unwrap();
    assert_eq!(guest.lookup(rootfs, "a"), Err(libc::ENOENT));
    let (found, attr) = guest.lookup(rootfs, "b").unwrap();
    // The directory is watched.
    assert_eq!((found.nodeid, found.entry_valid, found.attr_valid, attr.size), (node, LASTING, 1, 4));
}
