use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::*;

/// A root directory with a secret beside it, removed at the end.
struct Tree {
    top: PathBuf,
    root: Root,
}

impl Tree {
    fn new(name: &str) -> Tree {
        let top = std::env::temp_dir().join(format!("agent-rootfs-{}-{name}", std::process::id()));
        fs::create_dir_all(top.join("root")).unwrap();
        fs::write(top.join("secret"), "outside").unwrap();
        let root = Root::open(top.join("root").to_str().unwrap()).unwrap();
        Tree { top, root }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.top.join("root").join(path)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.top);
    }
}

#[test]
fn missing_parent_directories_are_created() {
    let tree = Tree::new("way");
    tree.root.create_directory("/a/b/./c/").unwrap();
    assert!(tree.path("a/b/c").is_dir());
}

#[test]
fn link_out_of_the_root_stays_in_it() {
    let tree = Tree::new("out");
    symlink("../../../../..", tree.path("up")).unwrap();
    symlink("/", tree.path("top")).unwrap();
    tree.root.create_directory("/up/x").unwrap();
    tree.root.create_file("/top/y").unwrap();
    assert!(tree.path("x").is_dir());
    assert!(tree.path("y").is_file());
}

#[test]
fn file_outside_is_not_found() {
    let tree = Tree::new("secret");
    symlink("../secret", tree.path("link")).unwrap();
    assert_eq!(tree.root.find("/link").unwrap_err(), Errno::NOENT);
    assert_eq!(tree.root.find("../secret").unwrap_err(), Errno::NOENT);
}

#[test]
fn target_of_a_dangling_link_is_created() {
    let tree = Tree::new("dangling");
    fs::create_dir(tree.path("var")).unwrap();
    symlink("../run", tree.path("var/run")).unwrap();
    symlink("/run/conf", tree.path("conf")).unwrap();
    tree.root.create_directory("/var/run/secrets").unwrap();
    tree.root.create_file("/conf").unwrap();
    assert!(tree.path("run/secrets").is_dir());
    assert!(tree.path("run/conf").is_file());
}

#[test]
fn links_in_a_circle_are_refused() {
    let tree = Tree::new("circle");
    symlink("b", tree.path("a")).unwrap();
    symlink("a", tree.path("b")).unwrap();
    assert!(tree.root.create_directory("/a/x").is_err());
}

#[test]
fn file_instead_of_a_directory_is_refused() {
    let tree = Tree::new("file");
    fs::write(tree.path("f"), "").unwrap();
    assert_eq!(
        tree.root.create_directory("/f/x").unwrap_err().text,
        "create directory /f/x: not a directory"
    );
}

#[test]
fn existing_file_is_unchanged() {
    let tree = Tree::new("keep");
    fs::write(tree.path("f"), "text").unwrap();
    tree.root.create_file("/f").unwrap();
    assert_eq!(fs::read(tree.path("f")).unwrap(), b"text");
}
