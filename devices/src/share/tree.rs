//! The share: a virtual, read-only tree in which paths are bound to open directories and files of the host.
//!
//! ```text
//! /                      virtual
//! └── c1/                virtual
//!     ├── rootfs         bound to a directory: a separate file system for the guest (FUSE_SUBMOUNTS)
//!     └── mounts/        virtual
//!         ├── 0          bound to a directory
//!         └── 1          bound to a single file
//! ```
//!
//! A directory is served from a detached copy of its mount, with the options nodev and nosuid, so that a bug in the
//! server cannot open a device. The copy does not include what the host mounts there later. Making a copy takes
//! CAP_SYS_ADMIN in the mount namespace. Without it, and for binds with [`Terms::later_mounts`], the server uses the
//! host's mount; then only the server's checks of file types protect the host's devices.
//!
//! The copies are in no mount namespace, so nothing remains on the host. A [`ShareTree`] is a handle, and its clones
//! share one tree. The guest sees a bind or unbind immediately, or when its negative lookup expires. After
//! [`ShareTree::unbind`] the server has no file descriptors of the bind, except those of a request in progress.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::bind::{Bind, Terms, own_mount};
use super::errno::{Errno, Result};
use super::lock_table::{Locks, MAX_RANGES};
use super::mappings::Mappings;
use super::mount_copy::MountCopy;
use super::sockets::SocketQueue;
use super::sys::{self, Stat};
use super::table::{MAX_INODES, ROOT_ID, Table};

/// Limit of the length of a name, as on Linux.
pub const MAX_NAME: usize = 255;
/// File descriptors that are reserved for the monitor and not available to the guest.
const RESERVED_DESCRIPTORS: u64 = 256;
/// Limit of file descriptors for a guest, independent of the process's limit.
const MAX_DESCRIPTORS: u64 = 1 << 20;
/// Bit that is set in the number of every virtual directory but the root.
const VIRTUAL: u64 = 1 << 63;

/// Why a share could not be created or changed.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The path is not absolute, or a component is empty, `.`, `..`, too long or contains a NUL.
    #[error("share path {path:?} is not an absolute path of plain names")]
    Path {
        /// Path in the share.
        path: String,
    },
    /// The path is already bound, or a parent of it is not a virtual directory.
    #[error("share path {path:?} is already in use")]
    Taken {
        /// Path in the share.
        path: String,
    },
    /// The path is not bound.
    #[error("share path {path:?} is not bound")]
    Unbound {
        /// Path in the share.
        path: String,
    },
    /// The file to bind is neither a directory, a regular file nor a FIFO.
    #[error("share {path:?}: neither a directory, a regular file nor a FIFO")]
    Kind {
        /// Path in the share.
        path: String,
    },
    /// A system call of the host failed.
    #[error("{step}")]
    Host {
        /// The step that failed.
        step: String,
        /// The error of the system call.
        #[source]
        source: std::io::Error,
    },
}

/// An entry of a virtual directory.
#[derive(Clone)]
pub(super) enum Child {
    /// Another virtual directory, with its inode number in the protocol.
    Dir(u64),
    /// A file or directory of the host.
    Bind(Arc<Bind>),
}

impl Child {
    /// The inode number that programs in the guest see. It is unique in the virtual file system.
    pub fn ino(&self) -> u64 {
        match self {
            Child::Dir(id) => *id & !VIRTUAL,
            Child::Bind(bind) => bind.id,
        }
    }
}

type Names = BTreeMap<Vec<u8>, Child>;

/// The virtual directories by number.
pub(super) struct Tree {
    dirs: HashMap<u64, Names>,
    next: u64,
}

impl Tree {
    /// Whether `id` is the number of a virtual directory, which may no longer exist.
    pub fn is_virtual(id: u64) -> bool {
        id == ROOT_ID || id & VIRTUAL != 0
    }

    /// The entries of a virtual directory.
    pub fn names(&self, id: u64) -> Result<&Names> {
        self.dirs.get(&id).ok_or(Errno(libc::ESTALE))
    }

