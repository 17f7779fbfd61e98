//! A container's root directory: path resolution inside it, mount points, and pivot_root.
//!
//! The tree belongs to the container's image and is hostile. The kernel resolves all paths with this directory as the
//! root (openat2, RESOLVE_IN_ROOT), so that neither `..` nor a symbolic link can leave it.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, fstat, mkdirat, mknodat, openat, openat2, readlinkat,
};
use rustix::io::{Errno, Result as IoResult};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree};

use crate::error::{Error, Step};
use crate::sys::{self, MountAttributes};

/// Mount point of the pod's share in the agent's mount namespace.
pub const SHARE: &str = "/run/share";
/// Mount point of a container's root before it becomes the root. Each child has its own mount namespace.
pub const ROOT: &str = "/run/root";
/// Limit of symbolic links that are followed while a path is created.
const LINKS_MAX: usize = 40;
/// Milliseconds for which the kernel may cache a missing name, plus a margin.
const STALE_MS: i64 = 1500;
/// Milliseconds between two attempts.
const PAUSE_MS: i64 = 10;
/// Mode of created directories.
const DIRECTORY: Mode = Mode::from_raw_mode(0o755);
/// Mode of created files, which are mount points.
const FILE: Mode = Mode::from_raw_mode(0o644);
/// MOUNT_ATTR_RDONLY.
pub const READ_ONLY: u64 = 1;

/// What to do about a missing name.
#[derive(Clone, Copy, Debug)]
enum Missing {
    /// It is an error.
    Fails,
    /// It is created as a directory.
    IsDirectory,
    /// The last name is created as a file, the others as directories.
    IsFile,
}

impl Missing {
    fn create(self, parent: &OwnedFd, name: &str, last: bool) -> IoResult<()> {
        match self {
            Missing::Fails => Err(Errno::NOENT),
            // Not with open(2), because a read-only share refuses to open files for writing.
            Missing::IsFile if last => mknodat(parent, name, FileType::RegularFile, FILE, 0),
            Missing::IsDirectory | Missing::IsFile => mkdirat(parent, name, DIRECTORY),
        }
    }
}

/// Pushes the names of `path` onto the stack `names`, with the first name on top.
fn push_names(names: &mut Vec<String>, path: &str) {
    let parts = path.split('/').filter(|name| !name.is_empty() && *name != ".");
    names.extend(parts.rev().map(ToOwned::to_owned));
}

