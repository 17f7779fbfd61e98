//! The kernel's source: Debian's package, downloaded by apt, which checks its signature, unpacked and patched.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, ensure};

use super::patches::Patches;
use crate::apt;
use crate::steps::run_aside;

/// Name of the package. Its version changes with Debian's security updates.
pub const PACKAGE: &str = "linux-source-6.1";

/// Files that no x86 build reads, a third of the tree. Their Kconfig files are unpacked.
const EXCLUDED: &[&str] = &[
    "*/drivers/gpu/drm/amd/include/*.h",
    "*/drivers/gpu/drm/amd/include/asic_reg",
    "*/tools/testing",
    "*/sound/soc/*.c",
];

/// A version of the package.
pub struct Source {
    /// Debian's version, such as `6.1.192-2`.
    pub version: String,
}

impl Source {
    /// Returns the newest version in apt's lists. Refreshes the lists if they do not contain the package.
    pub fn newest() -> anyhow::Result<Source> {
        let version = match candidate()? {
            Some(version) => version,
            None => {
                apt::update()?;
                candidate()?.with_context(|| format!("no package {PACKAGE} in apt's lists"))?
            }
        };
        Ok(Source { version })
    }

    /// Returns the folder of the patched tree, below `cache`. Downloads and unpacks it if necessary.
    pub fn unpack(&self, cache: &Path, patches: &Patches) -> anyhow::Result<PathBuf> {
        let tree = cache.join("source");
        let mark = tree.join(".version");
        let patched = format!("{} {}", self.version, patches.digest());
        let before = fs::read_to_string(&mark).unwrap_or_default();
        if before == patched {
            return Ok(tree);
        }
        // The tree with other patches, whose objects are still good for every file that stays as it was.
        let other = before.strip_prefix(&format!("{} ", self.version)).map(|_| cache.join("source-before"));
        if let Some(other) = &other {
            remove(other)?;
            fs::rename(&tree, other).with_context(|| format!("rename {}", tree.display()))?;
        }
        if before != self.version {
            if other.is_none() {
                remove_all(cache)?;
            }
            self.unpack_original(cache, &tree, &mark)?;
        }
        // After an interruption a partly patched tree must not have a mark.
        fs::remove_file(&mark).with_context(|| format!("remove {}", mark.display()))?;
        for patch in &patches.files {
            eprintln!("kernel: applying {}", patch.display());
            let text = File::open(patch).with_context(|| format!("open {}", patch.display()))?;
            run_aside(Command::new("patch").arg("-d").arg(&tree).args(["-p1", "--forward"]).stdin(text))?;
        }
        if let Some(other) = other {
            keep_times(&tree, &other)?;
            remove(&other)?;
        }
        fs::write(&mark, patched).with_context(|| format!("write {}", mark.display()))?;
        Ok(tree)
    }

    /// Unpacks Debian's tree.
    fn unpack_original(&self, cache: &Path, tree: &Path, mark: &Path) -> anyhow::Result<()> {
        let package = self.download(cache)?;
        eprintln!("kernel: unpacking {PACKAGE} {}", self.version);
        fs::create_dir(tree).with_context(|| format!("create {}", tree.display()))?;
        let unpacked = cache.join("package");
        remove(&unpacked)?;
        run_aside(Command::new("dpkg-deb").arg("-x").args([&package, &unpacked]))?;
        let archive = unpacked.join(format!("usr/src/{PACKAGE}.tar.xz"));
        let excludes = EXCLUDED.iter().map(|pattern| format!("--exclude={pattern}"));
        run_aside(
            Command::new("tar")
                .arg("-C")
                .arg(tree)
                .args(excludes)
                .args(["--strip-components=1", "-xf"])
                .arg(archive),
        )?;
        remove(&unpacked)?;
        fs::write(mark, &self.version).with_context(|| format!("write {}", mark.display()))
    }

