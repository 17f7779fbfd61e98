//! The checkout on which a task works, and the folder of its build results.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::Context;

/// Returns the top folder of the checkout that this task was started in.
///
/// Panics outside a checkout: `main` has called [`find_top`] before any task starts.
pub fn top() -> PathBuf {
    find_top().expect("the task was started in a checkout").to_owned()
}

/// Finds the top folder of the checkout in which this task was started.
///
/// The path is not compiled in: the program of a copied or moved checkout would then build the original one. Cargo sets
/// `CARGO_MANIFEST_DIR` for the programs and tests that it starts. If a program is started directly, the working folder
/// decides.
pub fn find_top() -> anyhow::Result<&'static Path> {
    static TOP: OnceLock<PathBuf> = OnceLock::new();
    if let Some(top) = TOP.get() {
        return Ok(top);
    }
    let manifest = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let here = env::current_dir().context("find the working folder")?;
    let found = top_above(manifest.into_iter().chain([here.clone()]))
        .with_context(|| format!("{} is not in a checkout of vmm", here.display()))?;
    Ok(TOP.get_or_init(|| found))
}

/// Returns the top folder of the checkout that contains one of `folders`, the first if there are several.
fn top_above(folders: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    let is_top = |folder: &&Path| {
        folder.join("Cargo.lock").is_file() && folder.join("resources/xtask/Cargo.toml").is_file()
    };
    folders.into_iter().find_map(|folder| folder.ancestors().find(is_top).map(Path::to_owned))
}

/// Returns the folder of build results: `$CARGO_TARGET_DIR`, otherwise `target` in the checkout.
pub fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| top().join("target"), |dir| top().join(dir))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A folder that looks like a checkout.
    fn checkout() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("resources/xtask/src")).unwrap();
        fs::create_dir_all(dir.path().join("tests/fuzz")).unwrap();
        for file in
            ["Cargo.lock", "resources/xtask/Cargo.toml", "tests/fuzz/Cargo.toml", "tests/fuzz/Cargo.lock"]
        {
            fs::write(dir.path().join(file), "").unwrap();
        }
        dir
    }

    #[test]
    fn the_top_is_found_from_any_folder_of_a_checkout() {
        let checkout = checkout();
        for inside in ["", "resources/xtask", "resources/xtask/src", "tests/fuzz"] {
            let folder = checkout.path().join(inside);
            assert_eq!(top_above([folder.clone()]), Some(checkout.path().to_owned()), "{}", folder.display());
        }
        assert_eq!(top_above([checkout.path().parent().unwrap().to_owned()]), None);
        assert_eq!(top_above([]), None);
    }

    #[test]
    fn cargo_s_folder_comes_before_the_working_folder_and_a_stranger_s_does_not_count() {
        let (one, other, stranger) = (checkout(), checkout(), tempfile::tempdir().unwrap());
        let [one, other, stranger] = [&one, &other, &stranger].map(|dir| dir.path().to_owned());
        assert_eq!(top_above([one.join("resources/xtask"), other.clone()]), Some(one));
        assert_eq!(top_above([stranger, other.clone()]), Some(other));
    }

    #[test]
    fn the_top_of_this_run_is_this_checkout() {
        assert!(find_top().unwrap().join("resources/xtask/src/checkout.rs").is_file());
    }
}
