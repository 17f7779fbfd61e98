//! The files that a thread can name: none for the file server, which uses descriptors only, and a few for the main thread.
//! Other threads make no system call that takes a path.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsmount, fsopen,
};
use rustix::process::{chroot, fchdir};

use crate::sys::confinement as sys;

/// Actions of Landlock (linux/landlock.h): EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, then removal and creation.
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
/// All actions of version 1.
const FIRST: u64 = (1 << 13) - 1;
/// REFER of version 2, and TRUNCATE of version 3.
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
/// Actions on files that are not directories.
const ON_FILES: u64 = WRITE_FILE | READ_FILE | TRUNCATE;

/// The files that the main thread uses while the guest runs.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    /// Directories in which it creates, replaces and removes files, and files that it writes.
    pub write: Vec<PathBuf>,
    /// Files and directories that it reads.
    pub read: Vec<PathBuf>,
}

/// What every main thread uses: its own descriptors and terminals by name, and the devices of a new NIC.
const WRITTEN: [&str; 5] = ["/dev/null", "/dev/pts", "/dev/tty", "/dev/net/tun", "/dev/vhost-net"];
const READ: [&str; 1] = ["/proc"];

/// Restricts the calling thread to `paths`. Fails if the kernel has no Landlock, or was started without it.
pub fn restrict(paths: &Paths) -> io::Result<()> {
    let version = sys::landlock_version()?;
    let handled = FIRST | if version >= 2 { REFER } else { 0 } | if version >= 3 { TRUNCATE } else { 0 };
    let rules = sys::landlock_rules(handled)?;
    let allow = |path: &Path, actions: u64| {
        // O_PATH opens anything without an effect. What does not exist needs no rule.
        let open = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path);
        let Ok(file) = open else { return Ok(()) };
        let actions = if file.metadata()?.is_dir() { actions } else { actions & ON_FILES };
        sys::landlock_allow(rules.as_fd(), file.as_fd(), actions & handled)
    };
    let write = paths.write.iter().map(PathBuf::as_path).chain(WRITTEN.iter().map(Path::new));
    write.into_iter().try_for_each(|path| allow(path, handled & !1))?;
    let read = paths.read.iter().map(PathBuf::as_path).chain(READ.iter().map(Path::new));
    read.into_iter().try_for_each(|path| allow(path, READ_FILE | READ_DIR))?;
    sys::landlock_restrict(rules.as_fd())
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
