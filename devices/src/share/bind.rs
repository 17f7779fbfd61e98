//! A file or directory of the host that is bound to a path of the share.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicBool;

use super::errno::{Errno, Result};
use super::mount_copy::MountCopy;
use super::nodes::NodePolicy;
use super::sys;

/// What a guest may do with a bind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// The guest may not change anything.
    pub read_only: bool,
    /// The device nodes that the guest may create.
    pub nodes: NodePolicy,
    /// While the guest has a file open for writing, nobody else writes to it. The guest's kernel may then collect what its
    /// processes write.
    pub owned: bool,
    /// The bind includes what the host mounts below the directory later. The server then uses the host's mount.
    pub later_mounts: bool,
    /// The directory is on a mount of its own already, as [`detached`](super::detached) returns it.
    pub detached: bool,
    /// How the directory's mount is copied.
    pub mount: MountCopy,
    /// The guest may use the extended attributes that Linux reserves for CAP_SYS_ADMIN.
    pub admin_xattrs: bool,
}

impl Terms {
    /// Returns the terms of a read-only bind.
    pub fn read_only() -> Terms {
        Terms { read_only: true, ..Terms::default() }
    }
}

/// A path of the share that is bound to a file or directory of the host.
pub(crate) struct Bind {
    /// Number of the bind, unique in the tree.
    pub id: u64,
    /// The guest may not change anything, except as `mount_points` allows.
    pub read_only: bool,
    /// As [`Terms::owned`].
    pub owned: bool,
    /// The device nodes that the guest may create.
    pub nodes: NodePolicy,
    /// As [`Terms::admin_xattrs`].
    pub admin_xattrs: bool,
    /// The guest may create directories and empty files even if the bind is read-only.
    pub mount_points: AtomicBool,
    /// Device and inode number on the host.
    pub key: (u64, u64),
    /// True for a directory, false for a single file.
    pub is_dir: bool,
    /// The bind was removed: none of its files may be found or opened any more. Set while the table is locked.
    pub revoked: AtomicBool,
    pub(super) fd: OwnedFd,
}

impl Bind {
    /// The file descriptor of the bind's file or directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Returns the directory on a copy of its mount. Returns `fd` if the kernel cannot make a copy: without permission
/// (EPERM), for a mount that cannot be bound or belongs to another namespace (EINVAL), before Linux 5.12 (ENOSYS).
pub(super) fn own_mount(path: &str, fd: OwnedFd, how: MountCopy) -> Result<OwnedFd> {
    match sys::clone_mount(fd.as_fd(), how) {
        Err(errno @ Errno(libc::EPERM | libc::EINVAL | libc::ENOSYS)) => {
            log::debug!("share {path:?}: clone its mount: {}", std::io::Error::from(errno));
            Ok(fd)
        }
        cloned => cloned,
    }
}
