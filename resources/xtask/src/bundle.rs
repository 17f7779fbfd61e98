//! Sample bundles, made on the spot from Debian's packages and kept in the cache.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::steps::{output, run, say};
use crate::{apt, cache};

/// The command of the sample bundle: what a first look at a container asks.
const LOOK_AROUND: &str = "uname -a; cat /etc/os-release; id; mount; ls /proc | wc -l";

/// Makes a bundle whose root file system is a minimal Debian, and returns its folder.
///
/// `program` writes the `config.json`; the command is [`LOOK_AROUND`].
pub fn debian(program: &Path) -> anyhow::Result<PathBuf> {
    let suite = apt::os_release("VERSION_CODENAME").context("/etc/os-release names no VERSION_CODENAME")?;
    let dir = cache::dir("bundles").join(format!("debian-{suite}"));
    let rootfs = dir.join("rootfs");
    if !dir.join("made").exists() {
        apt::install(&["debootstrap"])?;
        say(&format!("making a Debian {suite} root file system (debootstrap, about a minute)"));
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let log = dir.join("debootstrap.log");
        let out = fs::File::create(&log).with_context(|| format!("make {}", log.display()))?;
        run(Command::new("debootstrap")
            .args(["--variant=minbase", &suite])
            .arg(&rootfs)
            .arg(mirror()?)
            .stderr(out.try_clone().context("share the log")?)
            .stdout(out))
        .with_context(|| format!("make a root file system, see {}", log.display()))?;
        run(Command::new("chroot").arg(&rootfs).args(["apt-get", "clean"]))?;
        fs::write(dir.join("made"), "").context("mark the bundle as made")?;
    }
    configure(program, &dir, &["sh", "-c", LOOK_AROUND])?;
    Ok(dir)
}

/// Makes a bundle whose root file system is Debian's static busybox, and returns its folder.
pub fn busybox(program: &Path, args: &[&str]) -> anyhow::Result<PathBuf> {
    apt::install(&["busybox-static"])?;
    let dir = cache::dir("bundles").join("busybox");
    let bin = dir.join("rootfs/bin");
    if !dir.join("made").exists() {
        for part in ["bin", "dev", "etc", "proc", "sys", "tmp", "root"] {
            let path = dir.join("rootfs").join(part);
            fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        }
        fs::copy("/bin/busybox", bin.join("busybox")).context("copy /bin/busybox")?;
        for applet in output(Command::new("/bin/busybox").arg("--list"))?.lines().filter(|a| *a != "busybox")
        {
            let link = bin.join(applet);
            if !link.is_symlink() {
                symlink("busybox", &link).with_context(|| format!("link {}", link.display()))?;
            }
        }
        fs::write(dir.join("made"), "").context("mark the bundle as made")?;
    }
    configure(program, &dir, args)?;
    Ok(dir)
}

/// Writes `config.json`: what `vmm spec` writes, with `args` in place of a shell on a terminal.
fn configure(program: &Path, dir: &Path, args: &[&str]) -> anyhow::Result<()> {
    let path = dir.join("config.json");
    if path.exists() {
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    run(Command::new(program).args(["spec", "--bundle"]).arg(dir))?;
    let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let mut config: Value =
        serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(args);
    config["root"]["readonly"] = json!(false);
    fs::write(&path, serde_json::to_vec_pretty(&config).context("print config.json")?)
        .with_context(|| format!("write {}", path.display()))
}

/// The package source that this machine uses.
fn mirror() -> anyhow::Result<String> {
    let targets = output(Command::new("apt-get").args(["indextargets", "--format", "$(SITE)"]))?;
    match targets.lines().find(|site| site.ends_with("/debian") || site.ends_with("/debian/")) {
        Some(site) => Ok(site.to_owned()),
        None => bail!("no Debian package source is configured for apt"),
    }
}
