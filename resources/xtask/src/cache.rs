//! The cache for downloads and expensive results, outside of the repository.

use std::path::PathBuf;
use std::{env, fs};

/// Returns the cache folder `name` and creates it: below `$VMM_CACHE`, otherwise `$XDG_CACHE_HOME/vmm`, otherwise
/// `~/.cache/vmm`. Panics if it cannot create the folder.
pub fn dir(name: &str) -> PathBuf {
    let set = |key| env::var_os(key).filter(|value| !value.is_empty()).map(PathBuf::from);
    let root = set("VMM_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("vmm")))
        .unwrap_or_else(|| set("HOME").unwrap_or_else(|| "/root".into()).join(".cache/vmm"));
    let dir = root.join(name);
    if let Err(error) = fs::create_dir_all(&dir) {
        panic!("create cache folder {}: {error}", dir.display());
    }
    dir
}
