//! Fixtures of the whole-VM tests: bundles, and runs of `vmm` with a deadline.
//!
//! The program under test is `$VMM_PROGRAM`. `cargo xtask test` builds it and runs the tests on this machine's KVM, or
//! in the emulated KVM host if this machine's KVM cannot run a guest.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};
use tempfile::TempDir;

mod daemon;
mod initrd;
mod process;
mod state;
mod terminal;

pub use daemon::Daemon;
pub use initrd::Initrd;
pub use process::{Finished, Running, check_output, output, status, until, wait};
pub use state::StateDir;
pub use terminal::{ConsoleSocket, Controller, Terminal};

/// The capabilities that container engines give by default.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Returns the path of the program under test.
pub fn program() -> PathBuf {
    PathBuf::from(std::env::var_os("VMM_PROGRAM").expect("VMM_PROGRAM names the program under test"))
}

/// Returns the path of the program that tests run in the guest, built from tests/guest.
pub fn guest_program() -> PathBuf {
    PathBuf::from(std::env::var_os("VMM_TEST_GUEST").expect("VMM_TEST_GUEST names the program for the guest"))
}

/// Creates a root file system of static busybox with the users root and ann in `rootfs`.
pub fn busybox_rootfs(rootfs: &Path) {
    for part in ["bin", "dev", "etc", "proc", "sys", "tmp", "root", "mnt"] {
        fs::create_dir_all(rootfs.join(part)).expect("create the root file system");
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).expect("copy /bin/busybox");
    let list = check_output(Command::new("/bin/busybox").arg("--list"));
    for applet in list.lines().filter(|a| *a != "busybox") {
        symlink("busybox", rootfs.join("bin").join(applet)).expect("link an applet");
    }
    fs::write(
        rootfs.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n",
    )
    .expect("write passwd");
    fs::write(rootfs.join("etc/group"), "root:x:0:\nann:x:1000:\nwheel:x:10:ann\n").expect("write group");
}

/// An OCI bundle in its own directory, which is removed once this and the programs that it started are dropped.
pub struct Bundle {
    dir: Arc<TempDir>,
    /// Contents of `config.json`.
    pub config: Value,
    flags: Vec<String>,
}

impl Bundle {
    /// A bundle of static busybox that runs `args` without a terminal, with a writable root and the default
    /// capabilities of container engines. Otherwise `config.json` is that of `vmm spec`.
    pub fn new(args: &[&str]) -> Bundle {
        let dir = TempDir::new().expect("create a directory for the bundle");
        busybox_rootfs(&dir.path().join("rootfs"));
        Bundle::over(dir, args)
    }

    /// A bundle of a minimal Debian that runs `args`.
    pub fn debian(args: &[&str]) -> Bundle {
        let dir = TempDir::new().expect("create a directory for the bundle");
        let rootfs = dir.path().join("rootfs");
        fs::create_dir(&rootfs).expect("create the root file system");
        let archive =
            std::env::var_os("VMM_TEST_DEBIAN").expect("VMM_TEST_DEBIAN names an archive of Debian");
        check_output(Command::new("tar").arg("-C").arg(&rootfs).arg("-xf").arg(archive));
        Bundle::over(dir, args)
    }

    fn over(dir: TempDir, args: &[&str]) -> Bundle {
        check_output(Command::new(program()).args(["spec", "--bundle"]).arg(dir.path()));
        let text = fs::read(dir.path().join("config.json")).expect("read config.json");
        let mut config: Value = serde_json::from_slice(&text).expect("parse config.json");
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(args);
        config["root"]["readonly"] = json!(false);
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = json!(CAPABILITIES);
        }
        Bundle { dir: Arc::new(dir), config, flags: Vec::new() }
    }

    /// A bundle that runs `script` in busybox's shell.
    pub fn sh(script: &str) -> Bundle {
        Bundle::new(&["sh", "-c", script])
    }

    /// A bundle that runs one check of the program of tests/guest in a directory of the share.
    pub fn guest(check: &str) -> Bundle {
        let bundle = Bundle::sh(&format!("cd /mnt && exec /bin/guest {check}"));
        bundle.copy_guest_program();
        bundle
    }

    /// Copies the program of tests/guest to `/bin/guest`.
    pub fn copy_guest_program(&self) {
        fs::copy(guest_program(), self.rootfs().join("bin/guest")).expect("copy the program for the guest");
    }

    /// Changes `config.json`.
    pub fn with(mut self, change: impl FnOnce(&mut Value)) -> Bundle {
        change(&mut self.config);
        self
    }

    /// Appends a mount.
    pub fn mount(self, mount: Value) -> Bundle {
        self.with(|c| c["mounts"].as_array_mut().expect("mounts is a list").push(mount))
    }

    /// Removes the namespace of this kind, so that the container shares the pod's.
    pub fn share(self, kind: &str) -> Bundle {
        self.with(|c| {
            let all = c["linux"]["namespaces"].as_array_mut().expect("namespaces is a list");
            all.retain(|n| n["type"] != kind);
        })
    }

    /// Adds an argument of `vmm run`.
    pub fn flag(mut self, flag: &str) -> Bundle {
        self.flags.push(flag.to_owned());
        self
    }

    /// The bundle's directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The root file system.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    /// Writes `config.json`.
    pub fn write(&self) {
        let text = serde_json::to_vec(&self.config).expect("print config.json");
        fs::write(self.dir.path().join("config.json"), text).expect("write config.json");
    }

    /// Writes `config.json` and returns the command that runs the bundle.
    pub fn command(&self) -> Command {
        self.write();
        let mut command = Command::new(program());
        command.arg("run").args(&self.flags).arg(self.dir.path());
        command
    }

    /// Writes `config.json` and returns the command with which `runtime` runs the bundle as container `id`, in runc's
    /// form.
    pub fn command_of(&self, runtime: &Path, flags: &[&str], id: &str) -> Command {
        self.write();
        let mut command = Command::new(runtime);
        command.arg("run").args(flags).arg("--bundle").arg(self.dir.path()).arg(id);
        command
    }

    /// Runs the bundle to its end without input.
    pub fn run(&self) -> Finished {
        self.run_with(b"")
    }

    /// Runs the bundle to its end with `input` on its standard input.
    pub fn run_with(&self, input: &[u8]) -> Finished {
        Running::start(self.command()).feed(input).finish()
    }

    /// Starts the bundle with pipes for its standard streams.
    pub fn start(&self) -> Running {
        Running::start(self.command()).in_directory(self.dir.clone())
    }
}
