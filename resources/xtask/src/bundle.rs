//! Sample bundles, built from Debian's packages and cached.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::steps::{output, run, say};
use crate::{apt, cache};

/// Command of the sample bundle: prints information about the container.
const PRINT_SYSTEM: &str = "uname -a; cat /etc/os-release; id; mount; ls /proc | wc -l";

/// Creates a bundle whose root file system is a minimal Debian, and returns its folder.
///
/// `program` writes the `config.json`; the command is [`PRINT_SYSTEM`].
pub fn debian(program: &Path) -> anyhow::Result<PathBuf> {
    let dir = debootstrap("debian", &[])?;
    configure(program, &dir, &["sh", "-c", PRINT_SYSTEM])?;
    Ok(dir)
}

/// Programs in the containers of the engines' tests.
const PROGRAMS: [&str; 9] = [
    "dpkg-dev",
    "gcc",
    "iperf3",
    "libc6-dev",
    "nginx-light",
    "postgresql",
    "python3",
    "redis-server",
    "wget",
];

/// Container engines and an init system, which run in containers of the engines' tests.
const NESTED: [&str; 9] = [
    "busybox-static",
    "dbus",
    "docker.io",
    "iproute2",
    "iptables",
    "netavark",
    "podman",
    "systemd-sysv",
    "uidmap",
];

/// Languages and a browser, which run in containers of the engines' tests. Chromium's shell has no windows, and a fifth of the
/// browser's packages.
/// debootstrap does not find libc6-dev as rustc's virtual libc-dev.
const LANGUAGES: [&str; 5] =
    ["cargo", "chromium-headless-shell", "libc6-dev", "nodejs", "openjdk-17-jdk-headless"];

/// Creates an archive of a Debian with [`PROGRAMS`], and with one package in `/srv/packages` that is not installed.
pub fn programs() -> anyhow::Result<PathBuf> {
    archive("programs", &PROGRAMS, |rootfs| {
        let packages = rootfs.join("srv/packages");
        fs::create_dir_all(&packages).with_context(|| format!("create {}", packages.display()))?;
        apt::download_package("hello", &packages)
    })
}

/// Creates an archive of a Debian with [`NESTED`].
pub fn nested() -> anyhow::Result<PathBuf> {
    archive("nested", &NESTED, |_| Ok(()))
}

/// Creates an archive of a Debian with [`LANGUAGES`].
pub fn languages() -> anyhow::Result<PathBuf> {
    archive("languages", &LANGUAGES, |rootfs| {
        // Only a builder of Java runtimes reads these 75 MB.
        run(Command::new("find").arg(rootfs.join("usr/lib/jvm")).args(["-name", "*.jmod", "-delete"]))
    })
}

/// Creates an archive of a Debian with `packages` and what `add` writes to its root file system, once.
fn archive(
    name: &str,
    packages: &[&str],
    add: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let dir = debootstrap(name, packages)?;
    let archive = dir.join("rootfs.tar");
    if !archive.exists() {
        add(&dir.join("rootfs"))?;
        // Container images do not have these files.
        let remove = "rm -rf /usr/share/doc/* /usr/share/man/* /usr/share/locale/* /var/lib/apt/lists/*";
        run(Command::new("chroot").arg(dir.join("rootfs")).args(["sh", "-c", remove]))?;
        pack(&dir.join("rootfs"), &archive)?;
    }
    Ok(archive)
}

/// Packs a root file system atomically. A file server is much faster with one file than with ten thousand.
pub fn pack(rootfs: &Path, archive: &Path) -> anyhow::Result<()> {
    let fresh = archive.with_extension("new");
    run(Command::new("tar").arg("-C").arg(rootfs).arg("-cf").arg(&fresh).arg("."))?;
    fs::rename(&fresh, archive)
        .with_context(|| format!("rename {} to {}", fresh.display(), archive.display()))
}

/// Creates a minimal Debian with `packages` in the folder `rootfs` of the bundle `name`, once, and returns the bundle.
fn debootstrap(name: &str, packages: &[&str]) -> anyhow::Result<PathBuf> {
    let suite = apt::os_release("VERSION_CODENAME").context("no VERSION_CODENAME in /etc/os-release")?;
    let dir = cache::dir("bundles").join(format!("{name}-{suite}"));
    let rootfs = dir.join("rootfs");
    if dir.join("made").exists() {
        return Ok(dir);
    }
    apt::install(&["debootstrap"])?;
    say(&format!(
        "creating a Debian {suite} root file system with debootstrap, which takes a minute or more"
    ));
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let log = dir.join("debootstrap.log");
    let out = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let mut command = Command::new("debootstrap");
    command.arg("--variant=minbase");
    if !packages.is_empty() {
        command.arg(format!("--include={}", packages.join(",")));
    }
    command.arg(&suite).arg(&rootfs).arg(mirror()?);
    run(command.stderr(out.try_clone().context("duplicate the log's descriptor")?).stdout(out))
        .with_context(|| format!("create a root file system (log: {})", log.display()))?;
    run(Command::new("chroot").arg(&rootfs).args(["apt-get", "clean"]))?;
    fs::write(dir.join("made"), "").with_context(|| format!("mark {} as complete", dir.display()))?;
    Ok(dir)
}

/// Creates a bundle whose root file system is Debian's static busybox, and returns its folder.
pub fn busybox(program: &Path, args: &[&str]) -> anyhow::Result<PathBuf> {
    apt::install(&["busybox-static"])?;
    let dir = cache::dir("bundles").join("busybox");
    let bin = dir.join("rootfs/bin");
    if !dir.join("made").exists() {
        for folder in ["bin", "dev", "etc", "proc", "sys", "tmp", "root"] {
            let path = dir.join("rootfs").join(folder);
            fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        }
        fs::copy("/bin/busybox", bin.join("busybox")).context("copy /bin/busybox")?;
        for applet in output(Command::new("/bin/busybox").arg("--list"))?.lines().filter(|a| *a != "busybox")
        {
            let link = bin.join(applet);
            if !link.is_symlink() {
                symlink("busybox", &link).with_context(|| format!("link {}", link.display()))?;
            }
        }
        fs::write(dir.join("made"), "").with_context(|| format!("mark {} as complete", dir.display()))?;
    }
    configure(program, &dir, args)?;
    Ok(dir)
}

/// Writes `config.json`: that of `vmm spec`, with `args` instead of a shell on a terminal.
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
    fs::write(&path, serde_json::to_vec_pretty(&config).context("serialize config.json")?)
        .with_context(|| format!("write {}", path.display()))
}

/// Returns the address of this machine's Debian archive.
fn mirror() -> anyhow::Result<String> {
    let targets = output(Command::new("apt-get").args(["indextargets", "--format", "$(SITE)"]))?;
    match targets.lines().find(|site| site.ends_with("/debian") || site.ends_with("/debian/")) {
        Some(site) => Ok(site.to_owned()),
        None => bail!("no Debian archive in apt's sources"),
    }
}
