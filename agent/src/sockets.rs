//! Connections between sockets of the guest and of the host, which a process of the agent carries through a port.
//!
//! For a bind mount of a listening socket (`-v /run/docker.sock:/run/docker.sock`) the agent listens on a socket of its own,
//! with the owner and the mode of the host's, and bind-mounts that into the container. The process accepts the connections,
//! and the host connects to its socket as the connecting user.
//!
//! For sockets in shared directories the guest's kernel and the host's file server agree
//! (`resources/kernel/patches/fuse-sockets.patch`). The process is the other end in the guest ([`Gateway`]).

use alloc::format;
use alloc::vec::Vec;

use agent_proto::payload::Mount;
use agent_proto::sockets::{self, CONNECTIONS_MAX, Frame, OF_HOST, OUT_MAX};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType};
use rustix::thread::{CapabilitiesSecureBits, set_capabilities_secure_bits};

use crate::container::paths;
use crate::error::{Error, Step};
use crate::sys::{self, Fork};

mod connection;
mod gateway;

use connection::{Arrival, Connection, as_user};
pub use gateway::Gateway;

/// Limit of connections that wait to be accepted, as most servers have.
const BACKLOG: i32 = 128;
/// Limit of bytes that are read from the port at a time.
const READ: usize = 64 << 10;
/// Time between two attempts to connect to a server that has not accepted enough connections. There is no event for that.
const AGAIN_NANOSECONDS: i64 = 10_000_000;
/// Seconds for which the end of the pod waits for what is under way.
const FINISH_SECONDS: i64 = 2;

/// The process that carries connections.
#[derive(Debug)]
pub struct Sockets(OwnedFd);

impl Sockets {
    /// Waits until the process has carried what the containers' processes, which have all exited, had sent.
    pub fn finish(self) {
        let _ = rustix::net::shutdown(&self.0, Shutdown::Write);
        let timeout = Timespec { tv_sec: FINISH_SECONDS, tv_nsec: 0 };
        let _ = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout));
    }
}

/// Carries the connections of mounted sockets, and those of sockets in shared directories.
pub fn carry_with(mut listeners: Vec<(Listens, OwnedFd)>, gateway: Gateway) -> Result<Sockets, Error> {
    listeners.push((Listens::ForKernel, gateway.listener));
    carry(listeners, gateway.port)
}

/// Starts the process that carries connections.
pub fn carry(listeners: Vec<(Listens, OwnedFd)>, port: OwnedFd) -> Result<Sockets, Error> {
    let (ours, agent) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .step("create", "socket pair")?;
    match sys::fork(0, None).step("start", "process for sockets")? {
        Fork::Child => {
            let keep = listeners.iter().map(|(_, fd)| fd).chain([&port, &agent]);
            sys::close_others(keep.map(|fd| Some(fd.as_fd())));
            let _ = rustix::thread::set_name(c"sockets");
            // The kernel connects it as another user to sockets of the guest, which takes its capabilities.
            let _ = set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP);
            let _ = Carrier::new(listeners, port, agent).carry();
            sys::exit(1)
        }
        Fork::Parent { .. } => Ok(Sockets(ours)),
    }
}

/// Listens on a socket with the attributes in the mount's data: `MODE UID GID`, the mode in octal digits.
pub fn listen(mount: &Mount) -> Result<(Listens, OwnedFd), Error> {
    let bad = || Error::bad_request(format!("mount {}: invalid socket", mount.destination));
    let number: u16 = mount.source.parse().map_err(|_| bad())?;
    let mut words = mount.data.split(' ');
    let mode = words.next().and_then(|word| u32::from_str_radix(word, 8).ok()).ok_or_else(bad)?;
    let mut id = || words.next().and_then(|word| word.parse::<u32>().ok()).ok_or_else(bad);
    let (uid, gid) = (id()?, id()?);
    let path = paths::socket(&mount.source);
    let listener = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path.as_str())?)?;
        rustix::fs::chmod(path.as_str(), Mode::from_raw_mode(mode & 0o777))?;
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::chownat(CWD, path.as_str(), Some(uid), Some(gid), rustix::fs::AtFlags::empty())?;
        // SO_PEERCRED of a client names the user that listens: on the host most often the owner of the socket.
        as_user(uid, gid, || rustix::net::listen(&socket, BACKLOG))?;
        Ok(socket)
    };
    listener().step("listen on", &path).map(|socket| (Listens::ForMount(number), socket))
}

/// For what a socket listens.
#[derive(Clone, Copy)]
pub enum Listens {
    /// For connections to the mounted socket with this number.
    ForMount(u16),
    /// For connections that the host has made for the kernel.
    ForKernel,
}

struct Carrier {
    listeners: Vec<(Listens, OwnedFd)>,
    port: OwnedFd,
    /// At its end the agent waits for what is under way.
    agent: OwnedFd,
    ending: bool,
    connections: Vec<Connection>,
    /// Number of the last connection.
    last: u32,
    /// Frames for the host.
    outgoing: Vec<u8>,
}

