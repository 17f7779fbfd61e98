//! The snapshot of a booted L1: its memory in one file, the rest of its state in another.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::kernel::{self, Kernel, MODULES};
use super::machine::{MONITOR, Machine, Place};
use super::monitor::Monitor;
use super::qemu::{Qemu, Sockets};
use super::request::{Line, Lines};
use crate::newc;
use crate::steps::output;
use crate::{apt, cache};

/// The program that is L1's PID 1, as file names and contents.
const INIT_SOURCES: [(&str, &str); 4] = [
    ("init.h", include_str!("../../../../tests/host/init.h")),
    ("init.c", include_str!("../../../../tests/host/init.c")),
    ("machine.c", include_str!("../../../../tests/host/machine.c")),
    ("command.c", include_str!("../../../../tests/host/command.c")),
];

/// The oldest QEMU that works: earlier ones lack `file:` as a place for a snapshot.
const QEMU_MAJOR: u32 = 10;

/// A snapshot that nobody used for this long is removed when the next one is made.
const UNUSED_MAX: Duration = Duration::from_secs(3 * 24 * 3600);

/// How long L1 may take to boot. It takes some five seconds, and may have to share the machine.
const BOOT_MAX: Duration = Duration::from_secs(120);

/// How often it is booted before its failure is taken for one that will come again.
const ATTEMPTS: u32 = 3;

/// A folder in the cache that holds a booted machine.
pub struct Snapshot {
    folder: PathBuf,
    /// The machine's kernel.
    pub kernel: Kernel,
}

impl Snapshot {
    /// The snapshot of `machine`, made if it is not there. One process makes it, others wait for that.
    pub fn get(machine: &Machine) -> anyhow::Result<Snapshot> {
        let home = cache::dir("host");
        if let Some(snapshot) = Self::find(&home, machine) {
            return Ok(snapshot);
        }
        let lock = File::create(home.join("lock")).context("open the cache's lock")?;
        lock.lock().context("lock the cache")?;
        if let Some(snapshot) = Self::find(&home, machine) {
            return Ok(snapshot);
        }
        set_up()?;
        let kernel = match Kernel::cached() {
            Some(kernel) => kernel,
            None => {
                eprintln!("xtask: unpacking the emulated host's kernel");
                Kernel::fetch()?
            }
        };
        prune(&home)?;
        eprintln!("xtask: booting the emulated host for its snapshot");
        let work = Self::make(&home, machine, &kernel)?;
        let folder = home.join(name(&key(machine, &kernel)?));
        fs::rename(work.path(), &folder).context("name the snapshot")?;
        Ok(Snapshot { folder, kernel })
    }

