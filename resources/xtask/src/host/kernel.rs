//! L1's kernel: Debian's own, its package unpacked into the cache and never installed.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io};

use anyhow::{Context, ensure};

use crate::{apt, cache};

/// The meta package that names the kernel. The cloud flavour has no 9p.
const PACKAGE: &str = "linux-image-amd64";

/// Modules loaded before the snapshot, those that they need included: the machine's own devices, the root file
/// system, KVM, and what container engines use without loading it themselves. Everything else in the package can be
/// loaded with modprobe.
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

/// An unpacked kernel package, with the indexes that depmod makes.
pub struct Kernel {
    root: PathBuf,
    /// Such as `6.1.0-44-amd64`.
    pub release: String,
}

impl Kernel {
    /// The kernel in the cache, if there is one.
    pub fn cached() -> Option<Kernel> {
        let root = cache::dir("host").join("kernel");
        let release = fs::read_to_string(root.join("release")).ok()?;
        Some(Kernel { root, release })
    }

    /// Downloads and unpacks the kernel. The caller holds the cache's lock.
    pub fn fetch() -> anyhow::Result<Kernel> {
        let work = tempfile::tempdir_in(cache::dir("host")).context("create a folder for the kernel")?;
        let package = apt::download(PACKAGE, "linux-image-", work.path())?;
        let root = work.path().join("root");
        run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&root))?;
        if !root.join("lib").exists() {
            std::os::unix::fs::symlink("usr/lib", root.join("lib"))?;
        }
        let modules = root.join("lib/modules");
        let only =
            fs::read_dir(&modules)?.next().with_context(|| format!("{} is empty", modules.display()))??;
        let release = only.file_name().to_string_lossy().into_owned();
        run(Command::new("depmod").arg("-b").arg(&root).arg(&release))?;
        fs::write(root.join("release"), &release)?;
        let home = cache::dir("host").join("kernel");
        match fs::remove_dir_all(&home) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error)?,
            _ => fs::rename(&root, &home)?,
        }
        Ok(Kernel { root: home, release })
    }

    /// The image to boot.
    pub fn image(&self) -> PathBuf {
        self.root.join(format!("boot/vmlinuz-{}", self.release))
    }

    /// The folder with this release's modules.
    pub fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }

    /// The files of `names` and of what they need, each once, in an order in which they can be loaded.
    pub fn load_order(&self, names: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
        let mut order = Vec::new();
        let mut seen = HashSet::new();
        for name in names {
            let mut command = Command::new("modprobe");
            command.arg("-d").arg(&self.root).args(["-S", &self.release, "--show-depends", name]);
            let output = command.stderr(Stdio::inherit()).output().context("start modprobe")?;
            ensure!(output.status.success(), "modprobe knows no module {name} in {}", self.root.display());
            let text = String::from_utf8(output.stdout).context("modprobe's answer")?;
            order.extend(insmod_paths(&text).filter(|path| seen.insert(path.clone())));
        }
        Ok(order)
    }
}

/// The files in an answer of `modprobe --show-depends`: lines `insmod PATH [OPTION…]` or `builtin NAME`.
fn insmod_paths(text: &str) -> impl Iterator<Item = PathBuf> {
    text.lines().filter_map(|line| line.strip_prefix("insmod ")?.split_whitespace().next().map(PathBuf::from))
}

/// The module in `path` as the kernel takes it, unpacked if the package has it compressed.
pub fn read_module(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path.extension().is_some_and(|kind| kind == "xz") {
        let output = Command::new("xz").arg("-dc").arg(path).output().context("start xz")?;
        ensure!(output.status.success(), "xz -dc {}: {}", path.display(), output.status);
        return Ok(output.stdout);
    }
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// Runs `command`; its failure is an error that holds what it said.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, said.trim_end());
    Ok(())
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