impl Carrier {
    fn new(listeners: Vec<(Listens, OwnedFd)>, port: OwnedFd, agent: OwnedFd) -> Carrier {
        Carrier {
            listeners,
            port,
            agent,
            ending: false,
            connections: Vec::new(),
            last: 0,
            outgoing: Vec::new(),
        }
    }

    /// Carries connections until the port fails, or until all are over after the agent has said that it waits.
    fn carry(mut self) -> Result<(), Errno> {
        let mut incoming = Vec::new();
        loop {
            let ready = self.wait()?;
            let (own, connections) = ready.split_at(self.listeners.len() + 2);
            let mut at = connections.iter();
            let Carrier { connections, outgoing, .. } = &mut self;
            connections.retain_mut(|connection| connection.serve(*at.next().unwrap_or(&false), outgoing));
            if own[0] {
                match sys::read_append(self.port.as_fd(), &mut incoming, READ) {
                    Ok(0) => return Ok(()),
                    Ok(_) => self.take(&mut incoming)?,
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            self.ending |= own[1];
            for at in 0..self.listeners.len() {
                if own[at + 2] {
                    self.accept(at);
                }
            }
            self.send()?;
            let idle = self.connections.is_empty() && self.outgoing.is_empty();
            if self.ending && idle && !own[2..].contains(&true) {
                return Ok(());
            }
        }
    }

    /// Waits for the port, the listeners and the connections. Returns which are ready.
    fn wait(&self) -> Result<Vec<bool>, Errno> {
        let full = self.outgoing.len() >= OUT_MAX;
        let port = PollFlags::IN | if self.outgoing.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let agent = if self.ending { PollFlags::empty() } else { PollFlags::IN };
        let mut fds: Vec<PollFd<'_>> =
            [PollFd::new(&self.port, port), PollFd::new(&self.agent, agent)].into();
        let mounted = self.connections.iter().filter(|one| one.mounted).count();
        fds.extend(self.listeners.iter().map(|(what, fd)| {
            let waits = full || matches!(what, Listens::ForMount(_)) && mounted >= CONNECTIONS_MAX;
            PollFd::new(fd, if waits { PollFlags::empty() } else { PollFlags::IN })
        }));
        let watched: Vec<Option<PollFlags>> =
            self.connections.iter().map(|connection| connection.events(full)).collect();
        let events = self.connections.iter().zip(&watched);
        fds.extend(events.filter_map(|(one, events)| Some(PollFd::new(one.socket.as_ref()?, (*events)?))));
        // The end is seen when nothing is ready any more.
        let idle = self.ending && self.connections.is_empty() && self.outgoing.is_empty();
        let again = self.connections.iter().any(Connection::is_arriving);
        let tv_nsec = if idle { 0 } else { AGAIN_NANOSECONDS };
        match poll(&mut fds, (idle || again).then_some(&Timespec { tv_sec: 0, tv_nsec })) {
            Ok(_) => {}
            Err(Errno::INTR) => fds.clear(),
            Err(errno) => return Err(errno),
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = || ready.next().unwrap_or(false);
        let mut result: Vec<bool> = (0..self.listeners.len() + 2).map(|_| next()).collect();
        result.extend(watched.iter().map(|events| events.is_some() && next()));
        Ok(result)
    }

    /// Handles the host's frames. Those of a connection that no longer exists are late.
    fn take(&mut self, incoming: &mut Vec<u8>) -> Result<(), Errno> {
        let connections = &mut self.connections;
        let taken = sockets::drain(incoming, |number, frame| {
            match (connections.iter_mut().find(|connection| connection.number == number), frame) {
                (Some(connection), frame) => connection.flow.take(frame),
                (None, Frame::Arrive { node, uid, gid }) => {
                    connections.push(Connection::arriving(number, Arrival { node, uid, gid }));
                    Ok(())
                }
                (None, _) => Ok(()),
            }
        });
        taken.map_err(|_| Errno::PROTO)?;
        // What came is written at once.
        let outgoing = &mut self.outgoing;
        self.connections.retain_mut(|connection| connection.write(outgoing));
        Ok(())
    }

    fn accept(&mut self, at: usize) {
        let (what, listener) = &self.listeners[at];
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // The connection may already have been closed.
        let Ok(accepted) = rustix::net::accept_with(listener, flags) else { return };
        let first = match what {
            Listens::ForMount(socket) => {
                let Ok(user) = socket_peercred(&accepted) else { return };
                Frame::Open { socket: *socket, uid: user.uid.as_raw(), gid: user.gid.as_raw() }
            }
            Listens::ForKernel => match sys::carrier::carry(accepted.as_fd()) {
                // A process has found the listener itself.
                Ok(0) | Err(_) => return,
                Ok(ticket) => Frame::Take { ticket },
            },
        };
        self.last = self.last.wrapping_add(1) & !OF_HOST;
        first.encode(self.last, &mut self.outgoing);
        let mounted = matches!(what, Listens::ForMount(_));
        self.connections.push(Connection::accepted(self.last, accepted, mounted));
    }

    fn send(&mut self) -> Result<(), Errno> {
        let mut sent = 0;
        while sent < self.outgoing.len() {
            match rustix::io::write(&self.port, &self.outgoing[sent..]) {
                Ok(count) => sent += count,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.outgoing.drain(..sent);
        Ok(())
    }
}
