//! What a command opens, found by running it once in a machine that is thrown away. With the instruction clock no
//! measured step may wait for the outer machine: all these files are then copied into the machine's memory first.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::{fs, io};

/// Folders of links that lead elsewhere, beside those above the files themselves.
const LINK_FOLDERS: [&str; 5] =
    ["/usr/bin", "/usr/sbin", "/usr/lib64", "/etc/alternatives", "/usr/share/locale"];

/// Collects names while a machine runs.
#[derive(Default)]
pub struct Opened(Mutex<BTreeSet<PathBuf>>);

impl Opened {
    /// Takes note of `path`.
    pub fn add(&self, path: PathBuf) {
        self.0.lock().unwrap().insert(path);
    }

    /// The files that this machine has, and the links that lead to them: a link is a file of its own to copy. Left out
    /// are files that only the command made, and those in `outs`, which are never in the machine's memory.
    pub fn finish(self, outs: &[PathBuf]) -> Vec<PathBuf> {
        let here = |path: &PathBuf| path.is_file() && !outs.iter().any(|out| path.starts_with(out));
        let files: BTreeSet<PathBuf> = self.0.into_inner().unwrap().into_iter().filter(here).collect();
        let above = files.iter().flat_map(|file| file.ancestors().skip(1));
        let folders: BTreeSet<&Path> = above.chain(LINK_FOLDERS.map(Path::new)).collect();
        let mut links = BTreeSet::new();
        for folder in &folders {
            // A folder that cannot be listed only leaves links uncopied.
            let found = links_in(folder, |target| files.contains(target) || folders.contains(target));
            links.extend(found.unwrap_or_default());
        }
        files.into_iter().chain(links).collect()
    }
}

/// The symbolic links in `folder` whose final target `wanted` takes.
fn links_in(folder: &Path, wanted: impl Fn(&Path) -> bool) -> io::Result<Vec<PathBuf>> {
    let mut links = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_symlink()
            && fs::canonicalize(entry.path()).is_ok_and(|target| wanted(&target))
        {
            links.push(entry.path());
        }
    }
    Ok(links)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_to_opened_files_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        let path = |name: &str| root.join(name);
        fs::create_dir(path("out")).unwrap();
        for name in ["lib.so.1.2", "other", "out/result"] {
            fs::write(path(name), "").unwrap();
        }
        symlink("lib.so.1.2", path("lib.so.1")).unwrap();
        symlink("lib.so.1", path("lib.so")).unwrap();
        symlink("other", path("link")).unwrap();
        symlink(".", path("here")).unwrap();
        let opened = Opened::default();
        for name in ["lib.so.1.2", "lib.so.1.2", "gone", "out/result"] {
            opened.add(path(name));
        }
        let mut found = opened.finish(&[path("out")]);
        found.retain(|path| path.starts_with(&root));
        assert_eq!(found, ["lib.so.1.2", "here", "lib.so", "lib.so.1"].map(path));
    }
}