    /// The entry `name` of a virtual directory.
    pub fn child(&self, id: u64, name: &[u8]) -> Result<Child> {
        self.names(id)?.get(name).cloned().ok_or(Errno(libc::ENOENT))
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Returns the virtual directory at the path `parents`, which it creates if necessary. `None` if a parent is bound.
    fn make_dirs(&mut self, parents: &[&[u8]]) -> Option<u64> {
        let mut id = ROOT_ID;
        for name in parents {
            id = match self.dirs.get(&id)?.get(*name) {
                Some(Child::Dir(next)) => *next,
                Some(Child::Bind(_)) => return None,
                None => {
                    let next = self.number() | VIRTUAL;
                    self.dirs.insert(next, Names::new());
                    self.dirs.get_mut(&id)?.insert(name.to_vec(), Child::Dir(next));
                    next
                }
            };
        }
        Some(id)
    }

    /// Returns the bind at a path.
    fn find(&self, names: &[&[u8]]) -> Option<&Arc<Bind>> {
        let (last, parents) = names.split_last()?;
        let mut id = ROOT_ID;
        for name in parents {
            let Child::Dir(next) = self.dirs.get(&id)?.get(*name)? else { return None };
            id = *next;
        }
        let Child::Bind(bind) = self.dirs.get(&id)?.get(*last)? else { return None };
        Some(bind)
    }

    /// Removes a bind, and every virtual directory that becomes empty by that.
    fn remove(&mut self, names: &[&[u8]]) -> Option<Arc<Bind>> {
        let mut trail = vec![ROOT_ID];
        let (last, parents) = names.split_last()?;
        for name in parents {
            match self.dirs.get(trail.last()?)?.get(*name)? {
                Child::Dir(id) => trail.push(*id),
                Child::Bind(_) => return None,
            }
        }
        let dir = self.dirs.get_mut(trail.last()?)?;
        let Child::Bind(bind) = dir.get(*last)?.clone() else { return None };
        dir.remove(*last);
        for depth in (1..trail.len()).rev() {
            if !self.dirs.get(&trail[depth])?.is_empty() {
                break;
            }
            self.dirs.remove(&trail[depth]);
            self.dirs.get_mut(&trail[depth - 1])?.remove(parents[depth - 1]);
        }
        Some(bind)
    }
}

/// State that all servers and handles of one tree share.
pub(super) struct Shared {
    /// The virtual directories.
    pub tree: Mutex<Tree>,
    /// The ranges that the guest has locked.
    pub locks: Mutex<Locks>,
    /// The files that the guest has mapped shared and writable.
    pub mappings: Mappings,
    /// Inodes and open files. Order of mutexes: the tree before the locks before the table.
    pub table: Mutex<Table>,
    /// The thread that carries connections of sockets, if there is one.
    pub sockets: OnceLock<SocketQueue>,
    /// The guest's `sync` writes the host's file systems to disk.
    pub host_sync: AtomicBool,
    /// /proc/self/fd, through which O_PATH descriptors are reopened for reading and writing.
    pub proc_self_fd: OwnedFd,
}

/// A tree of binds that can change while it is served. Clones share one tree.
#[derive(Clone)]
pub struct ShareTree(Arc<Shared>);

impl ShareTree {
    /// Returns an empty tree. Raises the process's limit of file descriptors as far as possible, because each file that
    /// the guest knows needs one.
    pub fn new() -> std::result::Result<ShareTree, ShareError> {
        let proc_self_fd = sys::open_proc_self_fd().map_err(|errno| ShareError::Host {
            step: "open /proc/self/fd".to_owned(),
            source: errno.into(),
        })?;
        let limit = sys::raise_descriptor_limit(MAX_DESCRIPTORS).min(MAX_DESCRIPTORS);
        let limit = limit.saturating_sub(RESERVED_DESCRIPTORS).max(limit / 2) as usize;
        Ok(ShareTree(Arc::new(Shared {
            tree: Mutex::new(Tree { dirs: HashMap::from([(ROOT_ID, Names::new())]), next: ROOT_ID }),
            locks: Mutex::new(Locks::new(MAX_RANGES)),
            mappings: Mappings::default(),
            sockets: OnceLock::new(),
            table: Mutex::new(Table::new(limit, MAX_INODES)),
            host_sync: AtomicBool::new(true),
            proc_self_fd,
        })))
    }

