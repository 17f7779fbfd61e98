//! Patches of the kernel's source: `resources/kernel/patches/*.patch`, in the order of their names.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use sha2::{Digest, Sha256};

pub struct Patches {
    /// Paths in the order of application.
    pub files: Vec<PathBuf>,
    /// The diffs of all patches in that order, without the text above each diff.
    changes: String,
}

impl Patches {
    /// Reads the patches in `folder`.
    pub fn read(folder: &Path) -> anyhow::Result<Patches> {
        let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
        let mut files: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "patch"))
            .collect();
        files.sort();
        let mut changes = String::new();
        for file in &files {
            let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
            let start = text.find("\n--- ").with_context(|| format!("no diff in {}", file.display()))?;
            changes += &text[start..];
        }
        Ok(Patches { files, changes })
    }

    /// Returns a digest of the diffs: patches with equal digests give equal sources.
    pub fn digest(&self) -> String {
        Sha256::digest(&self.changes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_sorted_and_the_digest_covers_only_their_diffs() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path();
        let read = |files: &[(&str, &str)]| {
            for (name, text) in files {
                fs::write(folder.join(name), text).unwrap();
            }
            Patches::read(folder).unwrap()
        };
        let first = read(&[("b.patch", "why\n--- b\n"), ("a.patch", "why\n--- a\n"), ("README.md", "x")]);
        assert_eq!(first.files, [folder.join("a.patch"), folder.join("b.patch")]);
        assert_eq!(first.changes, "\n--- a\n\n--- b\n");
        assert_eq!(first.digest(), read(&[("b.patch", "because\n--- b\n"), ("README.md", "y")]).digest());
        assert_ne!(first.digest(), read(&[("b.patch", "why\n--- c\n")]).digest());
        fs::write(folder.join("c.patch"), "why\n").unwrap();
        assert!(Patches::read(folder).is_err());
    }
}
