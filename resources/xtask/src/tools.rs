//! Programs from crates.io that tasks use, installed into the cache.

use std::path::PathBuf;

use crate::cache;
use crate::steps::{cargo, run, say};

/// Returns the program of package `name`. Installs `version` if the program is not in the cache.
pub fn installed(name: &str, version: &str) -> anyhow::Result<PathBuf> {
    let root = cache::dir("tools");
    let program = root.join("bin").join(name);
    if !program.exists() {
        say(&format!("installing {name}"));
        run(cargo().args(["install", name, "--locked", "--version", version, "--root"]).arg(&root))?;
    }
    Ok(program)
}
