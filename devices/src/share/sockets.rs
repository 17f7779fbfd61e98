//! Sockets in shared directories. A socket's file leads to a server in one kernel, which must be the host's: processes of
//! the host and of other machines look there.
//!
//! If a process of the guest connects to a socket that none of its own kernel has bound, the guest's kernel asks the server
//! (`resources/kernel/patches/fuse-sockets.patch`), and the host connects. If a process of the guest binds a name, the
//! server binds a socket of the host to it, as that process, and listens when the process does. The streams are carried by
//! another thread, which the server asks through a [`SocketQueue`]: that thread connects and listens, and never waits.
//!
//! Without that thread, and for other guest kernels, the user is told once for each bind that connections fail.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::CStr;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use super::caller::Caller;
use super::inode::Inode;
use crate::{Encoder, StateError};

mod operations;

/// Limit of the guest's own sockets that are remembered, and of binds of which the user was told.
const MAX_REMEMBERED: usize = 1024;
/// Limit of sockets that are bound for the guest. Further ones are reached by processes of the machine only.
pub const MAX_BOUND: usize = 128;
/// Limit of the connections that wait for a process of the guest to accept them.
const MAX_BACKLOG: u32 = 4096;

/// A connection to a socket of the host, for a process of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Number by which the guest's carrier asks for the connection.
    pub ticket: u32,
    /// User that listens.
    pub uid: u32,
    /// Group that listens.
    pub gid: u32,
}

/// What the thread that carries connections is to do.
#[derive(Debug)]
pub enum SocketTask {
    /// Connect to the socket of a file as a user and group of the guest.
    Connect(OwnedFd, (u32, u32)),
    /// Give up a connection that nobody will ask for.
    Cancel(u32),
    /// Listen on a socket, which was bound to the file with this number, as a user and group of the guest.
    Listen {
        /// The server's number of the file.
        node: u64,
        /// The socket.
        socket: OwnedFd,
        /// Number of connections that may wait.
        backlog: u32,
        /// The user and group.
        user: (u32, u32),
    },
    /// Close the socket that was bound to the file with this number.
    Close(u64),
}

/// A task, and where its result goes. Only connecting has one.
#[derive(Debug)]
pub struct SocketRequest {
    /// The task.
    pub task: SocketTask,
    /// Receives the result.
    pub done: SyncSender<io::Result<Option<Reached>>>,
}

/// The end of the thread that carries connections.
#[derive(Debug)]
pub struct SocketRequests {
    /// The requests.
    pub requests: Receiver<SocketRequest>,
    /// Has a byte for each request.
    pub wake: PipeReader,
}

/// The server's end.
#[derive(Debug)]
pub struct SocketQueue {
    requests: Sender<SocketRequest>,
    wake: PipeWriter,
}

/// Returns both ends of a queue of requests.
pub fn socket_queue() -> io::Result<(SocketQueue, SocketRequests)> {
    let (wake, writer) = io::pipe()?;
    let (send, requests) = channel();
    Ok((SocketQueue { requests: send, wake: writer }, SocketRequests { requests, wake }))
}

impl SocketQueue {
    /// Has a task done. The other thread waits for nothing, so this takes no longer than a turn of its loop.
    /// Without a thread nobody can connect.
    pub fn ask(&self, task: SocketTask) -> io::Result<Option<Reached>> {
        let (done, result) = sync_channel(1);
        let gone = || io::Error::from_raw_os_error(libc::ECONNREFUSED);
        self.requests.send(SocketRequest { task, done }).map_err(|_| gone())?;
        (&self.wake).write_all(&[0]).map_err(|_| gone())?;
        result.recv().map_err(|_| gone())?
    }
}

/// The sockets of a share.
#[derive(Default)]
pub(super) struct Sockets {
    /// The guest's kernel asks, and a thread carries connections.
    carried: Cell<bool>,
    /// What was bound for the guest, by the number of the file.
    bound: RefCell<BTreeMap<u64, OwnedFd>>,
    /// Device and inode number of the sockets that the guest has made, oldest first.
    own: RefCell<VecDeque<(u64, u64)>>,
    /// Numbers of the binds of which the user was told.
    told: RefCell<BTreeSet<u64>>,
}

impl Sockets {
    /// The guest has made a file.
    pub fn made(&self, inode: &Inode, bound: Option<OwnedFd>) {
        if let Some(socket) = bound {
            self.bound.borrow_mut().insert(inode.id, socket);
        } else if inode.kind == libc::S_IFSOCK {
            let mut own = self.own.borrow_mut();
            own.push_back(inode.key);
            if own.len() > MAX_REMEMBERED {
                own.pop_front();
            }
        }
    }

