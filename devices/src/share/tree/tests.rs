use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::*;
use crate::share::testing::open_path;

fn root() -> OwnedFd {
    open_path(Path::new("/"))
}

#[test]
fn paths_must_be_absolute_and_plain() {
    let tree = ShareTree::new().unwrap();
    let long = format!("/{}", "x".repeat(256));
    for path in ["", "/", "a", "a/b", "/a/", "//a", "/a//b", "/.", "/..", "/a/../b", "/a\0", &long] {
        assert!(
            matches!(tree.bind(path, root(), Terms::default()), Err(ShareError::Path { .. })),
            "{path:?}"
        );
        assert!(matches!(tree.unbind(path), Err(ShareError::Path { .. })), "{path:?}");
    }
}

#[test]
fn a_name_is_bound_once_and_nothing_is_bound_below_it() {
    let tree = ShareTree::new().unwrap();
    tree.bind("/c1/rootfs", root(), Terms::default()).unwrap();
    for path in ["/c1", "/c1/rootfs", "/c1/rootfs/etc"] {
        assert!(matches!(tree.bind(path, root(), Terms::default()), Err(ShareError::Taken { .. })), "{path}");
    }
    tree.bind("/c1/mounts/0", root(), Terms::default()).unwrap();
    tree.bind("/c2/rootfs", root(), Terms::default()).unwrap();
}

#[test]
fn unbinding_takes_empty_directories_along() {
    let tree = ShareTree::new().unwrap();
    tree.bind("/c1/rootfs", root(), Terms::default()).unwrap();
    tree.bind("/c1/mounts/a/0", root(), Terms::default()).unwrap();
    for path in ["/c1", "/c1/mounts", "/c1/mounts/a/1", "/c1/rootfs/x", "/c2"] {
        assert!(matches!(tree.unbind(path), Err(ShareError::Unbound { .. })), "{path}");
    }
    let dirs = || tree.0.tree.lock().unwrap().dirs.len();
    assert_eq!(dirs(), 4);
    tree.unbind("/c1/mounts/a/0").unwrap();
    assert_eq!(dirs(), 2);
    tree.unbind("/c1/rootfs").unwrap();
    assert_eq!(dirs(), 1);
    // The path can be bound again.
    tree.bind("/c1", root(), Terms::default()).unwrap();
}

#[test]
fn only_directories_and_files_are_shared() {
    let dir = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    let tree = ShareTree::new().unwrap();
    for path in [dir.path().join("socket"), "/dev/null".into()] {
        let result = tree.bind("/x", open_path(&path), Terms::default());
        assert!(matches!(result, Err(ShareError::Kind { .. })), "{path:?}");
    }
    fs::write(dir.path().join("file"), "").unwrap();
    tree.bind("/x", open_path(&dir.path().join("file")), Terms::default()).unwrap();
}

/// Only a privileged process can create the device node, and make mount copies.
#[test]
fn a_directory_is_served_on_a_mount_without_devices() {
    let dir = tempfile::tempdir().unwrap();
    let made = sys::mknodat(open_path(dir.path()).as_fd(), c"null", libc::S_IFCHR | 0o666, 0x103);
    if made.is_err() || sys::clone_mount(open_path(dir.path()).as_fd(), MountCopy::default()).is_err() {
        return;
    }
    let tree = ShareTree::new().unwrap();
    tree.bind("/own", open_path(dir.path()), Terms::default()).unwrap();
    tree.bind("/host", open_path(dir.path()), Terms { later_mounts: true, ..Terms::default() }).unwrap();
    let open = |path: &str| {
        let bind = tree.0.tree.lock().unwrap().find(&components(path).unwrap()).unwrap().clone();
        let null = sys::openat(bind.fd(), c"null", libc::O_PATH, 0).unwrap();
        let link = crate::share::magic_link::MagicLink::new("", std::os::fd::AsRawFd::as_raw_fd(&null));
        // Both by name and through a file descriptor that was opened before.
        let magic = sys::openat(tree.0.proc_self_fd.as_fd(), &link, libc::O_RDWR, 0);
        [sys::openat(bind.fd(), c"null", libc::O_RDWR, 0), magic].map(|opened| opened.map(drop))
    };
    assert_eq!(open("/own"), [Err(Errno(libc::EACCES)); 2]);
    // A sandbox may refuse devices everywhere.
    if fs::File::open(dir.path().join("null")).is_ok() {
        assert_eq!(open("/host"), [Ok(()); 2]);
    }
}
