//! The share: one virtual, read-only root whose names are bound to open directories and files of the host.
//!
//! ```text
//! /                      virtual
//! └── c1/                virtual
//!     ├── rootfs         bound to a directory: a file system of its own for the guest (FUSE_SUBMOUNTS)
//!     └── mounts/        virtual
//!         ├── 0          bound to a directory
//!         └── 1          bound to a single file
//! ```
//!
//! A directory is served on a mount of its own, a detached copy of the host's without devices and set-user-ID, so that
//! no fault of the server can open a device; what the host mounts there later is not in it. The kernel makes one for a
//! process with CAP_SYS_ADMIN in its mount namespace. Without one, and where it is asked for later mounts, the server
//! has the host's own mount, and its checks of a file's kind stand alone.
//!
//! Nothing is mounted where others see it, so nothing is left on the host. A [`ShareTree`] is a handle: its clones see one tree, and
//! what one of them binds or unbinds the guest sees at once (or when its negative lookup runs out, within
//! [`super::attr::VALID`]). After [`ShareTree::unbind`] the server holds no descriptor of the share, except those of a
//! request that is at work that moment.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::FileServer;
use super::errno::{Errno, Result};
use super::nodes::NodePolicy;
use super::server::ShareServer;
use super::sys::{self, Stat};
use super::table::{MAX_INODES, Table};
use super::wire::ROOT_ID;

/// The longest name in a path, as on Linux.
pub const MAX_NAME: usize = 255;
/// Descriptors of the process that the guest cannot use up: the monitor's own.
const RESERVED_DESCRIPTORS: u64 = 256;
/// However many descriptors the process may have, a guest gets no more.
const MAX_DESCRIPTORS: u64 = 1 << 20;
/// Marks the number of a virtual directory.
const VIRTUAL: u64 = 1 << 63;

/// Why a share could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The path is not absolute, or a component is empty, `.`, `..`, too long or has a NUL.
    #[error("share path {path:?} is not an absolute path of plain names")]
    Path {
        /// The path.
        path: String,
    },
    /// The name is taken, or the path leads through something that is no virtual directory.
    #[error("share path {path:?} is taken")]
    Taken {
        /// The path.
        path: String,
    },
    /// Nothing is bound there.
    #[error("share path {path:?} is not bound")]
    Unbound {
        /// The path.
        path: String,
    },
    /// What is to be shared is neither a directory nor a regular file.
    #[error("share {path:?}: neither a directory nor a regular file")]
    Kind {
        /// The path.
        path: String,
    },
    /// A host call failed.
    #[error("{step}")]
    Host {
        /// What was attempted.
        step: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// On whose terms a guest uses what is bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Changes are refused.
    pub read_only: bool,
    /// The device nodes that it may make.
    pub nodes: NodePolicy,
    /// What the host mounts below a directory later belongs to it. This takes the host's own mount.
    pub later_mounts: bool,
}

impl Terms {
    /// Changes are refused.
    pub fn read_only() -> Terms {
        Terms { read_only: true, ..Terms::default() }
    }
}

/// A name of the share, bound to a file or directory of the host.
pub(in crate::virtio) struct Bind {
    /// Which one.
    pub id: u64,
    /// Changes are refused.
    pub read_only: bool,
    /// The device nodes that may be made.
    pub nodes: NodePolicy,
    /// Empty directories and files may be made all the same.
    pub mount_points: AtomicBool,
    /// Device and number on the host.
    pub key: (u64, u64),
    /// A directory, not a single file.
    pub is_dir: bool,
    /// Taken away: nothing of it may be found or opened any more. Changes under the table's lock.
    pub revoked: AtomicBool,
    fd: OwnedFd,
}

/// What a name in a virtual directory stands for.
#[derive(Clone)]
pub(super) enum Child {
    /// Another virtual directory, by its number in the protocol.
    Dir(u64),
    /// Something of the host.
    Bind(Arc<Bind>),
}

impl Child {
    /// The inode number that a program in the guest sees, unique among the virtual file system's.
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
    /// The number is one of a virtual directory, whether or not it still exists.
    pub fn is_virtual(id: u64) -> bool {
        id == ROOT_ID || id & VIRTUAL != 0
    }