/// Opens one name without following symbolic links.
fn open_name(parent: &OwnedFd, name: &str) -> IoResult<OwnedFd> {
    openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Opens a name that was missing a moment ago and has since been created by another container of the same image. The
/// kernel may cache the missing name for as long as the host has allowed.
fn open_new_name(parent: &OwnedFd, name: &str) -> IoResult<OwnedFd> {
    for _ in 0..STALE_MS / PAUSE_MS {
        match open_name(parent, name) {
            Err(Errno::NOENT) => {}
            found => return found,
        }
        let pause = Timespec { tv_sec: 0, tv_nsec: PAUSE_MS * 1_000_000 };
        let _ = rustix::thread::nanosleep(&pause);
    }
    open_name(parent, name)
}

/// A directory. Paths opened through it cannot leave it.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

impl Root {
    /// Opens a directory of the agent's mount namespace.
    pub fn open(path: &str) -> Result<Root, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, path, flags, Mode::empty()).map(|fd| Root { fd }).step("open", path)
    }

    /// Mounts the share's directory `path` at [`ROOT`] and returns it.
    pub fn attach(share: &Root, path: &str) -> Result<Root, Error> {
        let source = share.find_shared(path).step("open root", path)?;
        if kind(&source) != FileType::Directory {
            return Err(Errno::NOTDIR).step("open root", path);
        }
        let tree = clone_tree(source.as_fd(), false).step("clone root", path)?;
        move_mount(&tree, "", CWD, ROOT, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).step("mount root", path)?;
        Ok(Root { fd: tree })
    }

    /// Opens `path` as an O_PATH descriptor.
    pub fn find(&self, path: &str) -> IoResult<OwnedFd> {
        match self.open_in(path, OFlags::PATH, Mode::empty()) {
            // openat2(2): a mount or rename may have interfered with the resolution of `..`.
            Err(Errno::AGAIN) => self.walk(path, Missing::Fails),
            found => found,
        }
    }

    /// Opens `path` of the share. A directory that is a mount point on the host is a submount in the guest, which the
    /// kernel mounts when a process first opens it. Opening it as a directory does that now; otherwise the kernel would
    /// mount it over the container's root later.
    pub fn find_shared(&self, path: &str) -> IoResult<OwnedFd> {
        match self.open_in(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) {
            Err(Errno::NOTDIR) => self.find(path),
            found => found,
        }
    }

    /// Opens `path` with `flags`.
    pub fn open_in(&self, path: &str, flags: OFlags, mode: Mode) -> IoResult<OwnedFd> {
        let path = if path.is_empty() { "." } else { path };
        openat2(&self.fd, path, flags | OFlags::CLOEXEC, mode, ResolveFlags::IN_ROOT)
    }

    /// Opens directory `path`, and creates it and its parents if missing.
    pub fn create_directory(&self, path: &str) -> Result<OwnedFd, Error> {
        self.create_directory_at(path).step("create directory", path)
    }

    /// Like [`Self::create_directory`], for callers that add their own step to the error.
    pub fn create_directory_at(&self, path: &str) -> IoResult<OwnedFd> {
        match self.find(path) {
            Err(Errno::NOENT) => self.walk(path, Missing::IsDirectory),
            found => found,
        }
    }

    /// Opens file `path`, and creates it and its parent directories if missing.
    pub fn create_file(&self, path: &str) -> Result<OwnedFd, Error> {
        match self.find(path) {
            Err(Errno::NOENT) => self.walk(path, Missing::IsFile),
            found => found,
        }
        .step("create file", path)
    }

    /// Opens `path` name by name, with this directory as the root. Links, also dangling ones, are followed inside this
    /// directory, and `..` returns to the previous directory.
    fn walk(&self, path: &str, missing: Missing) -> IoResult<OwnedFd> {
        let mut names = Vec::new();
        push_names(&mut names, path);
        let mut links = 0;
        let mut above = Vec::new();
        let mut here = self.open_in("", OFlags::PATH, Mode::empty())?;
        while let Some(name) = names.pop() {
            if name == ".." {
                here = above.pop().unwrap_or(here);
                continue;
            }
            let found = match open_name(&here, &name) {
                Err(Errno::NOENT) => match missing.create(&here, &name, names.is_empty()) {
                    Ok(()) => open_name(&here, &name)?,
                    Err(Errno::EXIST) => open_new_name(&here, &name)?,
                    Err(errno) => return Err(errno),
                },
                found => found?,
            };
            match kind(&found) {
                FileType::Symlink if links == LINKS_MAX => return Err(Errno::LOOP),
                FileType::Symlink => {
                    links += 1;
                    let target = readlinkat(&found, "", Vec::new())?;
                    let target = target.to_str().map_err(|_| Errno::INVAL)?;
                    if target.starts_with('/') {
                        above.clear();
                        here = self.open_in("", OFlags::PATH, Mode::empty())?;
                    }
                    push_names(&mut names, target);
                }
                FileType::Directory => above.push(core::mem::replace(&mut here, found)),
                _ if names.is_empty() => return Ok(found),
                _ => return Err(Errno::NOTDIR),
            }
        }
        Ok(here)
    }

    /// Makes the mount at `path` read-only, but not the mounts below it.
    pub fn set_read_only(&self, path: &str) -> Result<(), Error> {
        let attributes = MountAttributes { set: READ_ONLY, ..MountAttributes::default() };
        self.find(path)
            .and_then(|mounted| sys::mount_setattr(mounted.as_fd(), false, attributes))
            .step("remount read-only", path)
    }

    /// Makes this directory the process's root and unmounts the old root, which is the agent's.
    pub fn become_root(self) -> Result<(), Error> {
        let old = Root::open("/")?;
        rustix::process::fchdir(&self.fd).step("enter", "new root")?;
        rustix::process::pivot_root(".", ".").step("pivot to", "new root")?;
        // The old root is now mounted on the new one. Enter the old root, so that "." refers to it for the unmount.
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

/// Returns a detached copy of the mount of `source`, with `recursive` including all mounts below.
pub fn clone_tree(source: BorrowedFd<'_>, recursive: bool) -> IoResult<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(source, "", flags)
}

/// Attaches a mount from [`clone_tree`] on top of `target`.
pub fn attach_tree(tree: &OwnedFd, target: BorrowedFd<'_>) -> IoResult<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    let is_directory = |fd: BorrowedFd<'_>| kind(fd) == FileType::Directory;
    match move_mount(tree, "", target, "", flags) {
        // Like mount(2), report a file over a directory (or the reverse) as ENOTDIR; move_mount(2) says only EINVAL.
        Err(Errno::INVAL) if is_directory(tree.as_fd()) != is_directory(target) => Err(Errno::NOTDIR),
        moved => moved,
    }
}

/// Bind-mounts `source` on `destination`, which is created if missing: as a directory for a directory, or else as an
/// empty file. Attributes that are not given are those of the source's mount.
pub fn bind_tree(
    root: &Root,
    source: &OwnedFd,
    destination: &str,
    recursive: bool,
    attributes: MountAttributes,
) -> Result<OwnedFd, Error> {
    let target = match kind(source) {
        FileType::Directory => root.create_directory(destination)?,
        _ => root.create_file(destination)?,
    };
    let tree = clone_tree(source.as_fd(), recursive).step("bind-mount", destination)?;
    if attributes != MountAttributes::default() {
        sys::mount_setattr(tree.as_fd(), false, attributes).step("set options of", destination)?;
    }
    attach_tree(&tree, target.as_fd()).step("mount", destination)?;
    Ok(tree)
}

/// Returns the file type of `fd`.
pub fn kind(fd: impl AsFd) -> FileType {
    fstat(fd).map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode))
}

#[cfg(test)]
mod tests;
