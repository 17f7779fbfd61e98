//! The files that a thread can name: a few for the main thread, and none for the others, which use descriptors only.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, path_beneath_rules,
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

pub fn has_landlock() -> bool {
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    ruleset.handle_access(AccessFs::Execute).is_ok()
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

/// An empty, read-only file system, which is mounted in no namespace. Threads share it, because a mount takes 60,000
/// instructions.
static EMPTY: OnceLock<Result<OwnedFd, Errno>> = OnceLock::new();

/// Gives the calling thread an empty root, from which no path leads anywhere. Descriptors still do. If that fails, the
/// thread keeps its root.
pub fn leave_root() -> io::Result<()> {
    let root = EMPTY.get_or_init(empty_root).as_ref().map_err(|error| *error)?;
    sys::unshare_directories()?;
    fchdir(root)?;
    Ok(chroot(c".")?)
}

fn empty_root() -> Result<OwnedFd, Errno> {
    let file_system = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_flag(file_system.as_fd(), c"ro")?;
    fsconfig_create(file_system.as_fd())?;
    let locked = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(file_system.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, locked)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions};
    use std::process::Command;
    use std::thread;

    use super::*;

    #[test]
    fn a_restricted_thread_uses_only_the_files_that_it_was_given() {
        let folder = tempfile::tempdir().unwrap();
        let (given, read, other) =
            (folder.path().join("given"), folder.path().join("read"), folder.path().join("other"));
        fs::create_dir(&given).unwrap();
        fs::write(&read, "r").unwrap();
        fs::write(&other, "o").unwrap();
        let outside = folder.path().join("new");
        let work = move || {
            match restrict(&Paths { write: vec![given.clone()], read: vec![read.clone(), "/missing".into()] })
            {
                Ok(()) => {}
                // This host has no Landlock.
                Err(error) => return assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP), "{error}"),
            }
            fs::write(given.join("new"), "n").unwrap();
            fs::rename(given.join("new"), given.join("renamed")).unwrap();
            fs::remove_file(given.join("renamed")).unwrap();
            assert_eq!(fs::read(&read).unwrap(), b"r");
            for denied in [
                File::open(&other).map(drop),
                OpenOptions::new().write(true).open(&read).map(drop),
                fs::remove_file(&read),
                fs::rename(&other, given.join("moved")),
                fs::write(&outside, "n"),
                Command::new("/bin/true").status().map(drop),
            ] {
                assert!(
                    matches!(&denied, Err(error) if error.kind() != io::ErrorKind::NotFound),
                    "{denied:?}"
                );
            }
        };
        thread::spawn(work).join().unwrap();
        // Only that thread is restricted.
        folder.close().unwrap();
    }
}