    /// The guest looks a file up. Tells the user if it is a socket of another kernel whose connections are not carried;
    /// returns whether it did.
    pub fn found(&self, inode: &Inode, name: &CStr) -> bool {
        let other = inode.kind == libc::S_IFSOCK
            && !self.carried.get()
            && !inode.bind.owned
            && !self.own.borrow().contains(&inode.key);
        if !other || !self.tells(inode) {
            return false;
        }
        log::warn!(
            "the container looks at the socket {name:?} in a shared directory: connections to servers of the host or of other \
             machines are refused there (ECONNREFUSED). Bind the socket itself"
        );
        true
    }

    /// Writes whether the guest asks for connections.
    ///
    /// # Errors
    ///
    /// A process of the guest has bound a socket, which processes of the host may use.
    pub fn save(&self, state: &mut Encoder) -> std::result::Result<(), StateError> {
        if !self.bound.borrow().is_empty() {
            return Err(StateError::Refused("the container has bound a socket in a shared directory".into()));
        }
        state.u8(self.carried.get().into());
        Ok(())
    }

    /// Whether the user is to be told now of a socket's bind.
    fn tells(&self, inode: &Inode) -> bool {
        let mut told = self.told.borrow_mut();
        told.len() < MAX_REMEMBERED && told.insert(inode.bind.id)
    }

    /// Whether a file is a socket whose connections with other kernels are carried. `device` is that of the file.
    pub(super) fn shares(&self, inode: &Inode, device: u64) -> bool {
        inode.kind == libc::S_IFSOCK && self.carries(inode, device)
    }

    /// Whether connections of the sockets of a bind are carried.
    fn carries(&self, inode: &Inode, device: u64) -> bool {
        self.carried.get() && !(inode.bind.owned && device == inode.bind.key.0)
    }
}

fn user(caller: Caller) -> (u32, u32) {
    (caller.uid, caller.gid)
}

