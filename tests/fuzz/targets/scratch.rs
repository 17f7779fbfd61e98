//! The share of the targets `fuse`, `p9` and `devices`: two directories, one of them read-only, and a file.

use std::fs::{self, File};
use std::sync::OnceLock;

use devices::share::{ShareTree, Terms};
use tempfile::TempDir;

fn scratch() -> &'static TempDir {
    static SCRATCH: OnceLock<TempDir> = OnceLock::new();
    SCRATCH.get_or_init(|| tempfile::tempdir().unwrap())
}

/// Creates the share, without the changes of earlier inputs.
pub fn tree() -> ShareTree {
    let dir = scratch().path();
    for name in ["open", "closed"] {
        // Removes what earlier inputs have created.
        let _ = fs::remove_dir_all(dir.join(name));
        fs::create_dir_all(dir.join(name).join("d")).unwrap();
        fs::write(dir.join(name).join("f"), "text").unwrap();
    }
    fs::write(dir.join("file"), "alone").unwrap();
    let tree = ShareTree::new().unwrap();
    tree.bind("/a/open", File::open(dir.join("open")).unwrap().into(), Terms::default()).unwrap();
    tree.bind("/a/closed", File::open(dir.join("closed")).unwrap().into(), Terms::read_only()).unwrap();
    tree.bind("/b", File::open(dir.join("file")).unwrap().into(), Terms::default()).unwrap();
    tree
}
