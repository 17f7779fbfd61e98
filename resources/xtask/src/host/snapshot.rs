//! Snapshots of a booted L1 in the cache: a file with its memory, and one with the rest of its state.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow, bail, ensure};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::kernel::{Kernel, MODULES, read_module};
use super::machine::{Backends, MONITOR, Machine};
use super::monitor::Monitor;
use super::qemu::{Qemu, Sockets};
use super::request::{Line, Lines};
use crate::newc;
use crate::steps::{output, say};
use crate::{apt, cache};

/// Names and contents of the source files of L1's PID 1.
const INIT_SOURCES: [(&str, &str); 4] = [
    ("init.h", include_str!("../../../../tests/host/init.h")),
    ("init.c", include_str!("../../../../tests/host/init.c")),
    ("machine.c", include_str!("../../../../tests/host/machine.c")),
    ("command.c", include_str!("../../../../tests/host/command.c")),
];

/// Minimum version of QEMU. Earlier versions cannot migrate to a `file:` URI.
const QEMU_MAJOR: u32 = 10;

/// A snapshot that was not used for this time is removed when another one is created.
const UNUSED_MAX: Duration = Duration::from_secs(3 * 24 * 3600);

/// Timeout of L1's boot, which takes about five seconds on an idle machine.
const BOOT_MAX: Duration = Duration::from_secs(120);

/// Number of attempts to boot L1.
const ATTEMPTS: u32 = 3;

/// Prefix of the folder of a snapshot that is being created.
const UNFINISHED: &str = "making-";

/// A snapshot: a folder in the cache.
pub struct Snapshot {
    folder: PathBuf,
    /// L1's kernel.
    pub kernel: Kernel,
}

impl Snapshot {
    /// Returns the snapshot of `machine`. Creates it if it is not cached; concurrent processes wait for each other.
    pub fn get(machine: &Machine) -> anyhow::Result<Snapshot> {
        let home = cache::dir("host");
        if let Some(snapshot) = Self::find(&home, machine) {
            return Ok(snapshot);
        }
        let path = home.join("lock");
        let lock = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        lock.lock().with_context(|| format!("lock {}", path.display()))?;
        if let Some(snapshot) = Self::find(&home, machine) {
            return Ok(snapshot);
        }
        install_tools()?;
        let kernel = match Kernel::cached() {
            Some(kernel) => kernel,
            None => {
                say("unpacking the kernel of the emulated KVM host");
                Kernel::fetch()?
            }
        };
        prune(&home).with_context(|| format!("remove old snapshots in {}", home.display()))?;
        say("booting the emulated KVM host for its snapshot");
        let work = Self::create(&home, machine, &kernel)?;
        let folder = home.join(name(&key(machine, &kernel)?));
        fs::rename(work.path(), &folder).with_context(|| format!("rename to {}", folder.display()))?;
        Ok(Snapshot { folder, kernel })
    }

    /// Boots the machine in a temporary folder below `home` and saves it there. Repeats the boot after a failure.
    fn create(home: &Path, machine: &Machine, kernel: &Kernel) -> anyhow::Result<TempDir> {
        let mut attempt = 1;
        loop {
            let work = tempfile::Builder::new()
                .prefix(UNFINISHED)
                .tempdir_in(home)
                .with_context(|| format!("create a folder in {}", home.display()))?;
            match save(machine, kernel, work.path()).context("create a snapshot of the emulated KVM host") {
                Ok(()) => return Ok(work),
                Err(error) if attempt == ATTEMPTS => return Err(error),
                Err(error) => eprintln!("xtask: attempt {attempt} of {ATTEMPTS}: {error:#}"),
            }
            attempt += 1;
        }
    }

    fn find(home: &Path, machine: &Machine) -> Option<Snapshot> {
        let kernel = Kernel::cached()?;
        let folder = home.join(name(&key(machine, &kernel).ok()?));
        let used = File::open(&folder).ok()?;
        // The folder's time is that of its last use. After a failure the snapshot is removed early.
        let _ = used.set_modified(SystemTime::now());
        Some(Snapshot { folder, kernel })
    }

