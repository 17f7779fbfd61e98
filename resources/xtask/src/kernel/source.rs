//! The kernel's source: Debian's package, downloaded by apt, which checks its signature, unpacked and patched.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

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
        match fs::read_to_string(&mark) {
            Ok(found) if found == patched => return Ok(tree),
            Ok(found) if found == self.version => {}
            _ => self.replace(cache, &tree, &mark)?,
        }
        // After an interruption a partly patched tree must not have a mark.
        fs::remove_file(&mark).with_context(|| format!("remove {}", mark.display()))?;
        for patch in &patches.files {
            eprintln!("kernel: applying {}", patch.display());
            let text = File::open(patch).with_context(|| format!("open {}", patch.display()))?;
            run_aside(Command::new("patch").arg("-d").arg(&tree).args(["-p1", "--forward"]).stdin(text))?;
        }
        fs::write(&mark, patched).with_context(|| format!("write {}", mark.display()))?;
        Ok(tree)
    }

    /// Replaces the tree by Debian's unpatched tree.
    fn replace(&self, cache: &Path, tree: &Path, mark: &Path) -> anyhow::Result<()> {
        for folder in ["source", "objects", "objects-full"] {
            remove(&cache.join(folder))?;
        }
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

fn remove(folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_candidate_of_apt_cache_policy_is_parsed() {
        let policy = "linux-source-6.1:\n  Installed: (none)\n  Candidate: 6.1.192-2\n  Version table:\n";
        assert_eq!(candidate_in(policy).as_deref(), Some("6.1.192-2"));
        assert_eq!(candidate_in("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(candidate_in(""), None);
    }
}
