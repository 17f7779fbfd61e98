//! What the whole-VM tests stand on: bundles made on the spot, and `vmm` run on them with a deadline.
//!
//! The program under test is `$VMM_PROGRAM`. `cargo xtask test` builds it and runs the tests on this machine's KVM, or
//! in the emulated KVM host where that cannot run a guest.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

mod daemon;
mod initrd;
mod process;
mod terminal;

pub use daemon::Daemon;
pub use initrd::Initrd;
pub use process::{Finished, Running, check_output, output, status, wait};
pub use terminal::{ConsoleSocket, Controller, Terminal};

/// What container engines give a container that asks for nothing.
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

/// Returns the program under test.
pub fn program() -> PathBuf {
    PathBuf::from(std::env::var_os("VMM_PROGRAM").expect("VMM_PROGRAM names the program under test"))
}

/// Makes a root file system of static busybox with two users, root and ann, in `rootfs`.
pub fn busybox_rootfs(rootfs: &Path) {
    for part in ["bin", "dev", "etc", "proc", "sys", "tmp", "root", "mnt"] {
        fs::create_dir_all(rootfs.join(part)).expect("make the root file system");
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

/// An OCI bundle in a folder of its own, which goes away with it.
pub struct Bundle {
    dir: TempDir,
    /// The `config.json` to be.
    pub config: Value,
    flags: Vec<String>,
}

impl Bundle {
    /// A bundle of static busybox that runs `args`, otherwise as `vmm spec` has it without a terminal.
    pub fn new(args: &[&str]) -> Bundle {
        let dir = TempDir::new().expect("make a folder for the bundle");
        busybox_rootfs(&dir.path().join("rootfs"));
        Bundle::over(dir, args)
    }

    /// A bundle of a minimal Debian that runs `args`.
    pub fn debian(args: &[&str]) -> Bundle {
        let dir = TempDir::new().expect("make a folder for the bundle");
        let rootfs = dir.path().join("rootfs");
        fs::create_dir(&rootfs).expect("make the root file system");
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
        Bundle { dir, config, flags: Vec::new() }
    }

    /// A bundle that runs `script` in busybox's shell.
    pub fn sh(script: &str) -> Bundle {
        Bundle::new(&["sh", "-c", script])
    }

    /// A bundle that runs one check of the program in `tests/guest`, in a folder of the share.
    pub fn guest(check: &str) -> Bundle {
        let bundle = Bundle::sh(&format!("cd /mnt && exec /bin/guest {check}"));
        let guest =
            std::env::var_os("VMM_TEST_GUEST").expect("VMM_TEST_GUEST names the program for the guest");
        fs::copy(guest, bundle.rootfs().join("bin/guest")).expect("copy the program for the guest");
        bundle
    }

    /// Changes `config.json`.
    pub fn with(mut self, change: impl FnOnce(&mut Value)) -> Bundle {
        change(&mut self.config);
        self
    }

    /// Adds a mount at the end of the list.
    pub fn mount(self, mount: Value) -> Bundle {
        self.with(|c| c["mounts"].as_array_mut().expect("mounts is a list").push(mount))
    }

    /// Drops the namespace of this kind, so that the container shares the pod's.
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

    /// The bundle's folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The root file system.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    /// Writes `config.json` and returns the command that runs the bundle.
    pub fn command(&self) -> Command {
        let text = serde_json::to_vec(&self.config).expect("print config.json");
        fs::write(self.dir.path().join("config.json"), text).expect("write config.json");
        let mut command = Command::new(program());
        command.arg("run").args(&self.flags).arg(self.dir.path());
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
        Running::start(self.command())
    }
}
