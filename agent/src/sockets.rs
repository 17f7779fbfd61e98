//! Listening sockets of the host in a container: `-v /run/docker.sock:/run/docker.sock`.
//!
//! The other end of such a socket is in the host's kernel. So the agent listens on a socket of its own, with the owner and
//! the mode of the host's, and bind-mounts that into the container. A process of the agent accepts the connections and
//! carries them through a port to the host, which connects to its socket as the connecting user.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use agent_proto::payload::{self, ErrorCode, Mount};
use agent_proto::sockets::{self, CONNECTIONS_MAX, DATA_MAX, Flow, Frame, OUT_MAX, SOCKETS_MAX};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::io::IoSliceMut;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendFlags, Shutdown, SocketAddrUnix,
    SocketFlags, SocketType,
};
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};

use crate::container::paths;
use crate::error::{Error, Step};
use crate::ports;
use crate::sys::{self, Fork};

/// Limit of connections that wait to be accepted, as most servers have.
const BACKLOG: i32 = 128;
/// Limit of bytes that are read from the port at a time.
const READ: usize = 64 << 10;
/// Seconds for which the end of the pod waits for what is under way.
const FINISH_SECONDS: i64 = 2;

/// Returns the path of a socket in the agent's tree.
pub fn path(number: &str) -> String {
    format!("{}/{number}", paths::SOCKETS)
}

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

/// Listens on the sockets that a container's mounts name, and starts to carry their connections in a process that runs as
/// long as the guest. Only one container of a machine has such mounts.
pub fn start(spec: &payload::Container) -> Result<Option<Sockets>, Error> {
    let mounts = spec.oci.iter().flat_map(|oci| &oci.mounts);
    let wanted: Vec<&Mount> = mounts.filter(|mount| mount.kind == payload::HOST_SOCKET).collect();
    if wanted.is_empty() {
        return Ok(None);
    }
    if wanted.len() > SOCKETS_MAX {
        return Err(Error::failed(format!("limit of {SOCKETS_MAX} sockets of the host reached")));
    }
    match rustix::fs::mkdir(paths::SOCKETS, Mode::RWXU) {
        Err(Errno::EXIST) => {
            let text = "sockets of the host belong to another container of the machine";
            return Err(Error::new(ErrorCode::Exists, text));
        }
        made => made.step("create", paths::SOCKETS)?,
    }
    let listeners = wanted.iter().map(|mount| listen(mount)).collect::<Result<Vec<_>, _>>()?;
    let port = ports::open_sockets()?;
    let (ours, agent) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .step("create", "socket pair")?;
    match sys::fork(0, None).step("start", "process for sockets")? {
        Fork::Child => {
            let keep = listeners.iter().map(|(_, fd)| fd).chain([&port, &agent]);
            sys::close_others(keep.map(|fd| Some(fd.as_fd())));
            let _ = rustix::thread::set_name(c"sockets");
            let _ = Carrier::new(listeners, port, agent).carry();
            sys::exit(1)
        }
        Fork::Parent { .. } => Ok(Some(Sockets(ours))),
    }
}

/// Listens on a socket with the attributes in the mount's data: `MODE UID GID`, the mode in octal digits.
fn listen(mount: &Mount) -> Result<(u16, OwnedFd), Error> {
    let bad = || Error::bad_request(format!("mount {}: invalid socket", mount.destination));
    let number: u16 = mount.source.parse().map_err(|_| bad())?;
    let mut words = mount.data.split(' ');
    let mode = words.next().and_then(|word| u32::from_str_radix(word, 8).ok()).ok_or_else(bad)?;
    let mut id = || words.next().and_then(|word| word.parse::<u32>().ok()).ok_or_else(bad);
    let (uid, gid) = (id()?, id()?);
    let path = path(&mount.source);
    let listener = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path.as_str())?)?;
        rustix::fs::chmod(path.as_str(), Mode::from_raw_mode(mode & 0o777))?;
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::chownat(CWD, path.as_str(), Some(uid), Some(gid), rustix::fs::AtFlags::empty())?;
        // SO_PEERCRED of a client names the user that listens: on the host most often the owner of the socket.
        let root = (Uid::ROOT, Gid::ROOT);
        set_thread_res_gid(root.1, gid, root.1)?;
        set_thread_res_uid(root.0, uid, root.0)?;
        let listens = rustix::net::listen(&socket, BACKLOG);
        set_thread_res_uid(root.0, root.0, root.0)?;
        set_thread_res_gid(root.1, root.1, root.1)?;
        listens.map(|()| socket)
    };
    listener().step("listen on", &path).map(|socket| (number, socket))
}

struct Connection {
    number: u32,
    /// `None` once it is closed. The connection is over when the host has closed it as well.
    socket: Option<OwnedFd>,
    flow: Flow,
}

