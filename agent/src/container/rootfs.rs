//! A container's root directory: reached, filled and become without ever leaving it.
//!
//! The tree is the container's image and hostile. Every path in it is resolved by the kernel with the root as its top
//! (openat2, RESOLVE_IN_ROOT), so that neither `..` nor a symbolic link leads out of it.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, fstat, mkdirat, mknodat, openat, openat2, readlinkat,
};
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
/// Milliseconds for which a missing name may be taken for missing, and some more.
const STALE_MS: i64 = 1500;
/// Milliseconds between two looks.
const PAUSE_MS: i64 = 10;
/// Mode of directories that are made on the way.
const DIRECTORY: Mode = Mode::from_raw_mode(0o755);
/// Mode of files that are made to be mounted on.
const FILE: Mode = Mode::from_raw_mode(0o644);
/// MOUNT_ATTR_RDONLY.
pub const READ_ONLY: u64 = 1;

/// What is done about a name that is not there.
#[derive(Clone, Copy, Debug)]
enum Missing {
    /// Nothing.
    Fails,
    /// It is made a directory.
    IsDirectory,
    /// The last name is made a file, those before it directories.
    IsFile,
}

impl Missing {
    fn make(self, parent: &OwnedFd, name: &str, last: bool) -> IoResult<()> {
        match self {
            Missing::Fails => Err(Errno::NOENT),
            // Not with open(2): a read-only share lets nobody open what may be written.
            Missing::IsFile if last => mknodat(parent, name, FileType::RegularFile, FILE, 0),
            Missing::IsDirectory | Missing::IsFile => mkdirat(parent, name, DIRECTORY),
        }
    }
}

/// Puts the names of `path` on the stack `names`, the first on top.
fn push_names(names: &mut Vec<String>, path: &str) {
    let parts = path.split('/').filter(|name| !name.is_empty() && *name != ".");
    names.extend(parts.rev().map(ToOwned::to_owned));
}

/// Opens one name, a link itself included.
fn open_name(parent: &OwnedFd, name: &str) -> IoResult<OwnedFd> {
    openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Opens a name that was missing a moment ago and that somebody else has made since: another container of the same image.
/// The kernel may believe it missing for as long as the host said that it could.
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
        let source = share.find_shared(path).step("open root", path)?;
        if kind(&source) != FileType::Directory {
            return Err(Errno::NOTDIR).step("open root", path);
        }
        let tree = clone_tree(source.as_fd(), false).step("clone root", path)?;
        move_mount(&tree, "", CWD, ROOT, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).step("mount root", path)?;
        Ok(Root { fd: tree })
    }

    /// Opens `path` without reading or writing it.
    pub fn find(&self, path: &str) -> IoResult<OwnedFd> {
        match self.open_in(path, OFlags::PATH, Mode::empty()) {
            // openat2(2): the kernel could not rule out that a mount or a rename came between while it went up.
            Err(Errno::AGAIN) => self.walk(path, Missing::Fails),
            found => found,
        }
    }

    /// Opens what the host shares as `path`. Each directory of the share that is a file system of its own on the host is one
    /// here too, which the kernel mounts when somebody enters it: now, or else on top of the container's root.
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

    /// Opens directory `path`, and makes it and those above it where they are missing.
    pub fn make_directory(&self, path: &str) -> Result<OwnedFd, Fault> {
        self.make_directory_at(path).step("make directory", path)
    }

    /// The same for who has a word of his own for what failed.
    pub fn make_directory_at(&self, path: &str) -> IoResult<OwnedFd> {
        match self.find(path) {
            Err(Errno::NOENT) => self.walk(path, Missing::IsDirectory),
            found => found,
        }
    }

    /// Opens file `path`, and makes it and the directories above it where they are missing.
    pub fn make_file(&self, path: &str) -> Result<OwnedFd, Fault> {
        match self.find(path) {
            Err(Errno::NOENT) => self.walk(path, Missing::IsFile),
            found => found,
        }
        .step("make file", path)
    }

    /// Opens `path` a name at a time, as if this were the top of everything: a link is followed where it leads in here, also
    /// one that dangles, and `..` goes back the way it came.
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
                Err(Errno::NOENT) => match missing.make(&here, &name, names.is_empty()) {
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

    /// Makes the mount that is at `path` read-only; what is mounted in it stays as it is.
    pub fn set_read_only(&self, path: &str) -> Result<(), Fault> {
        let attributes = MountAttributes { set: READ_ONLY, ..MountAttributes::default() };
        self.find(path)
            .and_then(|mounted| sys::mount_setattr(mounted.as_fd(), false, attributes))
            .step("remount read-only", path)
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
    let is_directory = |fd: BorrowedFd<'_>| kind(fd) == FileType::Directory;
    match move_mount(tree, "", target, "", flags) {
        // mount(2) has a name for a file over a directory and the other way round, move_mount(2) has none.
        Err(Errno::INVAL) if is_directory(tree.as_fd()) != is_directory(target) => Err(Errno::NOTDIR),
        moved => moved,
    }
}

/// Returns what kind of file `fd` is.
pub fn kind(fd: impl AsFd) -> FileType {
    fstat(fd).map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode))
}

#[cfg(test)]
mod tests;
