//! Files that a command opens, recorded during a first run in a temporary machine. They are staged for the measured
//! run: on the instruction clock no measured step may wait for the outer machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::{fs, io};

/// Folders with symbolic links to files in other folders. The folders of the files themselves are searched as well.
const LINK_FOLDERS: [&str; 5] =
    ["/usr/bin", "/usr/sbin", "/usr/lib64", "/etc/alternatives", "/usr/share/locale"];

/// The paths of opened files.
#[derive(Default)]
pub struct Trace(Mutex<BTreeSet<PathBuf>>);

impl Trace {
    /// Records an opened file.
    pub fn record(&self, path: PathBuf) {
        self.0.lock().unwrap().insert(path);
    }

    /// Returns the recorded files that exist on this machine, and the symbolic links to them, which must be staged as
    /// well. Files that the command created and files in `outs` are omitted: they are not in the machine's memory.
    pub fn staged_files(self, outs: &[PathBuf]) -> Vec<PathBuf> {
        let exists = |path: &PathBuf| path.is_file() && !outs.iter().any(|out| path.starts_with(out));
        let files: BTreeSet<PathBuf> = self.0.into_inner().unwrap().into_iter().filter(exists).collect();
        let above = files.iter().flat_map(|file| file.ancestors().skip(1));
        let folders: BTreeSet<&Path> = above.chain(LINK_FOLDERS.map(Path::new)).collect();
        let mut links = BTreeSet::new();
        for folder in &folders {
            // Without the links of an unreadable folder the run is only slower.
            let found = links_in(folder, |target| files.contains(target) || folders.contains(target));
            links.extend(found.unwrap_or_default());
        }
        files.into_iter().chain(links).collect()
    }
}

/// Returns the symbolic links in `folder` whose final target fulfils `is_target`.
fn links_in(folder: &Path, is_target: impl Fn(&Path) -> bool) -> io::Result<Vec<PathBuf>> {
    let mut links = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_symlink()
            && fs::canonicalize(entry.path()).is_ok_and(|target| is_target(&target))
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
    fn links_to_opened_files_are_staged() {
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
        let trace = Trace::default();
        for name in ["lib.so.1.2", "lib.so.1.2", "gone", "out/result"] {
            trace.record(path(name));
        }
        let mut found = trace.staged_files(&[path("out")]);
        found.retain(|path| path.starts_with(&root));
        assert_eq!(found, ["lib.so.1.2", "here", "lib.so", "lib.so.1"].map(path));
    }
}