fn type_name(kind: u32) -> &'static str {
    match kind as i32 {
        libc::SOCK_DGRAM => "SOCK_DGRAM",
        libc::SOCK_SEQPACKET => "SOCK_SEQPACKET",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::thread::{self, JoinHandle};

    use tempfile::TempDir;

    use super::super::names::Name;
    use super::super::testing::scratch;
    use super::super::{ROOT_ID, Terms};
    use super::*;
    use crate::share::errno::{Errno, Result};
    use crate::share::operations::{NewFile, Operations};

    /// The operations on a share, and a thread in place of the one that carries connections, which returns what it was asked.
    struct Carried {
        share: Operations,
        dir: TempDir,
        rootfs: u64,
        thread: JoinHandle<Vec<String>>,
    }

    impl Carried {
        fn new(terms: Terms) -> Carried {
            let (tree, dir) = scratch(terms);
            let (queue, requests) = socket_queue().unwrap();
            tree.carry_sockets(queue);
            let share = Operations::new(&tree);
            share.set_asks_for_sockets(true);
            let c1 = find(&share, ROOT_ID, "c1");
            let rootfs = find(&share, c1, "rootfs");
            let serve = |SocketRequest { task, done }| {
                let _ = done.send(Ok(Some(Reached { ticket: 5, uid: 1, gid: 2 })));
                match task {
                    SocketTask::Connect(_, user) => format!("connect as {user:?}"),
                    SocketTask::Cancel(ticket) => format!("cancel {ticket}"),
                    SocketTask::Listen { backlog, user, .. } => format!("listen {backlog} as {user:?}"),
                    SocketTask::Close(_) => "close".to_owned(),
                }
            };
            let thread = thread::spawn(move || {
                let SocketRequests { requests, wake: _wake } = requests;
                requests.iter().map(serve).collect()
            });
            Carried { share, dir, rootfs, thread }
        }

        /// Binds a socket as a process of the guest, with this umask.
        fn bind(&mut self, name: &str, umask: u32) -> Result<u64> {
            let mode = libc::S_IFSOCK | 0o777 & !umask;
            let new = NewFile { caller: Caller::ROOT, mode, umask };
            let name = CString::new(name).unwrap();
            let name = Name::new(&name).unwrap();
            let entry = self.share.mknod(self.rootfs, name, &new, libc::SOCK_STREAM as u32)?;
            Ok(entry.node)
        }

        /// Returns what the thread was asked.
        fn asked(self) -> Vec<String> {
            self.share.close_sockets();
            drop(self.share);
            self.thread.join().unwrap()
        }
    }

    fn find(share: &Operations, at: u64, name: &str) -> u64 {
        share.lookup(at, Name::new(&CString::new(name).unwrap()).unwrap()).unwrap().node
    }

    #[test]
    fn a_name_is_bound_to_a_socket_until_the_guest_closes_or_forgets_it() {
        let mut carried = Carried::new(Terms::default());
        let node = carried.bind("s", 0o027).unwrap();
        let path = carried.dir.path().join("s");
        let file = fs::metadata(&path).unwrap();
        assert_eq!(file.mode(), libc::S_IFSOCK | 0o750);
        // It is one for streams, on which nobody listens.
        assert_eq!(UnixStream::connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(carried.bind("s", 0).unwrap_err(), Errno(libc::EEXIST));
        carried.share.listen_on_socket(node, u32::MAX).unwrap();
        carried.share.close_socket(node);
        carried.share.close_socket(node);
        assert_eq!(carried.share.listen_on_socket(node, 1), Err(Errno(libc::ENOENT)));
        let other = carried.bind("t", 0).unwrap();
        carried.share.let_go(other);
        assert_eq!(carried.asked(), ["listen 4096 as (0, 0)", "close", "close"]);
    }

    #[test]
    fn a_share_with_a_bound_socket_is_not_saved() {
        let mut carried = Carried::new(Terms::default());
        let node = carried.bind("s", 0).unwrap();
        let refused = carried.share.save(&mut Encoder::default()).unwrap_err();
        assert!(refused.to_string().contains("bound a socket"), "{refused}");
        carried.share.close_socket(node);
        carried.share.save(&mut Encoder::default()).unwrap();
    }

    #[test]
    fn beyond_the_limit_a_name_is_a_plain_file() {
        let mut carried = Carried::new(Terms::default());
        for number in 0..=MAX_BOUND {
            carried.bind(&number.to_string(), 0).unwrap();
        }
        assert_eq!(carried.share.sockets.bound.borrow().len(), MAX_BOUND);
        let long = "n".repeat(200);
        carried.share.close_sockets();
        carried.bind(&long, 0).unwrap();
        assert!(carried.share.sockets.bound.borrow().is_empty());
        assert!(fs::metadata(carried.dir.path().join(long)).unwrap().file_type().is_socket());
    }

    #[test]
    fn only_streams_and_only_outside_of_the_root_are_carried() {
        let mut carried = Carried::new(Terms::default());
        let node = carried.bind("s", 0).unwrap();
        let reached = carried.share.connect_socket(node, libc::SOCK_STREAM as u32).unwrap();
        assert_eq!(reached, Reached { ticket: 5, uid: 1, gid: 2 });
        carried.share.cancel_connection(5).unwrap();
        let refused = Err(Errno(libc::ECONNREFUSED));
        for kind in [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET, -1] {
            assert_eq!(carried.share.connect_socket(node, kind as u32), refused);
        }
        fs::write(carried.dir.path().join("file"), "").unwrap();
        let file = find(&carried.share, carried.rootfs, "file");
        assert_eq!(carried.share.connect_socket(file, libc::SOCK_STREAM as u32), refused);
        assert_eq!(carried.asked(), ["connect as (0, 0)", "cancel 5", "close"]);
        let mut owned = Carried::new(Terms { owned: true, ..Terms::default() });
        let node = owned.bind("s", 0).unwrap();
        assert_eq!(owned.share.connect_socket(node, libc::SOCK_STREAM as u32), refused);
        assert!(owned.asked().is_empty());
    }

    #[test]
    fn the_user_is_told_once_of_a_socket_that_the_guest_has_not_made() {
        let (tree, dir) = scratch(Terms::default());
        let mut share = Operations::new(&tree);
        let c1 = find(&share, ROOT_ID, "c1");
        let rootfs = find(&share, c1, "rootfs");
        let new = NewFile { caller: Caller::ROOT, mode: libc::S_IFSOCK | 0o600, umask: 0 };
        share.mknod(rootfs, Name::new(c"own").unwrap(), &new, 0).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        for name in ["own", "file"] {
            find(&share, rootfs, name);
            assert!(share.sockets.told.borrow().is_empty(), "{name}");
        }
        let _listener = UnixListener::bind(dir.path().join("other")).unwrap();
        let node = find(&share, rootfs, "other");
        assert_eq!(share.sockets.told.borrow().len(), 1);
        let inode = tree.inode(node);
        assert!(!share.sockets.found(&inode, c"other"));
    }
}