    /// Returns QEMU's arguments for restoring `machine`, with a private copy of its memory.
    pub fn arguments(&self, machine: &Machine, sockets: &str, outs: &[PathBuf]) -> Vec<OsString> {
        let mut arguments = machine.arguments(&Backends {
            kernel: &self.kernel.image(),
            initramfs: &self.folder.join("initramfs"),
            ram: &self.folder.join("ram"),
            keep_ram: false,
            sockets,
            outs,
            empty: &self.folder.join("empty"),
        });
        arguments.extend(["-incoming".into(), "defer".into()]);
        arguments
    }

    /// Returns the path of the file with the state of devices and CPUs.
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Removes a snapshot that cannot be restored, so that the next run creates another. Runs that use it continue.
    pub fn discard(&self) {
        // A snapshot that cannot be removed is used again, and its next failure is reported.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn name(key: &str) -> String {
    format!("snapshot-{key}")
}

/// Returns a hash of everything that affects the snapshot.
fn key(machine: &Machine, kernel: &Kernel) -> anyhow::Result<String> {
    let qemu = find_program("qemu-system-x86_64").context("no qemu-system-x86_64 in $PATH")?;
    let meta = fs::metadata(&qemu).with_context(|| format!("read the metadata of {}", qemu.display()))?;
    let mut hash = Sha256::new();
    hash.update(format!("{} {} {}\n", qemu.display(), meta.len(), meta.mtime_nsec() + meta.mtime()));
    // L1 has calibrated its clock with this machine's time stamp counter.
    hash.update(processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()));
    hash.update(format!("{} {MODULES:?}\n{:?}\n", kernel.release, machine.shape()));
    INIT_SOURCES.iter().for_each(|(_, text)| hash.update(text));
    Ok(hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Returns the model and the rounded speed of the first processor in `text`, the content of /proc/cpuinfo.
fn processor(text: &str) -> String {
    let field = |name| text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
    let speed: f64 = field("bogomips").and_then(|value| value.trim().parse().ok()).unwrap_or_default();
    format!("{} {}", field("model name").unwrap_or_default().trim(), (speed / 100.0).round())
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Installs the packages for creating and running the machine.
fn install_tools() -> anyhow::Result<()> {
    apt::install(&["gcc", "libc6-dev", "kmod", "xz-utils", "util-linux"])?;
    if qemu_major() < Some(QEMU_MAJOR) {
        match apt::os_release("VERSION_CODENAME").as_deref() {
            Some("bookworm") => apt::install_from("bookworm-backports", &["qemu-system-x86"])?,
            _ => apt::install(&["qemu-system-x86"])?,
        }
    }
    let major = qemu_major().context("read the version of qemu-system-x86_64")?;
    ensure!(
        major >= QEMU_MAJOR,
        "QEMU {major} is too old: the emulated KVM host needs {QEMU_MAJOR} or later"
    );
    Ok(())
}

fn qemu_major() -> Option<u32> {
    let output = Command::new("qemu-system-x86_64").arg("--version").output().ok()?;
    parse_qemu_major(&String::from_utf8_lossy(&output.stdout))
}

fn parse_qemu_major(text: &str) -> Option<u32> {
    text.strip_prefix("QEMU emulator version ")?.split('.').next()?.parse().ok()
}

/// Removes unused snapshots, and the folders of processes that were killed while they created one.
fn prune(home: &Path) -> io::Result<()> {
    for entry in fs::read_dir(home)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let unused = entry.metadata()?.modified()?.elapsed().is_ok_and(|age| age > UNUSED_MAX);
        if name.starts_with(UNFINISHED) || (name.starts_with("snapshot-") && unused) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Boots `machine` and saves it in `folder`.
fn save(machine: &Machine, kernel: &Kernel, folder: &Path) -> anyhow::Result<()> {
    let (initramfs, ram, empty) = (folder.join("initramfs"), folder.join("ram"), folder.join("empty"));
    fs::create_dir(&empty).with_context(|| format!("create {}", empty.display()))?;
    fs::write(&initramfs, build_initramfs(kernel, folder)?)
        .with_context(|| format!("write {}", initramfs.display()))?;
    let mut sockets = Sockets::bind()?;
    let prefix = sockets.prefix.clone();
    let image = kernel.image();
    let backends = Backends {
        kernel: &image,
        initramfs: &initramfs,
        ram: &ram,
        keep_ram: true,
        sockets: &prefix,
        outs: &[],
        empty: &empty,
    };
    let mut qemu = Qemu::start(&machine.arguments(&backends), &sockets)?;
    let control = sockets.take("control").accept().context("wait for QEMU's control port")?.0;
    let monitor = sockets.take(MONITOR).accept().context("wait for QEMU's monitor")?.0;
    let saved = wait_ready(control).and_then(|_control| Monitor::open(monitor)?.save(&folder.join("state")));
    saved.map_err(|error| anyhow!("{error:#}; log of the machine:\n{}", qemu.log().trim()))?;
    qemu.wait()
}

/// Builds PID 1 and returns an initramfs with it and the modules that it loads.
fn build_initramfs(kernel: &Kernel, folder: &Path) -> anyhow::Result<Vec<u8>> {
    let work = tempfile::tempdir_in(folder).context("create a folder for building PID 1")?;
    for (name, text) in INIT_SOURCES {
        fs::write(work.path().join(name), text).with_context(|| format!("write {name}"))?;
    }
    let program = work.path().join("init");
    let sources = INIT_SOURCES.iter().map(|(name, _)| *name).filter(|name| name.ends_with(".c"));
    let mut cc = Command::new("cc");
    cc.current_dir(work.path()).args(["-static", "-O2", "-s", "-o"]).arg(&program).args(sources);
    output(&mut cc).context("build PID 1 from tests/host/init.c")?;
    let mut archive = Vec::new();
    newc::append(&mut archive, "init", 0o100755, &fs::read(&program).context("read PID 1")?);
    for folder in ["dev", "modules"] {
        newc::append(&mut archive, folder, 0o040755, &[]);
    }
    for (index, path) in kernel.load_order(MODULES)?.iter().enumerate() {
        newc::append(&mut archive, &format!("modules/{index:03}.ko"), 0o100644, &read_module(path)?);
    }
    newc::finish(&mut archive);
    Ok(archive)
}

/// Waits until PID 1 is ready for a request. Returns the connection, which must stay open as long as the machine runs.
fn wait_ready(mut control: UnixStream) -> anyhow::Result<UnixStream> {
    control.set_read_timeout(Some(BOOT_MAX)).context("set the control port's timeout")?;
    let mut lines = Lines::default();
    let mut chunk = [0; 512];
    loop {
        match control.read(&mut chunk).context("wait for the machine to boot")? {
            0 => bail!("the machine ended during its boot"),
            length => lines.push(&chunk[..length]),
        }
        while let Some(line) = lines.next() {
            match line {
                Ok(Line::Ready) => return Ok(control),
                Ok(Line::Beat) => {}
                other => bail!("unexpected line of the machine during its boot: {other:?}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_of_qemu_is_parsed() {
        assert_eq!(parse_qemu_major("QEMU emulator version 10.0.2 (Debian 1:10.0.2)\n"), Some(10));
        assert_eq!(parse_qemu_major("something else"), None);
    }

    #[test]
    fn a_processor_is_its_model_and_speed() {
        let text =
            "processor\t: 0\nmodel name\t: Some CPU\nflags : x\nbogomips\t: 4199.98\n\nmodel name\t: Other\n";
        assert_eq!(processor(text), "Some CPU 42");
        assert_eq!(processor(""), " 0");
    }

    #[test]
    fn unused_and_unfinished_snapshots_are_removed() {
        let home = tempfile::tempdir().unwrap();
        for name in ["snapshot-old", "snapshot-new", "making-x", "kernel"] {
            fs::create_dir(home.path().join(name)).unwrap();
        }
        let old = File::open(home.path().join("snapshot-old")).unwrap();
        old.set_modified(SystemTime::now() - UNUSED_MAX - Duration::from_secs(60)).unwrap();
        prune(home.path()).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["kernel", "snapshot-new"]);
    }
}