    /// Returns the package's file below `cache`. Removes earlier versions.
    fn download(&self, cache: &Path) -> anyhow::Result<PathBuf> {
        let folder = cache.join("download");
        let package = folder.join(format!("{PACKAGE}_{}_all.deb", self.version.replace(':', "%3a")));
        if package.is_file() {
            return Ok(package);
        }
        remove(&folder)?;
        fs::create_dir(&folder).with_context(|| format!("create {}", folder.display()))?;
        eprintln!("kernel: downloading {PACKAGE} {}", self.version);
        apt::download_package(&format!("{PACKAGE}={}", self.version), &folder)?;
        ensure!(package.is_file(), "apt-get download {PACKAGE} did not write {}", package.display());
        Ok(package)
    }
}

/// Gives the files of `tree` times by which `make` compiles those that differ from the tree `other` and no more: its times
/// to files with the same contents, and the present time to the rest.
fn keep_times(tree: &Path, other: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(other).with_context(|| format!("list {}", other.display()))? {
        let entry = entry.with_context(|| format!("list {}", other.display()))?;
        let (old, new) = (entry.path(), tree.join(entry.file_name()));
        let kind = entry.file_type().with_context(|| format!("look at {}", old.display()))?;
        if kind.is_dir() && new.is_dir() {
            keep_times(&new, &old)?;
        } else if kind.is_file() && new.is_file() {
            keep_time(&new, &old).with_context(|| format!("set the time of {}", new.display()))?;
        }
    }
    Ok(())
}

fn keep_time(new: &Path, old: &Path) -> io::Result<()> {
    let [before, now] = [fs::metadata(old)?.modified()?, fs::metadata(new)?.modified()?];
    // Patches change a file's time.
    if before == now {
        return Ok(());
    }
    let time = if fs::read(new)? == fs::read(old)? { before } else { SystemTime::now() };
    File::options().write(true).open(new)?.set_modified(time)
}

/// Returns the version of the package in apt's lists.
fn candidate() -> anyhow::Result<Option<String>> {
    let output = Command::new("apt-cache").args(["policy", PACKAGE]).env("LC_ALL", "C").output();
    let output = output.context("start apt-cache, which finds the kernel's source package")?;
    Ok(candidate_in(&String::from_utf8_lossy(&output.stdout)))
}

/// Returns the version that `apt-cache policy` would install.
fn candidate_in(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_string())
}

/// Removes the tree and the objects of another version.
fn remove_all(cache: &Path) -> anyhow::Result<()> {
    ["source", "source-before", "objects", "objects-full"]
        .iter()
        .try_for_each(|name| remove(&cache.join(name)))
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn files_with_the_same_contents_keep_their_times() {
        let folder = tempfile::tempdir().unwrap();
        let [new, old] = ["new", "old"].map(|name| folder.path().join(name));
        for (tree, changed) in [(&new, "1"), (&old, "2")] {
            fs::create_dir_all(tree.join("deep")).unwrap();
            fs::write(tree.join("deep/same"), "").unwrap();
            fs::write(tree.join("changed"), changed).unwrap();
        }
        fs::write(new.join("added"), "").unwrap();
        let set = |tree: &Path, name: &str, seconds: u64| {
            let file = File::options().write(true).open(tree.join(name)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        };
        set(&old, "deep/same", 1000);
        set(&old, "changed", 1000);
        // The tree without the patch that changed it, with the time that it has in the archive.
        set(&new, "changed", 500);
        keep_times(&new, &old).unwrap();
        let time = |name: &str| fs::metadata(new.join(name)).unwrap().modified().unwrap();
        let past = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        assert_eq!(time("deep/same"), past);
        assert!(time("changed") > past && time("added") > past);
    }

    #[test]
    fn the_candidate_of_apt_cache_policy_is_parsed() {
        let policy = "linux-source-6.1:\n  Installed: (none)\n  Candidate: 6.1.192-2\n  Version table:\n";
        assert_eq!(candidate_in(policy).as_deref(), Some("6.1.192-2"));
        assert_eq!(candidate_in("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(candidate_in(""), None);
    }
}
