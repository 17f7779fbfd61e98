//! The kernel's source: Debian's package, downloaded with apt (which checks its signature), unpacked and patched.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use super::patches::Patches;
use crate::apt;

/// Name of the package, whose version follows Debian's security updates.
pub const PACKAGE: &str = "linux-source-6.1";

/// Folders that no x86 build reads, a third of the tree; their Kconfig files stay.
const LEFT_OUT: &[&str] = &[
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
                candidate()?.with_context(|| format!("apt knows no package {PACKAGE}"))?
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
            _ => self.unpack_anew(cache, &tree, &mark)?,
        }
        // The mark must not exist in a partly patched tree after an interrupted run.
        fs::remove_file(&mark).with_context(|| format!("remove {}", mark.display()))?;
        for patch in &patches.files {
            eprintln!("kernel: applying {}", patch.display());
            let text = File::open(patch).with_context(|| format!("open {}", patch.display()))?;
            run(Command::new("patch").arg("-d").arg(&tree).args(["-p1", "--forward"]).stdin(text))?;
        }
        fs::write(&mark, patched)?;
        Ok(tree)
    }

    /// Replaces the tree by Debian's unpatched tree.
    fn unpack_anew(&self, cache: &Path, tree: &Path, mark: &Path) -> anyhow::Result<()> {
        for folder in ["source", "objects", "objects-full"] {
            remove(&cache.join(folder))?;
        }
        let package = self.download(cache)?;
        eprintln!("kernel: unpacking {PACKAGE} {}", self.version);
        fs::create_dir(tree).with_context(|| format!("create {}", tree.display()))?;
        let unpacked = cache.join("package");
        remove(&unpacked)?;
        run(Command::new("dpkg-deb").arg("-x").args([&package, &unpacked]))?;
        let archive = unpacked.join(format!("usr/src/{PACKAGE}.tar.xz"));
        let excludes = LEFT_OUT.iter().map(|pattern| format!("--exclude={pattern}"));
        run(Command::new("tar")
            .arg("-C")
            .arg(tree)
            .args(excludes)
            .args(["--strip-components=1", "-xf"])
            .arg(archive))?;
        remove(&unpacked)?;
        fs::write(mark, &self.version)?;
        Ok(())
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
        let fetch = || {
            // apt's own user may have no permission to write here. apt checks the file against the signed lists in any
            // case.
            let mut command = Command::new("apt-get");
            command.args(["-qq", "-o", "APT::Sandbox::User=root", "download"]);
            run(command.arg(format!("{PACKAGE}={}", self.version)).current_dir(&folder))
        };
        fetch().or_else(|_| apt::update().and_then(|()| fetch()))?;
        ensure!(package.is_file(), "apt-get download left no {}", package.display());
        Ok(package)
    }
}

fn candidate() -> anyhow::Result<Option<String>> {
    let output = Command::new("apt-cache").args(["policy", PACKAGE]).env("LC_ALL", "C").output();
    let output = output.context("start apt-cache (the kernel's source is a Debian package)")?;
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

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdout(std::io::stderr()).status().with_context(|| format!("start {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidate_is_the_version_that_would_be_installed() {
        let policy = "linux-source-6.1:\n  Installed: (none)\n  Candidate: 6.1.192-2\n  Version table:\n     6.1.192-2 500\n";
        assert_eq!(candidate_in(policy).as_deref(), Some("6.1.192-2"));
        assert_eq!(candidate_in("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(candidate_in(""), None);
    }
}
