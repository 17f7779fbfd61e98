//! What the agent keeps until the first connection with a socket in a shared directory: a listener, to which the guest's
//! kernel connects processes that connect to sockets of the host, and the port, on which the host asks for connections to
//! sockets of the guest. A process of their own carries them from then on.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::container::paths;
use crate::error::{Error, Step};
use crate::ports;
use crate::sys;

/// Limit of connections that wait to be accepted: more than the host makes.
const BACKLOG: i32 = 256;

/// The listener and the port.
#[derive(Debug)]
pub struct Gateway {
    pub(super) listener: OwnedFd,
    pub(super) port: OwnedFd,
}

impl Gateway {
    /// Opens both. `None` if the kernel does not ask for connections to sockets of the host.
    pub fn open() -> Result<Option<Gateway>, Error> {
        let path = paths::GATEWAY;
        let listen = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
            rustix::net::listen(&socket, BACKLOG)?;
            Ok(socket)
        };
        let listener = listen().step("listen on", path)?;
        match sys::carrier::carry(listener.as_fd()) {
            Err(Errno::NOTTY) => return Ok(None),
            done => done.step("carry connections of", path)?,
        };
        Ok(Some(Gateway { listener, port: ports::open_sockets()? }))
    }

    /// Both descriptors.
    pub fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.listener.as_fd(), self.port.as_fd()]
    }

    /// Whether there is something to carry. The port also has an event when the host opens it.
    pub fn is_asked(&self) -> bool {
        let mut fds = self.fds().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok() && fds.iter().any(|fd| fd.revents().contains(PollFlags::IN))
    }
}