    /// The names in a virtual directory.
    pub fn names(&self, id: u64) -> Result<&Names> {
        self.dirs.get(&id).ok_or(Errno(libc::ESTALE))
    }

    /// What `name` stands for in a virtual directory.
    pub fn child(&self, id: u64, name: &[u8]) -> Result<Child> {
        self.names(id)?.get(name).cloned().ok_or(Errno(libc::ENOENT))
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The directory `parents` lead to, made where it is missing; `None` if something bound is in the way.
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

    /// What is bound at a path.
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

    /// Takes a bound name away, and every virtual directory that is empty without it.
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

/// What all servers and handles of one tree share.
pub(super) struct Shared {
    /// The virtual directories.
    pub tree: Mutex<Tree>,
    /// Inodes and open files. Whoever locks both locks the tree first.
    pub table: Mutex<Table>,
    /// The guest's `sync` reaches the host's disks.
    pub host_sync: AtomicBool,
    /// /proc/self/fd, through which O_PATH descriptors are opened for use.
    pub proc_self_fd: OwnedFd,
}

/// A tree of shares that can change while it is served. Clones are handles on one tree.
#[derive(Clone)]
pub struct ShareTree(Arc<Shared>);

impl ShareTree {
    /// Returns an empty tree. Raises the process's limit of open descriptors as far as it goes, since each file that the
    /// guest knows costs one.
    pub fn new() -> std::result::Result<ShareTree, ShareError> {
        let proc_self_fd = sys::open_proc_self_fd().map_err(|errno| ShareError::Host {
            step: "open /proc/self/fd".to_owned(),
            source: errno.into(),
        })?;
        let limit = sys::raise_descriptor_limit(MAX_DESCRIPTORS).min(MAX_DESCRIPTORS);
        let limit = limit.saturating_sub(RESERVED_DESCRIPTORS).max(limit / 2) as usize;
        Ok(ShareTree(Arc::new(Shared {
            tree: Mutex::new(Tree { dirs: HashMap::from([(ROOT_ID, Names::new())]), next: ROOT_ID }),
            table: Mutex::new(Table::new(limit, MAX_INODES)),
            host_sync: AtomicBool::new(true),
            proc_self_fd,
        })))
    }

    /// Binds `path` (absolute, in the share) to the directory or regular file behind `fd`, best an O_PATH descriptor.
    ///
    /// Missing parents become virtual directories. What the host has mounted below a directory is part of the share.
    pub fn bind(&self, path: &str, fd: OwnedFd, terms: Terms) -> std::result::Result<(), ShareError> {
        let names = components(path)?;
        let host = |errno: Errno| ShareError::Host { step: format!("share {path:?}"), source: errno.into() };
        let stat = sys::fstat(fd.as_fd()).map_err(host)?;
        let kind = stat.st_mode & libc::S_IFMT;
        if kind != libc::S_IFDIR && kind != libc::S_IFREG {
            return Err(ShareError::Kind { path: path.to_owned() });
        }
        // A file is what its descriptor refers to, whatever becomes of its name: only names below a directory can lead
        // to a device.
        let is_dir = kind == libc::S_IFDIR;
        let fd = if is_dir && !terms.later_mounts { own_mount(path, fd).map_err(host)? } else { fd };
        let taken = || ShareError::Taken { path: path.to_owned() };
        let mut tree = self.0.tree.lock().unwrap();
        let (name, parents) = names.split_last().ok_or_else(taken)?;
        let dir = tree.make_dirs(parents).ok_or_else(taken)?;
        let bind = Bind {
            id: tree.number(),
            read_only: terms.read_only,
            nodes: terms.nodes,
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

    /// Takes a bound path away: the guest finds it no more, and what it still has open there answers ESTALE or EBADF.
    pub fn unbind(&self, path: &str) -> std::result::Result<(), ShareError> {
        let names = components(path)?;
        let mut tree = self.0.tree.lock().unwrap();
        let bind = tree.remove(&names).ok_or_else(|| ShareError::Unbound { path: path.to_owned() })?;
        self.0.table.lock().unwrap().purge(&bind);
        Ok(())
    }

    /// Says whether the guest may make directories and empty files in a read-only share, for what is to be mounted there;
    /// it can change nothing else. Not at first.
    pub fn allow_mount_points(&self, path: &str, on: bool) -> std::result::Result<(), ShareError> {
        let names = components(path)?;
        let tree = self.0.tree.lock().unwrap();
        let bind = tree.find(&names).ok_or_else(|| ShareError::Unbound { path: path.to_owned() })?;
        bind.mount_points.store(on, Ordering::Relaxed);
        Ok(())
    }

    /// Says whether the guest's sync(2) and umount(2) make the host write its file systems to disk. On at first;
    /// off before a guest is shut down: its data is in the host's page cache, which outlives it.
    pub fn set_host_sync(&self, on: bool) {
        self.0.host_sync.store(on, Ordering::Relaxed);
    }

    /// How many inodes and how many open files the guest holds.
    pub fn counts(&self) -> (usize, usize) {
        self.0.table.lock().unwrap().counts()
    }

    #[cfg(test)]
    pub(super) fn set_limit(&self, limit: usize) {
        *self.0.table.lock().unwrap() = Table::new(limit, MAX_INODES);
    }

    #[cfg(test)]
    pub(super) fn set_max_inodes(&self, max: usize) {
        *self.0.table.lock().unwrap() = Table::new(1 << 10, max);
    }

    #[cfg(test)]
    pub(super) fn descriptors(&self) -> usize {
        self.0.table.lock().unwrap().descriptors()
    }

    #[cfg(test)]
    pub(super) fn listing_bytes(&self) -> usize {
        self.0.table.lock().unwrap().listing_bytes()
    }

    #[cfg(test)]
    pub(super) fn inode(&self, nodeid: u64) -> Arc<super::inode::Inode> {
        self.0.table.lock().unwrap().inode(nodeid).unwrap()
    }

    /// Returns a server of this tree, for one thread.
    pub fn server(&self) -> Box<dyn FileServer> {
        Box::new(ShareServer::new(self.0.clone()))
    }

    /// Returns the lower half of a server of this tree, for another protocol than FUSE.
    pub(in crate::virtio) fn operations(&self) -> ShareServer {
        ShareServer::new(self.0.clone())
    }
}

impl Shared {
    /// Counts a lookup of a share's own file or directory; returns its inode and attributes.
    pub fn enter(&self, bind: &Arc<Bind>) -> Result<(Arc<super::inode::Inode>, Stat)> {
        let fd = bind.fd.try_clone()?;
        let stat = sys::fstat(fd.as_fd())?;
        Ok((self.table.lock().unwrap().intern(bind, fd, &stat)?, stat))
    }

    /// Every share there is.
    pub fn binds(&self) -> Vec<Arc<Bind>> {
        let tree = self.tree.lock().unwrap();
        let children = tree.dirs.values().flat_map(|names| names.values());
        children.filter_map(|c| if let Child::Bind(bind) = c { Some(bind.clone()) } else { None }).collect()
    }
}

impl Bind {
    /// The descriptor it was bound to.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Returns a directory on a mount of its own, or as it is where the kernel makes none: for a process without the right
/// (EPERM), for a mount that cannot be bound or is another namespace's (EINVAL), before Linux 5.12 (ENOSYS).
fn own_mount(path: &str, fd: OwnedFd) -> Result<OwnedFd> {
    match sys::clone_mount(fd.as_fd()) {
        Err(errno @ Errno(libc::EPERM | libc::EINVAL | libc::ENOSYS)) => {
            log::debug!("share {path:?} on the host's mount: {}", std::io::Error::from(errno));
            Ok(fd)
        }
        cloned => cloned,
    }
}

fn components(path: &str) -> std::result::Result<Vec<&[u8]>, ShareError> {
    let wrong = || ShareError::Path { path: path.to_owned() };
    let names = path.strip_prefix('/').ok_or_else(wrong)?;
    let names: Vec<&[u8]> = names.split('/').map(str::as_bytes).collect();
    if names.iter().all(|name| is_plain(name)) { Ok(names) } else { Err(wrong()) }
}

/// A name that stands for an entry of its directory and nothing else.
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
