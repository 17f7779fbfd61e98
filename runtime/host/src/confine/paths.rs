//! The files that a thread can name: none for the file server, which uses descriptors only, and a few for the main thread.
//! Other threads make no system call that takes a path.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
    path_beneath_rules,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsmount, fsopen,
};
use rustix::process::{chroot, fchdir};

use crate::sys::confinement as sys;

/// The version of Landlock whose actions are denied, as far as the kernel knows them.
const VERSION: ABI = ABI::V3;

/// The files that the main thread uses while the guest runs.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    /// Directories in which it creates, replaces and removes files, and files that it writes.
    pub write: Vec<PathBuf>,
    /// Files and directories that it reads.
    pub read: Vec<PathBuf>,
}

/// Files that every main thread writes: its own descriptors and terminals by name, and the devices of a new NIC.
const WRITTEN: [&str; 5] = ["/dev/null", "/dev/pts", "/dev/tty", "/dev/net/tun", "/dev/vhost-net"];
const READ: [&str; 1] = ["/proc"];

/// Restricts the calling thread to `paths`. Fails if the kernel has no Landlock, or was started without it.
pub fn restrict(paths: &Paths) -> io::Result<()> {
    match landlock(paths).map_err(io::Error::other)? {
        RulesetStatus::NotEnforced => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}

fn landlock(paths: &Paths) -> Result<RulesetStatus, RulesetError> {
    let all = AccessFs::from_all(VERSION);
    let write = paths.write.iter().map(PathBuf::as_path).chain(WRITTEN.map(Path::new));
    let read = paths.read.iter().map(PathBuf::as_path).chain(READ.map(Path::new));
    // A path that does not exist needs no rule.
    let rules = Ruleset::default()
        .handle_access(all)?
        .create()?
        .add_rules(path_beneath_rules(write, all & !AccessFs::Execute))?
        .add_rules(path_beneath_rules(read, AccessFs::ReadFile | AccessFs::ReadDir))?;
    rules.restrict_self().map(|restricted| restricted.ruleset)
}

/// Gives the calling thread an empty, read-only root, from which no path leads anywhere. Descriptors still do. If that
/// fails, the thread keeps its root.
pub fn leave_root() -> io::Result<()> {
    sys::unshare_directories()?;
    Ok(empty_root()?)
}

fn empty_root() -> Result<(), Errno> {
    let file_system = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_flag(file_system.as_fd(), c"ro")?;
    fsconfig_create(file_system.as_fd())?;
    let locked = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    // The mount is in no namespace, and is gone with the thread.
    let root = fsmount(file_system.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, locked)?;
    fchdir(root)?;
    chroot(c".")
}
