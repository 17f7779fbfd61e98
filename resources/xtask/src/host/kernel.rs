//! L1's kernel: Debian's package, unpacked into the cache and not installed.

use std::collections::HashSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use anyhow::{Context, ensure};

use crate::steps::output;
use crate::{apt, cache};

/// Meta package that depends on the kernel. Debian's cloud kernel has no 9p.
const PACKAGE: &str = "linux-image-amd64";

/// Modules that are loaded before the snapshot, with their dependencies: for the machine's devices, the root file
/// system and KVM, and those that container engines use and do not load. Commands can load other modules of the package
/// with modprobe.
pub const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
    "kvm_amd",
    "tun",
    "vhost_net",
    "vhost_vsock",
    "loop",
    "ext4",
    "squashfs",
    "erofs",
    "fuse",
    "virtiofs",
    "bridge",
    "br_netfilter",
    "veth",
    "nf_tables",
    "nft_compat",
    "nft_chain_nat",
    "xt_MASQUERADE",
    "xt_conntrack",
    "xt_addrtype",
    "xt_comment",
    "ip_tables",
    "iptable_nat",
    "iptable_filter",
];

/// An unpacked kernel package with depmod's indexes.
pub struct Kernel {
    root: PathBuf,
    /// Release as `uname -r` prints it, such as `6.1.0-44-amd64`.
    pub release: String,
}

impl Kernel {
    /// Returns the kernel in the cache.
    pub fn cached() -> Option<Kernel> {
        let root = cache::dir("host").join("kernel");
        let release = fs::read_to_string(root.join("release")).ok()?;
        Some(Kernel { root, release })
    }

    /// Downloads and unpacks the kernel, and replaces the one in the cache. The caller holds the cache's lock.
    pub fn fetch() -> anyhow::Result<Kernel> {
        let work =
            tempfile::tempdir_in(cache::dir("host")).context("create a folder for the kernel package")?;
        let package = apt::download(PACKAGE, "linux-image-", work.path())?;
        let root = work.path().join("root");
        output(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&root))?;
        if !root.join("lib").exists() {
            symlink("usr/lib", root.join("lib")).context("link lib of the kernel package")?;
        }
        let release = release_in(&root.join("lib/modules"))?;
        output(Command::new("depmod").arg("-b").arg(&root).arg(&release))?;
        fs::write(root.join("release"), &release).context("write the kernel's release")?;
        let home = cache::dir("host").join("kernel");
        match fs::remove_dir_all(&home) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::rename(&root, &home),
        }
        .with_context(|| format!("replace {}", home.display()))?;
        Ok(Kernel { root: home, release })
    }

    /// Returns the path of the bzImage.
    pub fn image(&self) -> PathBuf {
        self.root.join(format!("boot/vmlinuz-{}", self.release))
    }

    /// Returns the folder of the modules.
    pub fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }

    /// Returns the files of the modules `names` and of their dependencies in loading order, without duplicates.
    pub fn load_order(&self, names: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
        let mut order = Vec::new();
        let mut seen = HashSet::new();
        for name in names {
            let mut command = Command::new("modprobe");
            command.arg("-d").arg(&self.root).args(["-S", &self.release, "--show-depends", name]);
            let text = output(&mut command)?;
            order.extend(insmod_paths(&text).filter(|path| seen.insert(path.clone())));
        }
        Ok(order)
    }
}

/// Returns the release of the only kernel with modules in `folder`.
fn release_in(folder: &Path) -> anyhow::Result<String> {
    let read = || fs::read_dir(folder)?.next().transpose();
    let entry = read().with_context(|| format!("list {}", folder.display()))?;
    let entry = entry.with_context(|| format!("no modules in {}", folder.display()))?;
    Ok(entry.file_name().to_string_lossy().into_owned())
}

/// Parses the output of `modprobe --show-depends`: lines `insmod PATH [OPTION…]` or `builtin NAME`. Returns the paths.
fn insmod_paths(text: &str) -> impl Iterator<Item = PathBuf> {
    text.lines().filter_map(|line| line.strip_prefix("insmod ")?.split_whitespace().next().map(PathBuf::from))
}

/// Reads the module in `path`. Decompresses it: PID 1 gives it to the kernel as it is.
pub fn read_module(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path.extension().is_some_and(|kind| kind == "xz") {
        let output = Command::new("xz").arg("-dc").arg(path).output().context("start xz")?;
        ensure!(output.status.success(), "xz -dc {}: {}", path.display(), output.status);
        return Ok(output.stdout);
    }
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builtin_modules_have_no_file() {
        let text = "insmod /x/lib/a.ko \nbuiltin b\ninsmod /x/lib/c.ko.xz option=1\n";
        let paths: Vec<PathBuf> = insmod_paths(text).collect();
        assert_eq!(paths, [PathBuf::from("/x/lib/a.ko"), PathBuf::from("/x/lib/c.ko.xz")]);
    }
}
