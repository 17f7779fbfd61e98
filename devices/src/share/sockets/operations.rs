//! What the guest asks of the sockets in shared directories.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::{MAX_BACKLOG, MAX_BOUND, Reached, SocketTask, type_name, user};
use crate::share::errno::{Errno, Result};
use crate::share::inode::Inode;
use crate::share::operations::{NewFile, Operations};
use crate::share::sys;

impl Operations {
    /// Sets whether the guest asks for connections to sockets. They are carried if there is a thread for that.
    pub fn set_asks_for_sockets(&self, on: bool) {
        self.sockets.carried.set(on && self.shared.sockets.get().is_some());
    }

    fn ask(&self, task: SocketTask) -> Result<Option<Reached>> {
        Ok(self.shared.sockets.get().ok_or(Errno(libc::ECONNREFUSED))?.ask(task)?)
    }

    /// Connects to the socket of a node. EAGAIN: it has not accepted enough earlier connections, or the guest has too many.
    pub fn connect_socket(&self, node: u64, kind: u32) -> Result<Reached> {
        let refused = Errno(libc::ECONNREFUSED);
        let inode = self.host_node(node, libc::ECONNREFUSED)?;
        if !self.sockets.shares(&inode, inode.key.0) {
            return Err(refused);
        }
        if kind != libc::SOCK_STREAM as u32 {
            if self.sockets.tells(&inode) {
                log::warn!(
                    "the container connects to a socket of the host or of another machine with a socket of type {}: only \
                     those of type SOCK_STREAM are carried (ECONNREFUSED)",
                    type_name(kind)
                );
            }
            return Err(refused);
        }
        let pin = inode.fd()?;
        let file = pin.as_fd().try_clone_to_owned()?;
        inode.check_kind(&sys::fstat(file.as_fd())?)?;
        self.ask(SocketTask::Connect(file, user(self.caller())))?.ok_or(refused)
    }

    /// Gives up a connection for which nobody will ask.
    pub fn cancel_connection(&self, ticket: u32) -> Result<()> {
        self.ask(SocketTask::Cancel(ticket)).map(drop)
    }

    /// Binds a socket of the host to a new name, if `kind` is that of a socket for streams whose connections are carried.
    /// Without a result the file is to be made in another way.
    pub(in crate::share) fn bind_socket(
        &mut self,
        dir: &Inode,
        name: &CStr,
        new: &NewFile,
        kind: u32,
    ) -> Result<Option<OwnedFd>> {
        let is_stream = new.mode & libc::S_IFMT == libc::S_IFSOCK && kind == libc::SOCK_STREAM as u32;
        if !is_stream || !self.sockets.carries(dir, dir.key.0) {
            return Ok(None);
        }
        self.credentials();
        let full = self.sockets.bound.borrow().len() >= MAX_BOUND;
        if full || !self.in_proc_self_fd.get() {
            let why = if full { "limit of sockets reached" } else { "no directory of descriptors" };
            log::warn!("socket {name:?} in a shared directory is reached from its machine only: {why}");
            return Ok(None);
        }
        let pin = dir.fd()?;
        let mut path = format!("{}/", pin.as_fd().as_raw_fd()).into_bytes();
        path.extend_from_slice(name.to_bytes());
        let socket = sys::socket::stream()?;
        // bind(2) takes no mode. The guest's process has applied its umask to the one that it wants.
        let umask = new.umask | !new.mode & 0o777;
        let (creating, _) = self.create_as(&NewFile { umask, ..*new }, 0);
        let bound = sys::socket::bind(socket.as_fd(), &path);
        drop(creating);
        match bound {
            Ok(()) => Ok(Some(socket)),
            Err(Errno(libc::EADDRINUSE)) => Err(Errno(libc::EEXIST)),
            Err(Errno(libc::ENAMETOOLONG)) => {
                log::warn!(
                    "socket {name:?} in a shared directory is reached from its machine only: name too long"
                );
                Ok(None)
            }
            Err(errno) => Err(errno),
        }
    }

    /// Listens on the socket that was bound to a node. ENOENT if none was.
    pub fn listen_on_socket(&self, node: u64, backlog: u32) -> Result<()> {
        let socket = match self.sockets.bound.borrow().get(&node) {
            Some(socket) => socket.try_clone()?,
            None => return Err(Errno(libc::ENOENT)),
        };
        let backlog = backlog.min(MAX_BACKLOG);
        self.ask(SocketTask::Listen { node, socket, backlog, user: user(self.caller()) }).map(drop)
    }

    /// Closes the socket that was bound to a node. Its file stays.
    pub fn close_socket(&self, node: u64) {
        let bound = self.sockets.bound.borrow_mut().remove(&node);
        if bound.is_some()
            && let Err(errno) = self.ask(SocketTask::Close(node))
        {
            log::debug!("file server: close a socket: {}", io::Error::from(errno));
        }
    }

    /// Closes all sockets that were bound for the guest.
    pub(in crate::share) fn close_sockets(&self) {
        let nodes: Vec<u64> = self.sockets.bound.borrow().keys().copied().collect();
        nodes.into_iter().for_each(|node| self.close_socket(node));
    }
}
