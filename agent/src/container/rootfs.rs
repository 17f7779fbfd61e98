//! A container's root directory: reached, filled and become without ever leaving it.
//!
//! The tree is the container's image and hostile. Every path in it is resolved by the kernel with the root as its top
//! (openat2, RESOLVE_IN_ROOT), so that neither `..` nor a symbolic link leads out of it.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2, readlinkat};
use rustix::io::{Errno, Result as IoResult};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree};

use crate::fault::{Fault, Step};
use crate::sys::{self, MountAttributes};

/// Where the pod's share is mounted in the agent's own tree.
pub const SHARE: &str = "/run/share";
/// Where a container's root is mounted on the way to becoming the root; each child has its own view of it.
pub const ROOT: &str = "/run/root";
/// Symbolic links that are followed while a path is made.
const LINKS_MAX: usize = 40;
/// Mode of directories that are made on the way.
const DIRECTORY: Mode = Mode::from_raw_mode(0o755);
/// MOUNT_ATTR_RDONLY.
const READ_ONLY: u64 = 1;

/// A directory that nothing opened through it leaves.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

impl Root {
    /// Opens a directory of the agent's own tree.
    pub fn open(path: &str) -> Result<Root, Fault> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, path, flags, Mode::empty()).map(|fd| Root { fd }).step("open", path)
    }

    /// Mounts the share's directory `path` where a container's root is prepared, and returns it.
    pub fn attach(share: &Root, path: &str) -> Result<Root, Fault> {
        let source = share.find(path).step("open root", path)?;
        if kind(&source) != FileType::Directory {
            return Err(Errno::NOTDIR).step("open root", path);
        }
        let tree = clone_tree(source.as_fd(), false).step("clone root", path)?;
        move_mount(&tree, "", CWD, ROOT, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).step("mount root", path)?;
        Ok(Root { fd: tree })
    }

    /// Opens `path` without reading or writing it.
    pub fn find(&self, path: &str) -> IoResult<OwnedFd> {
        self.open_in(path, OFlags::PATH, Mode::empty())
    }

    /// Opens `path` with `flags`.
    pub fn open_in(&self, path: &str, flags: OFlags, mode: Mode) -> IoResult<OwnedFd> {
        let path = if path.is_empty() { "." } else { path };
        openat2(&self.fd, path, flags | OFlags::CLOEXEC, mode, ResolveFlags::IN_ROOT)
    }

    /// Opens directory `path`, and makes it and those above it where they are missing.
    pub fn make_directory(&self, path: &str) -> Result<OwnedFd, Fault> {
        match self.find(path) {
            Ok(found) => Ok(found),
            Err(Errno::NOENT) => self.make_path(path, LINKS_MAX).step("make directory", path),
            Err(errno) => Err(errno).step("open", path),
        }
    }

    /// Opens file `path`, and makes it and the directories above it where they are missing.
    pub fn make_file(&self, path: &str) -> Result<OwnedFd, Fault> {
        match self.find(path) {
            Ok(found) => return Ok(found),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno).step("open", path),
        }
        let trimmed = path.trim_end_matches('/');
        self.make_directory(trimmed.rsplit_once('/').map_or("", |(parent, _)| parent))?;
        let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        self.open_in(trimmed, flags, Mode::from_raw_mode(0o644)).step("make file", path)?;
        self.find(trimmed).step("open", path)
    }

    /// Makes every missing directory of `path` and opens the last. A dangling link on the way is followed to what it
    /// names.
    fn make_path(&self, path: &str, links: usize) -> IoResult<OwnedFd> {
        let mut done = String::new();
        let mut parent = self.find("")?;
        for name in path.split('/').filter(|name| !name.is_empty() && *name != ".") {
            let above = done.clone();
            done = format!("{done}/{name}");
            parent = match self.find(&done) {
                Ok(found) => found,
                Err(Errno::NOENT) => match mkdirat(&parent, name, DIRECTORY) {
                    Ok(()) => self.find(&done)?,
                    Err(Errno::EXIST) if links > 0 => {
                        let target = readlinkat(&parent, name, alloc::vec::Vec::new())?;
                        let target = target.to_str().map_err(|_| Errno::INVAL)?.to_owned();
                        done = if target.starts_with('/') { target } else { format!("{above}/{target}") };
                        self.make_path(&done, links - 1)?
                    }
                    Err(Errno::EXIST) => return Err(Errno::LOOP),
                    Err(errno) => return Err(errno),
                },
                Err(errno) => return Err(errno),
            };
        }
        Ok(parent)
    }

    /// Makes the root mount read-only; what is mounted in it stays as it is.
    pub fn set_read_only(&self) -> Result<(), Fault> {
        let attributes = MountAttributes { set: READ_ONLY, ..MountAttributes::default() };
        sys::mount_setattr(self.fd.as_fd(), false, attributes).step("remount read-only", "/")
    }

    /// Makes this the process's root and takes the old one, the agent's, out of its sight.
    pub fn become_root(self) -> Result<(), Fault> {
        let old = Root::open("/")?;
        rustix::process::fchdir(&self.fd).step("enter", "root")?;
        rustix::process::pivot_root(".", ".").step("pivot to", "root")?;
        // The old root lies on the new one now; "." there is the new root's, so the old one is entered to be unmounted.
        rustix::process::fchdir(&old.fd).step("enter", "old root")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).step("unmount", "old root")?;
        rustix::process::chdir("/").step("enter", "/")
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Returns a mount of what `source` is, not yet at any place; with `recursive` with all that is mounted below.
pub fn clone_tree(source: BorrowedFd<'_>, recursive: bool) -> IoResult<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(source, "", flags)
}

/// Puts a mount that [`clone_tree`] made on top of what `target` is.
pub fn attach_tree(tree: &OwnedFd, target: BorrowedFd<'_>) -> IoResult<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", target, "", flags)
}

/// Returns what kind of file `fd` is.
pub fn kind(fd: &OwnedFd) -> FileType {
    fstat(fd).map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode))
}

#[cfg(test)]
mod tests;
