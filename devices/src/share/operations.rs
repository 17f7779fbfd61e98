//! The operations on the files of a share, for one thread. Each protocol's server calls them.
//!
//! Nodes and open files have numbers ([`OpenFile`]), which a hostile guest may invent: every operation checks them.
//! Names are single components ([`Name`]) and are opened with O_NOFOLLOW in a directory that is pinned by an O_PATH
//! descriptor. No operation resolves a path, so the guest cannot leave a bind.

use std::cell::{Cell, RefCell};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

pub use super::caller::Caller;
use super::credentials::{Acting, Credentials};
use super::errno::{Errno, Result};
use super::handle::Buffers;
use super::handle::Handle;
use super::inode::Inode;
use super::magic_link::MagicLink;
use super::owners::Owners;
use super::sockets::Sockets;
use super::sys;
use super::tree::{Child, ShareTree, Shared, Tree};
use super::unopened::Unopened;
use super::watch::Watch;

/// Unique key of a file in the share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A virtual directory: its inode number.
    Virtual(u64),
    /// A file of the host: device and inode number.
    Host((u64, u64)),
}

/// Owner and mode of a file to create.
#[derive(Clone, Copy, Debug)]
pub struct NewFile {
    /// The file belongs to this user and group.
    pub caller: Caller,
    /// Mode as for open(2) or mknod(2).
    pub mode: u32,
    /// The caller's umask; 0 if the guest has applied it.
    pub umask: u32,
}

/// An open file, as the guest names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFile {
    /// Number of the node that was opened.
    pub node: u64,
    /// Number that the operation returned which opened it.
    pub handle: u64,
}

/// The number of an open file that stands for reading a file or directory which the guest has not opened. No open file
/// has it.
pub const UNOPENED: u64 = 0;

/// The object with a node's number.
pub(super) enum Node {
    /// A virtual directory.
    Virtual(u64),
    /// A file of the host.
    Host(Arc<Inode>),
}

/// The operations on one share tree, for one thread.
pub struct Operations {
    pub(super) shared: Arc<Shared>,
    pub(super) owners: Owners,
    /// Set by the first operation that needs them, because credentials belong to the thread that serves.
    pub(super) credentials: Option<Credentials>,
    /// The directories that are being read.
    pub(super) buffers: Buffers,
    /// Files that the guest reads without having opened them.
    pub(super) unopened: RefCell<Unopened>,
    /// Whose sockets the guest finds.
    pub(super) sockets: Sockets,
    /// What the host changes.
    pub(super) watch: RefCell<Watch>,
    /// The guest can be told what the host changes.
    pub(super) watching: Cell<bool>,
    /// The device of the last removal, and whether its removed files keep a name.
    pub(super) removal: Cell<(u64, bool)>,
    /// There was a removal on such a device.
    pub(super) lingering: Cell<bool>,
    /// As [`Credentials::in_proc_self_fd`].
    pub(super) in_proc_self_fd: Cell<bool>,
    /// The process in the guest that has made the present request.
    caller: Caller,
    /// The guest takes from attributes that a file has no ACL.
    pub(super) tells_acls: bool,
    /// The guest reads files without opening them.
    pub(super) reads_unopened: bool,
}

impl Operations {
    /// Returns the operations on `tree`.
    pub fn new(tree: &ShareTree) -> Operations {
        Operations {
            shared: tree.shared(),
            owners: Owners::of_process(),
            credentials: None,
            buffers: Buffers::default(),
            unopened: RefCell::default(),
            sockets: Sockets::default(),
            watch: RefCell::new(Watch::new()),
            watching: Cell::new(false),
            removal: Cell::default(),
            lingering: Cell::new(false),
            in_proc_self_fd: Cell::new(false),
            caller: Caller::ROOT,
            tells_acls: false,
            reads_unopened: false,
        }
    }

    /// Sets whether the guest checks ACLs, so that attributes say of which files it need not ask for one.
    pub fn set_tells_acls(&mut self, on: bool) {
        self.tells_acls = on;
    }

    /// Sets the process in the guest for which the following operations open, change and write files.
    pub fn set_caller(&mut self, caller: Caller) {
        self.caller = caller;
    }

    /// The process in the guest that has made the present request.
    pub(super) fn caller(&self) -> Caller {
        self.caller
    }

    /// Acts on files as a process in the guest until the guard is dropped.
    pub(super) fn act_as(&mut self, caller: Caller) -> Acting {
        self.credentials().act_as((caller.uid, caller.gid))
    }

    /// Does something again as the caller if root is denied it, as by an NFS server that takes root for nobody.
    pub(super) fn or_as_caller<T>(&self, act: impl Fn() -> Result<T>) -> Result<T> {
        let result = act();
        match (&result, &self.credentials) {
            (Err(Errno(libc::EACCES | libc::EPERM)), Some(credentials)) if self.caller != Caller::ROOT => {
                let _acting = credentials.act_as((self.caller.uid, self.caller.gid));
                act()
            }
            _ => result,
        }
    }

    /// Forgets all nodes and closes all files, when the guest starts or ends a session.
    pub fn clear(&self) {
        self.close_sockets();
        self.unopened.borrow_mut().clear();
        self.shared.locks.lock().unwrap().clear();
        self.shared.table.lock().unwrap().clear();
        self.watch.borrow_mut().clear();
    }

