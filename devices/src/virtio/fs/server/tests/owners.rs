//! Owners, modes, device nodes and extended attributes.

use super::*;

#[test]
fn extended_attributes_that_are_the_guests_pass() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, _) = guest.make(rootfs, "a");
    if guest.setxattr(node, "user.test", b"value") == Err(libc::EOPNOTSUPP) {
        // The test's directory is on a file system without extended attributes.
        return;
    }
    let size = guest.getxattr(node, "user.test", 0).unwrap();
    assert_eq!(GetxattrOut::parse(&size).unwrap().size, 5);
    assert_eq!(guest.getxattr(node, "user.test", 5).unwrap(), b"value");
    assert_eq!(guest.getxattr(node, "user.test", 4), Err(libc::ERANGE));
    assert_eq!(guest.getxattr(node, "user.none", 4), Err(libc::ENODATA));
    let list = |size| body(|b| GetxattrIn { size, padding: 0 }.put(b));
    assert_eq!(guest.call(op::LISTXATTR, node, &list(100)).unwrap(), b"user.test\0");
    let size = guest.call(op::LISTXATTR, node, &list(0)).unwrap();
    assert_eq!(GetxattrOut::parse(&size).unwrap().size, 10);
    assert_eq!(guest.call(op::LISTXATTR, node, &list(3)), Err(libc::ERANGE));
    for name in ["trusted.overlay.redirect", "security.selinux", "security.ima", "system.nfs4_acl"] {
        assert_eq!(guest.setxattr(node, name, b"x"), Err(libc::EOPNOTSUPP), "{name}");
        assert_eq!(guest.getxattr(node, name, 9), Err(libc::ENODATA), "{name}");
    }
    assert_eq!(guest.setxattr(node, "user.big", &[0; MAX_BODY]), Err(libc::E2BIG));
    guest.call(op::REMOVEXATTR, node, &string("user.test")).unwrap();
    assert_eq!(guest.call(op::REMOVEXATTR, node, &string("user.test")), Err(libc::ENODATA));
    // The attributes are those of the link, not of its target.
    let link = entry(&guest.call(op::SYMLINK, rootfs, &two_names("l", "a")).unwrap()).0.nodeid;
    assert_eq!(guest.setxattr(link, "user.test", b"x"), Err(libc::EPERM));
}

/// The host's kernel asks for CAP_SYS_ADMIN.
#[test]
fn attributes_that_are_reserved_for_administrators_need_their_terms() {
    let names = ["trusted.overlay.opaque", "security.other"];
    for admin in [false, true] {
        let (tree, dir) = scratch(Terms { admin_xattrs: admin, ..Terms::default() });
        let mut guest = Guest { server: server(&tree), tree, caller: (0, 0), dir };
        guest.init();
        let rootfs = guest.rootfs();
        let (node, _) = guest.make(rootfs, "file");
        for name in names {
            let set = guest.setxattr(node, name, b"y");
            let list =
                guest.call(op::LISTXATTR, node, &body(|b| GetxattrIn { size: 100, padding: 0 }.put(b)));
            let list = String::from_utf8(list.unwrap()).unwrap();
            match set {
                Ok(_) => {
                    assert!(admin);
                    assert_eq!(guest.getxattr(node, name, 9).unwrap(), b"y");
                    assert!(list.contains(name));
                }
                // A file system without them, or a server without the capability.
                Err(error) => {
                    assert_eq!(error, if admin { libc::EPERM } else { libc::EOPNOTSUPP }, "{name}");
                    assert!(!list.contains(name));
                }
            }
        }
        for name in
            ["security.selinux", "security.SMACK64EXEC", "security.ima", "security.evm", "system.other"]
        {
            assert_eq!(guest.setxattr(node, name, b"x"), Err(libc::EOPNOTSUPP), "{name}");
            assert_eq!(guest.getxattr(node, name, 9), Err(libc::ENODATA), "{name}");
        }
    }
}

