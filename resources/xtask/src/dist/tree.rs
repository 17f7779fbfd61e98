//! The installed files of a release, with modes that do not depend on the umask.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

/// A folder that represents `/`.
pub struct Tree {
    root: PathBuf,
    files: Vec<String>,
    /// Total size in KiB. Each file and folder is rounded up, as Debian does (deb-substvars(5)).
    installed_kib: u64,
}

impl Tree {
    /// Creates an empty tree in `root`, which must not exist.
    pub fn new(root: &Path) -> anyhow::Result<Tree> {
        let mut tree = Tree { root: root.to_owned(), files: Vec::new(), installed_kib: 0 };
        tree.create_folder(root)?;
        Ok(tree)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the paths of all files below the root, sorted.
    pub fn files(&self) -> Vec<&str> {
        let mut files: Vec<&str> = self.files.iter().map(String::as_str).collect();
        files.sort_unstable();
        files
    }

    pub fn installed_kib(&self) -> u64 {
        self.installed_kib
    }

    /// Adds a file; `path` is below the root.
    pub fn add(&mut self, path: &str, mode: u32, bytes: &[u8]) -> anyhow::Result<()> {
        let full = self.root.join(path);
        self.create_folder(full.parent().with_context(|| format!("add {path}: no folder"))?)?;
        ensure!(!full.exists(), "add {path}: it exists");
        let write = |file: &mut File| {
            file.write_all(bytes)?;
            file.set_permissions(Permissions::from_mode(mode))
        };
        File::create(&full)
            .and_then(|mut file| write(&mut file))
            .with_context(|| format!("write {}", full.display()))?;
        self.installed_kib += (bytes.len() as u64).div_ceil(1024);
        self.files.push(path.to_owned());
        Ok(())
    }

    /// Adds a file compressed with gzip, without name and time in its header.
    pub fn add_compressed(&mut self, path: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let mut gzip = Command::new("gzip")
            .args(["-9", "-n", "-c"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start gzip")?;
        let mut input = gzip.stdin.take().context("open the input of gzip")?;
        // A thread writes the input: gzip may fill the pipe of its output before it has read everything.
        let output = std::thread::scope(|scope| {
            scope.spawn(move || input.write_all(bytes));
            gzip.wait_with_output()
        });
        let output = output.with_context(|| format!("compress {path} with gzip"))?;
        ensure!(output.status.success(), "compress {path} with gzip: {}", output.status);
        self.add(path, 0o644, &output.stdout)
    }

    /// Adds a file, or all files of a folder.
    pub fn add_all(&mut self, path: &str, from: &Path) -> anyhow::Result<()> {
        if !from.is_dir() {
            let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
            return self.add(path, 0o644, &bytes);
        }
        for entry in fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
            let entry = entry.with_context(|| format!("list {}", from.display()))?;
            self.add_all(&format!("{path}/{}", entry.file_name().to_string_lossy()), &entry.path())?;
        }
        Ok(())
    }

    fn create_folder(&mut self, folder: &Path) -> anyhow::Result<()> {
        if folder.is_dir() {
            return Ok(());
        }
        if folder != self.root {
            self.create_folder(
                folder
                    .parent()
                    .with_context(|| format!("create {}: outside of the tree", folder.display()))?,
            )?;
        }
        let created = DirBuilder::new().recursive(folder == self.root).mode(0o755).create(folder);
        created
            .and_then(|()| fs::set_permissions(folder, Permissions::from_mode(0o755)))
            .with_context(|| format!("create {}", folder.display()))?;
        self.installed_kib += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_do_not_depend_on_the_umask() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/tree");
        let mut tree = Tree::new(&root).unwrap();
        tree.add("usr/bin/program", 0o755, &[0; 1025]).unwrap();
        tree.add("usr/share/doc/text", 0o644, b"text").unwrap();
        let mode = |path: &str| root.join(path).metadata().unwrap().permissions().mode() & 0o7777;
        for (path, expected) in
            [("", 0o755), ("usr/bin", 0o755), ("usr/bin/program", 0o755), ("usr/share/doc/text", 0o644)]
        {
            assert_eq!(mode(path), expected, "{path}");
        }
        assert_eq!(tree.files(), ["usr/bin/program", "usr/share/doc/text"]);
        // The root, usr, bin, share and doc; two KiB and one.
        assert_eq!(tree.installed_kib(), 5 + 3);
        assert!(tree.add("usr/bin/program", 0o755, b"").is_err());
    }

    #[test]
    fn compressed_files_are_reproducible_and_complete() {
        let dir = tempfile::tempdir().unwrap();
        let mut tree = Tree::new(&dir.path().join("tree")).unwrap();
        // More incompressible bytes than two pipes hold.
        let bytes: Vec<u8> =
            (0..200_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
        tree.add_compressed("one.gz", &bytes).unwrap();
        tree.add_compressed("other.gz", &bytes).unwrap();
        let [one, other] = ["one.gz", "other.gz"].map(|name| tree.root().join(name));
        assert_eq!(fs::read(&one).unwrap(), fs::read(other).unwrap());
        let unpacked = Command::new("gzip").arg("-dc").arg(one).output().unwrap();
        assert_eq!(unpacked.stdout, bytes);
    }
}
