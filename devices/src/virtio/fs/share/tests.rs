use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::*;

fn open_path(path: &Path) -> OwnedFd {
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).unwrap().into()
}

fn root() -> OwnedFd {
    open_path(Path::new("/"))
}

#[test]
fn paths_must_be_absolute_and_plain() {
    let tree = ShareTree::new().unwrap();
    let long = format!("/{}", "x".repeat(256));
    for path in ["", "/", "a", "a/b", "/a/", "//a", "/a//b", "/.", "/..", "/a/../b", "/a\0", &long] {
        assert!(matches!(tree.bind(path, root(), false), Err(ShareError::Path { .. })), "{path:?}");
        assert!(matches!(tree.unbind(path), Err(ShareError::Path { .. })), "{path:?}");
    }
}

#[test]
fn a_name_is_bound_once_and_nothing_is_bound_below_it() {
    let tree = ShareTree::new().unwrap();
    tree.bind("/c1/rootfs", root(), false).unwrap();
    for path in ["/c1", "/c1/rootfs", "/c1/rootfs/etc"] {
        assert!(matches!(tree.bind(path, root(), false), Err(ShareError::Taken { .. })), "{path}");
    }
    tree.bind("/c1/mounts/0", root(), false).unwrap();
    tree.bind("/c2/rootfs", root(), false).unwrap();
}

#[test]
fn unbinding_takes_empty_directories_along() {
    let tree = ShareTree::new().unwrap();
    tree.bind("/c1/rootfs", root(), false).unwrap();
    tree.bind("/c1/mounts/a/0", root(), false).unwrap();
    for path in ["/c1", "/c1/mounts", "/c1/mounts/a/1", "/c1/rootfs/x", "/c2"] {
        assert!(matches!(tree.unbind(path), Err(ShareError::Unbound { .. })), "{path}");
    }
    let dirs = || tree.0.tree.lock().unwrap().dirs.len();
    assert_eq!(dirs(), 4);
    tree.unbind("/c1/mounts/a/0").unwrap();
    assert_eq!(dirs(), 2);
    tree.unbind("/c1/rootfs").unwrap();
    assert_eq!(dirs(), 1);
    // And the name is free again.
    tree.bind("/c1", root(), false).unwrap();
}

#[test]
fn only_directories_and_files_are_shared() {
    let dir = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    let tree = ShareTree::new().unwrap();
    for path in [dir.path().join("socket"), "/dev/null".into()] {
        let result = tree.bind("/x", open_path(&path), false);
        assert!(matches!(result, Err(ShareError::Kind { .. })), "{path:?}");
    }
    fs::write(dir.path().join("file"), "").unwrap();
    tree.bind("/x", open_path(&dir.path().join("file")), false).unwrap();
}