    /// Binds `path` (absolute, in the share) to the directory, regular file or FIFO of `fd`, preferably an O_PATH descriptor.
    ///
    /// Missing parents become virtual directories. Mounts below a directory belong to the bind.
    pub fn bind(&self, path: &str, fd: OwnedFd, terms: Terms) -> std::result::Result<(), ShareError> {
        let names = components(path)?;
        let host = |errno: Errno| ShareError::Host { step: format!("share {path:?}"), source: errno.into() };
        let stat = sys::fstat(fd.as_fd()).map_err(host)?;
        let kind = stat.st_mode & libc::S_IFMT;
        if !matches!(kind, libc::S_IFDIR | libc::S_IFREG | libc::S_IFIFO) {
            return Err(ShareError::Kind { path: path.to_owned() });
        }
        // A single file needs no mount copy: its descriptor always refers to this file. Only names below a
        // directory can lead to a device.
        let is_dir = kind == libc::S_IFDIR;
        let as_given = !is_dir || terms.later_mounts || terms.detached;
        let fd = if as_given { fd } else { own_mount(path, fd, terms.mount).map_err(host)? };
        let has_own = terms.mount.read_only && sys::file_system(fd.as_fd()).map_err(host)?.1;
        let taken = || ShareError::Taken { path: path.to_owned() };
        let mut tree = self.0.tree.lock().unwrap();
        let (name, parents) = names.split_last().ok_or_else(taken)?;
        let dir = tree.make_dirs(parents).ok_or_else(taken)?;
        let bind = Bind {
            id: tree.number(),
            read_only: terms.read_only || terms.mount.read_only && !has_own,
            owned: terms.owned && is_dir,
            nodes: terms.nodes,
            admin_xattrs: terms.admin_xattrs,
            mount_points: AtomicBool::new(false),
            key: (stat.st_dev, stat.st_ino),
            is_dir,
            revoked: AtomicBool::new(false),
            fd,
        };
        let names = tree.dirs.get_mut(&dir).ok_or_else(taken)?;
        if names.contains_key(*name) {
            return Err(taken());
        }
        names.insert(name.to_vec(), Child::Bind(Arc::new(bind)));
        Ok(())
    }

    /// Removes a bind. The guest no longer finds it, and gets ESTALE or EBADF for the files that it still has open
    /// there.
    pub fn unbind(&self, path: &str) -> std::result::Result<(), ShareError> {
        let names = components(path)?;
        let mut tree = self.0.tree.lock().unwrap();
        let bind = tree.remove(&names).ok_or_else(|| ShareError::Unbound { path: path.to_owned() })?;
        // The table first: after that no request finds an open file of the bind to lock.
        self.0.table.lock().unwrap().purge(&bind);
        self.0.locks.lock().unwrap().purge(&bind);
        Ok(())
    }

    /// Sets whether the guest may create directories and empty files in a read-only bind, for use as mount points. It
    /// can change nothing else. Off by default.
    pub fn allow_mount_points(&self, path: &str, on: bool) -> std::result::Result<(), ShareError> {
        let names = components(path)?;
        let tree = self.0.tree.lock().unwrap();
        let bind = tree.find(&names).ok_or_else(|| ShareError::Unbound { path: path.to_owned() })?;
        bind.mount_points.store(on, Ordering::Relaxed);
        Ok(())
    }

    /// Sets whether the guest's sync(2) and umount(2) make the host write its file systems to disk. On by default. Must
    /// be switched off before a guest is shut down: its data is in the host's page cache, which survives the guest.
    pub fn set_host_sync(&self, on: bool) {
        self.0.host_sync.store(on, Ordering::Relaxed);
    }

    /// Sets where the file is through which the machines of a host agree which of them has a file mapped: in `directory`
    /// of `parent`. Both are created when the guest first maps a file shared and writable.
    pub fn set_mapping_registry(&self, parent: OwnedFd, directory: CString) {
        self.0.mappings.set_registry(parent, directory);
    }