#[test]
fn attributes_say_of_others_files_that_they_have_no_acl() {
    if !is_root() {
        // The guest checks no ACLs.
        return;
    }
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, _) = guest.make(rootfs, "a");
    let says = |guest: &mut Guest, caller| {
        guest.caller = caller;
        guest.attr(node).flags & ATTR_NO_ACL != 0
    };
    // Linux asks for no ACL of a process's own files.
    assert!(!says(&mut guest, (0, 0)) && says(&mut guest, (1000, 1000)));
    let acl: Vec<u8> = [2u32.to_le_bytes().to_vec()]
        .into_iter()
        .chain(
            [(1u16, 6u16, u32::MAX), (2, 4, 5), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)].map(
                |(tag, permissions, id)| {
                    [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
                },
            ),
        )
        .flatten()
        .collect();
    guest.caller = (0, 0);
    if guest.setxattr(node, "system.posix_acl_access", &acl) == Err(libc::EOPNOTSUPP) {
        // The test's directory is on a file system without ACLs.
        return;
    }
    assert!(!says(&mut guest, (1000, 1000)));
    guest.call(op::REMOVEXATTR, node, &string("system.posix_acl_access")).unwrap();
    assert!(says(&mut guest, (1000, 1000)));
}

#[test]
fn special_files_of_a_container_s_root_are_never_opened_on_the_host() {
    let (tree, dir) = scratch(Terms { owned: true, ..Terms::default() });
    let mut guest = Guest { server: server(&tree), tree, caller: (0, 0), dir };
    guest.init();
    let rootfs = guest.rootfs();
    for (name, kind) in [("fifo", libc::S_IFIFO), ("socket", libc::S_IFSOCK)] {
        let mknod = body(|b| {
            MknodIn { mode: kind | 0o666, umask: 0o022, ..Default::default() }.put(b);
            b.extend_from_slice(&string(name));
        });
        let (found, attr) = entry(&guest.call(op::MKNOD, rootfs, &mknod).unwrap());
        assert_eq!(attr.mode, kind | 0o644);
        assert_eq!(guest.open(found.nodeid, libc::O_RDWR), Err(libc::ENXIO));
        let size = SetattrIn { valid: set::SIZE, ..Default::default() };
        assert_eq!(guest.setattr(found.nodeid, size), Err(libc::ENXIO));
    }
}

#[test]
fn a_device_node_is_made_where_the_share_says_so_and_never_opened() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let rule = NodeRule { allow: true, kind: Some(NodeKind::Character), major: Some(1), minor: Some(3) };
    let terms = Terms { nodes: NodePolicy(vec![rule]), ..Terms::default() };
    guest.tree.bind("/c1/mounts/0", open_path(&guest.path("")), terms).unwrap();
    let allowed = guest.walk("c1/mounts/0");
    let mut make = |dir, name: &str, mode, rdev| {
        let mknod = body(|b| {
            MknodIn { mode: mode | 0o600, rdev, ..Default::default() }.put(b);
            b.extend_from_slice(&string(name));
        });
        guest.call(op::MKNOD, dir, &mknod)
    };
    let refused = Err(libc::EPERM);
    assert_eq!(make(rootfs, "null", libc::S_IFCHR, 0x103), refused);
    assert_eq!(make(allowed, "zero", libc::S_IFCHR, 0x105), refused);
    assert_eq!(make(allowed, "disk", libc::S_IFBLK, 0x103), refused);
    let made = [make(rootfs, "whiteout", libc::S_IFCHR, 0), make(allowed, "null", libc::S_IFCHR, 0x103)];
    // Only root can create device nodes, and not in every sandbox.
    if let [Ok(_), Ok(reply)] = made {
        let (found, attr) = entry(&reply);
        assert_eq!(attr.rdev, 0x103);
        assert!(fs::metadata(guest.path("null")).unwrap().file_type().is_char_device());
        assert_eq!(guest.open(found.nodeid, libc::O_RDWR), Err(libc::ENXIO));
    } else {
        assert!(!is_root() || made == [refused.clone(), refused], "{made:?}");
    }
}

