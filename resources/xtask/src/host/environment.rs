//! The environment that the command in the emulated host gets from this process.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";

/// Returns this process's environment, without the library folders that cargo and rustup put into `LD_LIBRARY_PATH` for
/// xtask itself. With them, each dynamically linked program of the command searches these folders first: requests to
/// the outer machine's file system, whose latency counts on the instruction clock.
pub fn inherited() -> Vec<(OsString, OsString)> {
    let added = [
        env::var_os("RUSTUP_HOME").map(PathBuf::from),
        env::current_exe().ok().and_then(|xtask| Some(xtask.ancestors().nth(2)?.to_owned())),
    ];
    let added: Vec<PathBuf> = added.into_iter().flatten().collect();
    env::vars_os()
        .filter_map(|(key, value)| {
            let value = if key == LIBRARY_PATH { without(&value, &added)? } else { value };
            Some((key, value))
        })
        .collect()
}

/// Returns the search path `list` without the folders below those of `added`. `None` if no folder is left.
fn without(list: &OsStr, added: &[PathBuf]) -> Option<OsString> {
    let kept = |folder: &PathBuf| !added.iter().any(|top| folder.starts_with::<&Path>(top));
    let kept: Vec<PathBuf> = env::split_paths(list).filter(kept).collect();
    if kept.is_empty() { None } else { env::join_paths(kept).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_cargo_and_rustup_are_removed_from_the_library_path() {
        let added = [PathBuf::from("/home/u/.rustup"), PathBuf::from("/src/target")];
        let left = |list: &str| without(OsStr::new(list), &added);
        assert_eq!(left("/src/target/debug:/home/u/.rustup/toolchains/x/lib"), None);
        assert_eq!(left("/src/target/debug/deps:/opt/lib:/usr/a"), Some("/opt/lib:/usr/a".into()));
        assert_eq!(left("/src/targets:/opt"), Some("/src/targets:/opt".into()));
    }
}