    /// Counts one more lookup of a known node.
    pub fn hold(&self, node: u64) -> Result<()> {
        match self.node(node)? {
            Node::Virtual(id) => self.shared.tree.lock().unwrap().names(id).map(drop),
            Node::Host(_) => self.shared.table.lock().unwrap().hold(node),
        }
    }

    /// Takes back lookups: for each node its number and their count.
    pub fn forget(&self, nodes: impl IntoIterator<Item = (u64, u64)>) {
        for (node, count) in nodes {
            let gone = self.shared.table.lock().unwrap().forget(node, count);
            if gone {
                self.close_socket(node);
                self.unwatch(node);
                self.close_unopened(node);
            }
        }
    }

    /// Takes back one lookup of a node.
    pub fn let_go(&self, node: u64) {
        self.forget([(node, 1)]);
    }

    /// Returns the key and the type (`S_IFMT` bits) of a node.
    pub fn identify(&self, node: u64) -> Result<(Key, u32)> {
        Ok(match self.node(node)? {
            Node::Virtual(id) => (Key::Virtual(Child::Dir(id).ino()), libc::S_IFDIR),
            Node::Host(inode) => (Key::Host(inode.key), inode.kind),
        })
    }

    /// Returns the directory and the name at which the guest last found a node, if the node is still there. If a file
    /// has several names, this is one of them.
    pub fn location(&self, node: u64) -> Result<(u64, CString)> {
        let inode = self.host_node(node, libc::EROFS)?;
        let (dir, name) = inode.location().ok_or(Errno(libc::EBUSY))?;
        let (key, kind, _) = sys::identity(dir.fd()?.as_fd(), &name)?;
        if (key, kind) == (inode.key, inode.kind) { Ok((dir.id, name)) } else { Err(Errno(libc::ESTALE)) }
    }

    /// Returns the object with a node's number.
    pub(super) fn node(&self, node: u64) -> Result<Node> {
        match Tree::is_virtual(node) {
            true => Ok(Node::Virtual(node)),
            false => self.shared.table.lock().unwrap().inode(node).map(Node::Host),
        }
    }

    /// Returns the host file with a node's number. For a virtual directory the error is `refusal`.
    pub(super) fn host_node(&self, node: u64, refusal: i32) -> Result<Arc<Inode>> {
        match self.node(node)? {
            Node::Host(inode) => Ok(inode),
            Node::Virtual(_) => Err(Errno(refusal)),
        }
    }

    /// Returns the directory in which an operation creates, moves or removes an entry.
    pub(super) fn writable_dir(&self, node: u64) -> Result<Arc<Inode>> {
        let inode = self.growable_dir(node)?;
        inode.writable()?;
        Ok(inode)
    }

    /// Returns the directory in which an operation creates a directory or file that may be a mount point.
    pub(super) fn growable_dir(&self, node: u64) -> Result<Arc<Inode>> {
        let inode = self.host_node(node, libc::EROFS)?;
        if !inode.is_dir() {
            return Err(Errno(libc::ENOTDIR));
        }
        inode.growable()?;
        Ok(inode)
    }

    pub(super) fn handle(&self, file: OpenFile) -> Result<Arc<Handle>> {
        match file.handle {
            UNOPENED => self.unopened(file.node),
            handle => self.shared.table.lock().unwrap().handle(handle, file.node),
        }
    }

    /// The credentials of this thread.
    pub(super) fn credentials(&mut self) -> &mut Credentials {
        let proc_self_fd = self.shared.proc_self_fd.as_fd();
        self.credentials.get_or_insert_with(|| {
            let credentials = Credentials::take_over(proc_self_fd);
            self.in_proc_self_fd.set(credentials.in_proc_self_fd());
            credentials
        })
    }

    /// Creates files for `new`'s caller with `mode` until the guard is dropped. Also returns the mode to pass to the
    /// system call.
    pub(super) fn create_as(&mut self, new: &NewFile, mode: u32) -> (Acting, u32) {
        self.credentials().create_as((new.caller.uid, new.caller.gid), new.umask, mode)
    }

    /// Opens an inode for reading or writing. Only regular files and directories, and FIFOs with O_NONBLOCK: opening a
    /// device may have effects, and opening a FIFO may block. [`Inode::fd`] guarantees that the inode's kind is that of
    /// the file.
    pub(super) fn open_inode(&self, inode: &Inode, flags: i32) -> Result<File> {
        let blocks = inode.is_fifo() && flags & libc::O_NONBLOCK == 0;
        match inode.kind {
            libc::S_IFREG | libc::S_IFDIR | libc::S_IFIFO if !blocks => {
                let flags = flags & !libc::O_NOFOLLOW;
                let pin = inode.fd()?;
                let link = MagicLink::new("", pin.as_fd().as_raw_fd());
                let file = File::from(sys::openat(self.shared.proc_self_fd.as_fd(), &link, flags, 0)?);
                // A file that was found again by name may still be a different one. It is closed without being used.
                if pin.is_found_anew() {
                    inode.check_kind(&sys::fstat(file.as_fd())?)?;
                }
                Ok(file)
            }
            libc::S_IFLNK => Err(Errno(libc::ELOOP)),
            _ => Err(Errno(libc::ENXIO)),
        }
    }
}