struct Carrier {
    listeners: Vec<(u16, OwnedFd)>,
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
    fn new(listeners: Vec<(u16, OwnedFd)>, port: OwnedFd, agent: OwnedFd) -> Carrier {
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
        let accepts = if full || self.connections.len() >= CONNECTIONS_MAX {
            PollFlags::empty()
        } else {
            PollFlags::IN
        };
        fds.extend(self.listeners.iter().map(|(_, fd)| PollFd::new(fd, accepts)));
        let watched: Vec<Option<PollFlags>> =
            self.connections.iter().map(|connection| connection.events(full)).collect();
        let events = self.connections.iter().zip(&watched);
        fds.extend(events.filter_map(|(one, events)| Some(PollFd::new(one.socket.as_ref()?, (*events)?))));
        // The end is seen when nothing is ready any more.
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let idle = self.ending && self.connections.is_empty() && self.outgoing.is_empty();
        match poll(&mut fds, idle.then_some(&now)) {
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
            match connections.iter_mut().find(|connection| connection.number == number) {
                Some(connection) => connection.flow.take(frame),
                None => Ok(()),
            }
        });
        taken.map_err(|_| Errno::PROTO)?;
        // What came is written at once.
        let outgoing = &mut self.outgoing;
        self.connections.retain_mut(|connection| connection.write(outgoing));
        Ok(())
    }

    fn accept(&mut self, at: usize) {
        let (socket, listener) = &self.listeners[at];
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // The connection may already have been closed.
        let Ok(accepted) = rustix::net::accept_with(listener, flags) else { return };
        let Ok(user) = socket_peercred(&accepted) else { return };
        self.last = self.last.wrapping_add(1);
        let open = Frame::Open { socket: *socket, uid: user.uid.as_raw(), gid: user.gid.as_raw() };
        open.encode(self.last, &mut self.outgoing);
        self.connections.push(Connection {
            number: self.last,
            socket: Some(accepted),
            flow: Flow::default(),
        });
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

impl Connection {
    /// Returns the events to wait for. `None` while there is nothing to do: the end of a connection that cannot be passed
    /// on would be reported again and again.
    fn events(&self, full: bool) -> Option<PollFlags> {
        self.socket.as_ref()?;
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, !full && self.flow.room() > 0);
        events.set(PollFlags::OUT, !self.flow.pending().is_empty());
        (!events.is_empty() || self.flow.has_ended()).then_some(events)
    }

    /// Moves data. Returns whether the connection goes on.
    fn serve(&mut self, ready: bool, outgoing: &mut Vec<u8>) -> bool {
        let Some(socket) = self.socket.as_ref().filter(|_| ready) else { return self.write(outgoing) };
        if self.flow.has_ended() && self.flow.pending().is_empty() {
            // Both directions are closed.
            self.close(outgoing);
            return self.write(outgoing);
        }
        let room = if outgoing.len() < OUT_MAX { self.flow.room() } else { 0 };
        if room > 0 {
            let mut data = [0; DATA_MAX];
            let mut pieces = [IoSliceMut::new(&mut data[..room])];
            let mut nothing = RecvAncillaryBuffer::default();
            match rustix::net::recvmsg(socket, &mut pieces, &mut nothing, RecvFlags::CMSG_CLOEXEC) {
                // Data without the descriptors that belong to it would have another meaning.
                Ok(message) if message.flags.contains(ReturnFlags::CTRUNC) => {
                    Frame::Descriptors.encode(self.number, outgoing);
                    self.close(outgoing);
                }
                Ok(message) => self.flow.send(self.number, &data[..message.bytes], outgoing),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => self.close(outgoing),
            }
        }
        self.write(outgoing)
    }

    /// Writes what came from the host. Returns whether the connection goes on.
    fn write(&mut self, outgoing: &mut Vec<u8>) -> bool {
        while let (Some(socket), pending @ [_, ..]) = (&self.socket, self.flow.pending()) {
            match rustix::net::send(socket, pending, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => self.flow.wrote(count),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => self.close(outgoing),
            }
        }
        let Some(socket) = &self.socket else { return !self.flow.is_closed() };
        if outgoing.len() < OUT_MAX {
            self.flow.give_credit(self.number, outgoing);
        }
        if self.flow.must_shut() {
            let _ = rustix::net::shutdown(socket, Shutdown::Write);
        }
        !(self.flow.is_closed() && self.flow.pending().is_empty())
    }

    /// Closes the socket, and tells the host.
    fn close(&mut self, outgoing: &mut Vec<u8>) {
        self.socket = None;
        Frame::Close.encode(self.number, outgoing);
    }
}