#[test]
fn new_files_belong_to_the_caller() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    guest.caller = (1234, 2345);
    let (file, _) = guest.make(rootfs, "file");
    let mkdir = body(|b| {
        MkdirIn { mode: 0o777, umask: 0o027 }.put(b);
        b.extend_from_slice(&string("dir"));
    });
    let dir = entry(&guest.call(op::MKDIR, rootfs, &mkdir).unwrap()).1;
    guest.call(op::SYMLINK, rootfs, &two_names("link", "x")).unwrap();
    assert_eq!(dir.mode, libc::S_IFDIR | 0o750);
    let expected = if is_root() { (1234, 2345) } else { sys::effective_ids() };
    for name in ["file", "dir", "link"] {
        let meta = fs::symlink_metadata(guest.path(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), expected, "{name}");
    }
    let seen = guest.attr(file);
    assert_eq!((seen.uid, seen.gid), if is_root() { (1234, 2345) } else { (0, 0) });
    // The next file belongs to root again.
    guest.caller = (0, 0);
    guest.make(rootfs, "root");
    assert_eq!(fs::metadata(guest.path("root")).unwrap().uid(), sys::effective_ids().0);
}

#[test]
fn owners_change_as_far_as_the_server_may() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, _) = guest.make(rootfs, "a");
    let root = SetattrIn { valid: set::UID | set::GID, uid: 0, gid: 0, ..Default::default() };
    assert_eq!(guest.setattr(node, root).unwrap().uid, 0);
    let other = SetattrIn { valid: set::UID, uid: 42, ..Default::default() };
    match is_root() {
        true => assert_eq!(guest.setattr(node, other).unwrap().uid, 42),
        false => assert_eq!(guest.setattr(node, other), Err(libc::EPERM)),
    }
}

#[test]
fn a_set_group_id_directory_gives_its_group() {
    if !is_root() {
        return;
    }
    let mut guest = Guest::new();
    fs::create_dir(guest.path("d")).unwrap();
    std::os::unix::fs::chown(guest.path("d"), Some(0), Some(777)).unwrap();
    fs::set_permissions(guest.path("d"), fs::Permissions::from_mode(0o2775)).unwrap();
    let dir = guest.walk("c1/rootfs/d");
    guest.caller = (1000, 1000);
    guest.make(dir, "a");
    let meta = fs::metadata(guest.path("d/a")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (1000, 777));
}

#[test]
fn writing_kills_set_user_id_if_the_guest_says_so() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, fh) = guest.make(rootfs, "a");
    let mut mode_after = |write_flags| {
        let set = SetattrIn { valid: set::MODE, mode: 0o4755, ..Default::default() };
        assert_eq!(guest.setattr(node, set).unwrap().mode, 0o104755);
        guest.write(node, WriteIn { fh, write_flags, ..Default::default() }, b"x").unwrap();
        guest.attr(node).mode
    };
    assert_eq!(mode_after(WRITE_KILL_SUIDGID), 0o100755);
    if is_root() {
        assert_eq!(mode_after(0), 0o104755);
    }
    assert_eq!(mode_after(WRITE_KILL_SUIDGID), 0o100755);
}

/// An ACL in which user 1000 has `permissions`, as an extended attribute (linux/posix_acl_xattr.h).
fn acl(permissions: u16) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (0x01, 6, u32::MAX),
        (0x02, permissions, 1000),
        (0x04, 4, u32::MAX),
        (0x10, permissions | 4, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        value.extend_from_slice(&u16::to_le_bytes(tag));
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&u32::to_le_bytes(id));
    }
    value
}

#[test]
fn an_acl_changes_the_mode_and_clears_set_group_id_if_the_guest_says_so() {
    const ACCESS: &str = "system.posix_acl_access";
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, _) = guest.make(rootfs, "a");
    assert_eq!(guest.getxattr(node, ACCESS, 4096), Err(libc::ENODATA));
    for (flags, setgid) in [(0, 0o2000), (SETXATTR_ACL_KILL_SGID, 0)] {
        fs::set_permissions(guest.path("a"), fs::Permissions::from_mode(0o2640)).unwrap();
        if guest.setxattr_with(node, ACCESS, &acl(7), flags) == Err(libc::EOPNOTSUPP) {
            return;
        }
        assert_eq!(guest.attr(node).mode & 0o7777, 0o670 | setgid);
        assert_eq!(guest.getxattr(node, ACCESS, 4096).unwrap(), acl(7));
    }
}
