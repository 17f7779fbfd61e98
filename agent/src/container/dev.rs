//! A container's /dev: its nodes, its links and its console (OCI runtime specification, "Default Devices").

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags, makedev, mknodat, symlinkat};
use rustix::io::Errno;

use agent_proto::payload::{Mount, Process};

use crate::container::mounts::{bind_own, bind_tree};
use crate::container::rootfs::Root;
use crate::fault::{Fault, Step};
use crate::process::pty::Terminal;
use crate::sys::MountAttributes;

const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Makes the nodes and links in /dev, unless /dev is bound from outside and so somebody else's.
pub fn populate(root: &Root, mounts: &[Mount]) -> Result<(), Fault> {
    let bound =
        mounts.iter().any(|mount| mount.destination.trim_end_matches('/') == "/dev" && mount.kind == "bind");
    if bound {
        return Ok(());
    }
    let dev = root.make_directory("/dev")?;
    for (name, major, minor) in NODES {
        let mode = Mode::from_raw_mode(0o666);
        match mknodat(&dev, name, FileType::CharacterDevice, mode, makedev(major, minor)) {
            Ok(()) | Err(Errno::EXIST) => {}
            // A share may refuse device nodes; a file with the node bound on it does as well.
            Err(_) => bind_own(root, &alloc::format!("/dev/{name}"), &alloc::format!("/dev/{name}"))?,
        }
    }
    for (name, target) in LINKS {
        match symlinkat(target, &dev, name) {
            Ok(()) | Err(Errno::EXIST | Errno::ROFS) => {}
            Err(errno) => return Err(errno).step("link", name),
        }
    }
    Ok(())
}

/// Opens the first process's terminal in the container's devpts and binds it on /dev/console.
pub fn open_console(root: &Root, spec: &Process) -> Result<Terminal, Fault> {
    const PATH: &str = "/dev/pts/ptmx";
    let master = root.open_in(PATH, Terminal::MASTER, Mode::empty()).step("open", PATH)?;
    let terminal = Terminal::from_master(master, spec.rows, spec.columns)?;
    bind_console(root, &terminal.slave)?;
    Ok(terminal)
}

fn bind_console(root: &Root, slave: &OwnedFd) -> Result<(), Fault> {
    bind_tree(root, slave, "/dev/console", false, MountAttributes::default()).map(drop)
}

/// Opens the agent's /dev/null, which hides files of a container.
pub fn null() -> Result<OwnedFd, Fault> {
    const PATH: &str = "/dev/null";
    rustix::fs::open(PATH, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).step("open", PATH)
}
