//! A container's /dev: nodes, links and console (OCI runtime specification, "Default Devices").

use alloc::format;
use alloc::string::String;

use rustix::fd::OwnedFd;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, makedev, mknodat, statat, symlinkat,
};
use rustix::io::Errno;

use agent_proto::payload::{Device, Mount, OciContainer, Process};

use crate::container::rootfs::{READ_ONLY, Root, bind_tree};
use crate::error::{Error, Step};
use crate::pty::Terminal;
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

/// Creates the given nodes, and the default nodes and links. Leaves a /dev that is bind-mounted from outside
/// unchanged.
pub fn populate(root: &Root, oci: &OciContainer) -> Result<(), Error> {
    let is_dev = |mount: &Mount| mount.destination.trim_end_matches('/') == "/dev" && mount.kind == "bind";
    if oci.mounts.iter().any(is_dev) {
        return Ok(());
    }
    oci.devices
        .iter()
        .try_for_each(|device| create_node(root, device).step("create device", &device.path))?;
    let dev = root.create_directory("/dev")?;
    for (name, major, minor) in NODES {
        let mode = Mode::from_raw_mode(0o666);
        match mknodat(&dev, name, FileType::CharacterDevice, mode, makedev(major, minor)) {
            Ok(()) | Err(Errno::EXIST) => {}
            // The share may refuse device nodes. A bind mount on a plain file works as well.
            Err(_) => bind_node(root, name, major, minor)?,
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

/// Creates one node. It is not an error if the node exists.
fn create_node(root: &Root, device: &Device) -> rustix::io::Result<()> {
    let (parent, name) = device.path.rsplit_once('/').ok_or(Errno::INVAL)?;
    let directory = root.create_directory_at(parent)?;
    let kind = FileType::from_raw_mode(device.mode);
    let number = makedev(device.major, device.minor);
    match mknodat(&directory, name, kind, Mode::from_raw_mode(device.mode), number) {
        Err(Errno::EXIST) => {
            let found = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let same = FileType::from_raw_mode(found.st_mode) == kind && found.st_rdev == number;
            return if same { Ok(()) } else { Err(Errno::EXIST) };
        }
        made => made?,
    }
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    chownat(&directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

/// Opens the init process's terminal in the container's devpts and bind-mounts it on /dev/console.
pub fn open_console(root: &Root, spec: &Process) -> Result<Terminal, Error> {
    const PATH: &str = "/dev/pts/ptmx";
    let master = root.open_in(PATH, Terminal::MASTER, Mode::empty()).step("open", PATH)?;
    let terminal = Terminal::from_master(master, spec.rows, spec.columns)?;
    bind_console(root, &terminal.slave)?;
    Ok(terminal)
}

fn bind_console(root: &Root, slave: &OwnedFd) -> Result<(), Error> {
    bind_tree(root, slave, "/dev/console", false, MountAttributes::default()).map(drop)
}

/// Opens the agent's /dev/null, which is bound on masked files.
pub fn null() -> Result<OwnedFd, Error> {
    open_node(&agent_node("null", 1, 3)?)
}

/// Binds one of the agent's nodes, which all containers of the pod share. The mount is read-only so that a container
/// cannot change the node's mode or owner. The device can still be written to.
fn bind_node(root: &Root, name: &str, major: u32, minor: u32) -> Result<(), Error> {
    let source = open_node(&agent_node(name, major, minor)?)?;
    let attributes = MountAttributes { set: READ_ONLY, ..MountAttributes::default() };
    bind_tree(root, &source, &format!("/dev/{name}"), false, attributes).map(drop)
}

fn open_node(path: &str) -> Result<OwnedFd, Error> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).step("open", path)
}

/// Returns the path of a device node in the agent's root file system, and creates the node if it is missing. The nodes
/// in the agent's /dev cannot be trusted: /dev is a devtmpfs, which a container with SYS_ADMIN can also mount and
/// change.
fn agent_node(name: &str, major: u32, minor: u32) -> Result<String, Error> {
    let path = format!("/run/{name}");
    let mode = Mode::from_raw_mode(0o666);
    match mknodat(CWD, path.as_str(), FileType::CharacterDevice, mode, makedev(major, minor)) {
        Ok(()) | Err(Errno::EXIST) => Ok(path),
        Err(errno) => Err(errno).step("create device", &path),
    }
}