    /// Has connections of sockets in shared directories carried, once.
    pub fn carry_sockets(&self, queue: SocketQueue) {
        let _ = self.0.sockets.set(queue);
    }

    /// Numbers of inodes and of open files that the guest holds.
    pub fn counts(&self) -> (usize, usize) {
        self.0.table.lock().unwrap().counts()
    }

    /// Numbers of owners of locks and of locked ranges.
    #[cfg(test)]
    pub(crate) fn lock_counts(&self) -> (usize, usize) {
        self.0.locks.lock().unwrap().counts()
    }

    #[cfg(test)]
    pub(crate) fn set_lock_limit(&self, limit: usize) {
        *self.0.locks.lock().unwrap() = Locks::new(limit);
    }

    #[cfg(test)]
    pub(crate) fn set_limit(&self, limit: usize) {
        *self.0.table.lock().unwrap() = Table::new(limit, MAX_INODES);
    }

    #[cfg(test)]
    pub(crate) fn set_max_inodes(&self, max: usize) {
        *self.0.table.lock().unwrap() = Table::new(1 << 10, max);
    }

    #[cfg(test)]
    pub(crate) fn descriptors(&self) -> usize {
        self.0.table.lock().unwrap().descriptors()
    }

    #[cfg(test)]
    pub(crate) fn listing_bytes(&self) -> usize {
        self.0.table.lock().unwrap().listing_bytes()
    }

    #[cfg(test)]
    pub(crate) fn inode(&self, nodeid: u64) -> Arc<super::inode::Inode> {
        self.0.table.lock().unwrap().inode(nodeid).unwrap()
    }

    /// Returns the state of the tree, for its operations.
    pub(super) fn shared(&self) -> Arc<Shared> {
        self.0.clone()
    }
}

impl Shared {
    /// Counts a lookup of a bind's file or directory. Returns its inode and attributes.
    pub fn enter(&self, bind: &Arc<Bind>) -> Result<(Arc<super::inode::Inode>, Stat)> {
        let fd = bind.fd.try_clone()?;
        let stat = sys::fstat(fd.as_fd())?;
        Ok((self.table.lock().unwrap().intern(bind, fd, &stat)?, stat))
    }

    /// Returns all binds.
    pub fn binds(&self) -> Vec<Arc<Bind>> {
        let tree = self.tree.lock().unwrap();
        let children = tree.dirs.values().flat_map(|names| names.values());
        children.filter_map(|c| if let Child::Bind(bind) = c { Some(bind.clone()) } else { None }).collect()
    }
}

/// Returns a directory that a process with more rights than the file server's is to share at `path`, on a copy of its
/// mount ([`Terms::detached`]). A file is returned as it is.
pub fn detached(path: &str, fd: OwnedFd, how: MountCopy) -> std::result::Result<OwnedFd, ShareError> {
    let host = |errno: Errno| ShareError::Host { step: format!("share {path:?}"), source: errno.into() };
    let stat = sys::fstat(fd.as_fd()).map_err(host)?;
    if stat.st_mode & libc::S_IFMT == libc::S_IFDIR { own_mount(path, fd, how).map_err(host) } else { Ok(fd) }
}

fn components(path: &str) -> std::result::Result<Vec<&[u8]>, ShareError> {
    let wrong = || ShareError::Path { path: path.to_owned() };
    let names = path.strip_prefix('/').ok_or_else(wrong)?;
    let names: Vec<&[u8]> = names.split('/').map(str::as_bytes).collect();
    if names.iter().all(|name| is_plain(name)) { Ok(names) } else { Err(wrong()) }
}

/// Whether `name` is a single path component that names an entry of its directory.
pub(super) fn is_plain(name: &[u8]) -> bool {
    !(name.is_empty()
        || name.len() > MAX_NAME
        || name == b"."
        || name == b".."
        || name.contains(&b'/')
        || name.contains(&0))
}

#[cfg(test)]
mod tests;