    /// Boots the machine in a folder of its own below `home` and saves it there; a machine that ends or stalls by itself is
    /// booted again, and each time is told.
    fn make(home: &Path, machine: &Machine, kernel: &Kernel) -> anyhow::Result<TempDir> {
        let mut attempt = 1;
        loop {
            let work =
                tempfile::Builder::new().prefix("making-").tempdir_in(home).context("create a snapshot")?;
            match make(machine, kernel, work.path()).context("make the emulated host's snapshot") {
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
        // The folder's own time says when it was last used; a failure only lets it be removed early.
        let _ = used.set_modified(SystemTime::now());
        Some(Snapshot { folder, kernel })
    }

    /// QEMU's arguments for this machine, to be restored, with a private copy of its memory.
    pub fn arguments(&self, machine: &Machine, sockets: &str, outs: &[PathBuf]) -> Vec<OsString> {
        let mut arguments = machine.arguments(&Place {
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

    /// The file with the machine's state.
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Removes a snapshot that does not start, so that the next run makes it anew. Runs that use it are not disturbed.
    pub fn discard(&self) {
        // What cannot be removed is found again, and fails again with its own message.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn name(key: &str) -> String {
    format!("snapshot-{key}")
}

/// Names everything that shapes the snapshot.
fn key(machine: &Machine, kernel: &Kernel) -> anyhow::Result<String> {
    let qemu = find_program("qemu-system-x86_64").context("no qemu-system-x86_64")?;
    let meta = fs::metadata(&qemu).with_context(|| format!("look at {}", qemu.display()))?;
    let path = Path::new("/");
    let place = Place {
        kernel: path,
        initramfs: path,
        ram: path,
        keep_ram: false,
        sockets: "",
        outs: &[],
        empty: path,
    };
    let mut hash = Sha256::new();
    hash.update(format!("{} {} {}\n", qemu.display(), meta.len(), meta.mtime_nsec() + meta.mtime()));
    // L1's clock is calibrated against this machine's time stamp counter.
    hash.update(processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()));
    hash.update(format!("{} {MODULES:?}\n{:?}\n", kernel.release, machine.arguments(&place)));
    INIT_SOURCES.iter().for_each(|(_, text)| hash.update(text));
    Ok(hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The model and the rounded speed of the first processor in /proc/cpuinfo's `text`.
fn processor(text: &str) -> String {
    let field = |name| text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
    let speed: f64 = field("bogomips").and_then(|value| value.trim().parse().ok()).unwrap_or_default();
    format!("{} {}", field("model name").unwrap_or_default().trim(), (speed / 100.0).round())
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Installs what making and running the machine takes.
fn set_up() -> anyhow::Result<()> {
    apt::install(&["gcc", "libc6-dev", "kmod", "xz-utils", "util-linux"])?;
    if qemu_major() < Some(QEMU_MAJOR) {
        match apt::os_release("VERSION_CODENAME").as_deref() {
            Some("bookworm") => apt::install_from("bookworm-backports", &["qemu-system-x86"])?,
            _ => apt::install(&["qemu-system-x86"])?,
        }
    }
    let found = qemu_major();
    ensure!(found >= Some(QEMU_MAJOR), "the emulated host needs QEMU {QEMU_MAJOR} or later, found {found:?}");
    Ok(())
}

fn qemu_major() -> Option<u32> {
    let output = Command::new("qemu-system-x86_64").arg("--version").output().ok()?;
    parse_qemu_major(&String::from_utf8_lossy(&output.stdout))
}

fn parse_qemu_major(text: &str) -> Option<u32> {
    text.strip_prefix("QEMU emulator version ")?.split('.').next()?.parse().ok()
}

/// Removes snapshots out of use and what was left by a process that was killed while it made one.
fn prune(home: &Path) -> io::Result<()> {
    for entry in fs::read_dir(home)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let unused = entry.metadata()?.modified()?.elapsed().is_ok_and(|age| age > UNUSED_MAX);
        if name.starts_with("making-") || (name.starts_with("snapshot-") && unused) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Boots `machine` and saves it into `folder`.
fn make(machine: &Machine, kernel: &Kernel, folder: &Path) -> anyhow::Result<()> {
    let (initramfs, ram, empty) = (folder.join("initramfs"), folder.join("ram"), folder.join("empty"));
    fs::create_dir(&empty)?;
    fs::write(&initramfs, build_initramfs(kernel, folder)?)?;
    let mut sockets = Sockets::bind()?;
    let prefix = sockets.prefix.clone();
    let image = kernel.image();
    let place = Place {
        kernel: &image,
        initramfs: &initramfs,
        ram: &ram,
        keep_ram: true,
        sockets: &prefix,
        outs: &[],
        empty: &empty,
    };
    let mut qemu = Qemu::start(&machine.arguments(&place), &sockets)?;
    let control = sockets.take("control").accept().context("wait for QEMU")?.0;
    let monitor = sockets.take(MONITOR).accept().context("wait for QEMU")?.0;
    let saved = wait_ready(control).and_then(|_control| Monitor::open(monitor)?.save(&folder.join("state")));
    saved.with_context(|| format!("the machine said: {}", qemu.log().trim()))?;
    qemu.wait()
}

/// PID 1, built here, and the modules it loads; no shell, no other program.
fn build_initramfs(kernel: &Kernel, folder: &Path) -> anyhow::Result<Vec<u8>> {
    let work = tempfile::tempdir_in(folder).context("create a folder for PID 1")?;
    for (name, text) in INIT_SOURCES {
        fs::write(work.path().join(name), text).with_context(|| format!("write {name}"))?;
    }
    let program = work.path().join("init");
    let sources = INIT_SOURCES.iter().map(|(name, _)| *name).filter(|name| name.ends_with(".c"));
    let mut cc = Command::new("cc");
    cc.current_dir(work.path()).args(["-static", "-O2", "-s", "-o"]).arg(&program).args(sources);
    output(&mut cc).context("build tests/host/init.c")?;
    let mut archive = Vec::new();
    newc::append(&mut archive, "init", 0o100755, &fs::read(&program)?);
    for folder in ["dev", "modules"] {
        newc::append(&mut archive, folder, 0o040755, &[]);
    }
    for (index, path) in kernel.load_order(MODULES)?.iter().enumerate() {
        newc::append(&mut archive, &format!("modules/{index:03}.ko"), 0o100644, &kernel::read_module(path)?);
    }
    newc::finish(&mut archive);
    Ok(archive)
}

/// Waits until PID 1 asks for work. The connection is handed back: it must last as long as the machine.
fn wait_ready(mut control: UnixStream) -> anyhow::Result<UnixStream> {
    control.set_read_timeout(Some(BOOT_MAX))?;
    let mut lines = Lines::default();
    let mut chunk = [0; 512];
    loop {
        match control.read(&mut chunk).context("wait for the machine to boot")? {
            0 => bail!("the machine ended while it booted"),
            length => lines.push(&chunk[..length]),
        }
        while let Some(line) = lines.next() {
            match line {
                Ok(Line::Ready) => return Ok(control),
                Ok(Line::Beat) => {}
                other => bail!("the machine does not boot: {other:?}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::Clock;
    use super::*;

    #[test]
    fn qemu_version_is_read() {
        assert_eq!(parse_qemu_major("QEMU emulator version 10.0.2 (Debian 1:10.0.2)\n"), Some(10));
        assert_eq!(parse_qemu_major("something else"), None);
        assert!(parse_qemu_major("") < Some(QEMU_MAJOR));
    }

    #[test]
    fn processor_is_model_and_speed() {
        let text =
            "processor\t: 0\nmodel name\t: Some CPU\nflags : x\nbogomips\t: 4199.98\n\nmodel name\t: Other\n";
        assert_eq!(processor(text), "Some CPU 42");
        assert_eq!(processor(""), " 0");
    }

    #[test]
    fn snapshots_out_of_use_are_removed() {
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

    #[test]
    fn machines_differ_in_their_arguments() {
        let path = Path::new("/");
        let place = Place {
            kernel: path,
            initramfs: path,
            ram: path,
            keep_ram: false,
            sockets: "",
            outs: &[],
            empty: path,
        };
        let machine = Machine { memory_mib: 2048, cpus: 2, clock: Clock::Wall };
        let others = [
            Machine { memory_mib: 4096, ..machine },
            Machine { cpus: 3, ..machine },
            Machine { clock: Clock::Instructions, ..machine },
        ];
        for other in others {
            assert_ne!(machine.arguments(&place), other.arguments(&place));
        }
    }
}
