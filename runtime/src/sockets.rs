//! Connections between sockets of the guest and of the host.
//!
//! For a bind mount of a listening socket, such as Docker's, the agent accepts connections on a socket of its own in the
//! container. For sockets in shared directories the file server asks ([`shared`]). What connections carry travels through a
//! port of the console ([`agent_proto::sockets`]). One thread connects to and listens on sockets of the host, and moves the
//! data. Each connection has a window in each direction, so that a slow reader stops only its own connection.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use agent_proto::sockets::{self, Broken, CONNECTIONS_MAX, DATA_MAX, Flow, Frame, OF_HOST, OUT_MAX};
use host::sockets::{Connector, HostSockets, Received, receive, send};
use host::sys;
use vmm::devices::share::sockets::SocketRequests;

mod shared;

use shared::{SHARED_MAX, Shared, Ticket};

/// Maximum number of bytes per read from the guest.
const READ: usize = 64 << 10;
/// Time between two attempts to connect to a server that has not accepted enough connections. There is no event for that.
const AGAIN: Duration = Duration::from_millis(10);

/// Maximum time to deliver what the guest has sent, once the machine has ended.
const DELIVERY: Duration = Duration::from_secs(2);

/// The thread that carries connections.
#[derive(Debug)]
pub struct Sockets {
    /// Is disconnected when the thread has ended.
    running: Receiver<()>,
    /// Whether there are connections.
    busy: Arc<AtomicBool>,
}

impl Sockets {
    /// Whether a process of the guest has a connection, or listens for some.
    pub fn are_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire)
    }

    /// Waits until what the guest has sent is delivered, after the machine has ended.
    pub fn finish(&self) {
        if self.running.recv_timeout(DELIVERY) == Err(RecvTimeoutError::Timeout) {
            log::warn!("connections to sockets of the host have not ended in time");
        }
    }
}

/// Opens the host's sockets, and starts the thread that connects to them and to those for which `queue` asks. Also returns
/// the guest's end of the port.
pub fn serve(paths: &[PathBuf], queue: SocketRequests) -> io::Result<(Sockets, UnixStream)> {
    let sockets = HostSockets::open(paths)?;
    let paths = paths.to_vec();
    let (port, guest) = UnixStream::pair()?;
    let (runs, running) = channel();
    let busy = Arc::new(AtomicBool::new(false));
    let told = busy.clone();
    thread::Builder::new().name("sockets".to_owned()).spawn(move || {
        let _runs: Sender<()> = runs;
        let carried =
            sockets.enter().and_then(|connector| carry(port, &connector, paths, Shared::new(queue), &told));
        if let Err(error) = carried {
            log::warn!("connections to sockets of the host: {error}");
        }
    })?;
    Ok((Sockets { running, busy }, guest))
}

/// Carries connections until the machine has ended. `busy` says whether there are any.
fn carry(
    port: UnixStream,
    connector: &Connector,
    paths: Vec<PathBuf>,
    shared: Shared,
    busy: &AtomicBool,
) -> io::Result<()> {
    port.set_nonblocking(true)?;
    let mut carrier = Carrier {
        port,
        connector,
        refusals: Refusals { paths, told: BTreeSet::new() },
        shared,
        last: 0,
        connections: Vec::new(),
        incoming: Vec::new(),
        outgoing: Vec::new(),
    };
    while carrier.turn()? {
        busy.store(!carrier.connections.is_empty() || carrier.shared.is_used(), Ordering::Release);
    }
    carrier.deliver();
    Ok(())
}

/// Tells the user once for each socket that descriptors are not carried.
struct Refusals {
    paths: Vec<PathBuf>,
    told: BTreeSet<Option<u16>>,
}

impl Refusals {
    /// `who` has passed descriptors on a connection to a mounted socket, or to one in a shared directory.
    fn tell(&mut self, target: Option<u16>, who: &str) {
        let socket = match target.map(|number| self.paths.get(usize::from(number))) {
            Some(Some(path)) => format!("socket {}", path.display()),
            Some(None) => return,
            None => "socket in a shared directory".to_owned(),
        };
        if self.told.insert(target) {
            log::warn!(
                "{socket}: {who} passes descriptors (SCM_RIGHTS), which are not carried: the connection is closed"
            );
        }
    }
}

/// A connection's socket, or what it will connect to.
enum Socket {
    Waiting,
    Open(UnixStream),
    None,
}

struct Connection {
    number: u32,
    /// Number of the mounted socket; `None` for one in a shared directory.
    target: Option<u16>,
    /// User and group of the process in the guest.
    user: (u32, u32),
    socket: Socket,
    flow: Flow,
    /// The socket is closed, and the guest must be told.
    failed: bool,
}

struct Carrier<'a> {
    port: UnixStream,
    connector: &'a Connector,
    refusals: Refusals,
    shared: Shared,
    /// Number of the last connection that the host has opened.
    last: u32,
    connections: Vec<Connection>,
    incoming: Vec<u8>,
    /// Frames for the guest.
    outgoing: Vec<u8>,
}

impl Carrier<'_> {
    /// Waits for events and handles them. Returns false when the port is closed.
    fn turn(&mut self) -> io::Result<bool> {
        let full = self.outgoing.len() >= OUT_MAX;
        let port = libc::POLLIN | if self.outgoing.is_empty() { 0 } else { libc::POLLOUT };
        let watched: Vec<_> = self.connections.iter().map(|connection| connection.watched(full)).collect();
        let accepts = if full || self.shared_count() >= SHARED_MAX { 0 } else { libc::POLLIN };
        let own = [(self.port.as_fd(), port), (self.shared.wake(), libc::POLLIN)];
        let listeners = self.shared.listeners().map(|listener| (listener, accepts));
        let fds: Vec<(BorrowedFd<'_>, i16)> =
            own.into_iter().chain(listeners).chain(watched.iter().copied().flatten()).collect();
        let waiting = self.connections.iter().any(|one| matches!(one.socket, Socket::Waiting));
        let ready = sys::poll_all(fds.iter(), waiting.then_some(AGAIN))?;
        let (own, rest) = ready.split_at(2);
        let (arriving, rest) = rest.split_at(self.shared.listeners().count());
        let mut rest = rest.iter();
        let ready_connections: Vec<bool> =
            watched.iter().map(|one| one.is_some() && rest.next().is_some_and(|it| *it)).collect();
        for (connection, ready) in self.connections.iter_mut().zip(ready_connections) {
            connection.serve(ready, &mut self.outgoing, &mut self.refusals);
        }
        for at in arriving.iter().enumerate().filter(|(_, ready)| **ready).map(|(at, _)| at) {
            self.accept(at);
        }
        if own[1] {
            let carried = self.shared_count() - self.shared.waiting();
            self.shared.serve(self.connector, carried);
        }
        if own[0] && !self.take()? {
            return Ok(false);
        }
        let Carrier { connections, connector, outgoing, .. } = self;
        connections.retain_mut(|connection| connection.go_on(connector, outgoing));
        self.send()?;
        Ok(true)
    }

    /// Reads and handles frames. Returns false when the port is closed.
    fn take(&mut self) -> io::Result<bool> {
        let mut buffer = vec![0; READ];
        match self.port.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => self.incoming.extend_from_slice(&buffer[..count]),
            Err(error) if is_later(&error) => return Ok(true),
            Err(error) => return Err(error),
        }
        let Carrier { connections, refusals, shared, .. } = self;
        sockets::drain(&mut self.incoming, |number, frame| {
            let (mounted, others) = counts(connections);
            let own = number & OF_HOST == 0;
            let known = connections.iter_mut().find(|connection| connection.number == number);
            match (known, frame) {
                (None, Frame::Open { socket, uid, gid }) if own && mounted < CONNECTIONS_MAX => {
                    connections.push(Connection {
                        number,
                        target: Some(socket),
                        user: (uid, gid),
                        socket: Socket::Waiting,
                        flow: Flow::default(),
                        failed: false,
                    });
                    Ok(())
                }
                // Those of no ticket count as well.
                (None, Frame::Take { ticket }) if own && others < SHARED_MAX => {
                    connections.push(Connection::taken(number, shared.take(ticket)));
                    Ok(())
                }
                (Some(connection), Frame::Descriptors) => {
                    refusals.tell(connection.target, "a process of the container");
                    Ok(())
                }
                (_, Frame::Open { .. } | Frame::Take { .. } | Frame::Arrive { .. }) => Err(Broken),
                (Some(connection), frame) => connection.flow.take(frame),
                // It was sent before the guest knew that the connection is closed.
                (None, _) => Ok(()),
            }
        })
        .map_err(|Broken| io::Error::new(ErrorKind::InvalidData, "the guest breaks the protocol"))?;
        Ok(true)
    }

    /// Number of connections of sockets in shared directories, and of those for which the guest has not asked yet.
    fn shared_count(&self) -> usize {
        counts(&self.connections).1 + self.shared.waiting()
    }

    /// Accepts a connection for a process of the guest.
    fn accept(&mut self, at: usize) {
        if self.shared_count() >= SHARED_MAX {
            return;
        }
        let Some(arrival) = self.shared.accept(at, self.connector) else { return };
        let is_free = |number: &u32| self.connections.iter().all(|one| one.number != *number);
        let mut numbers =
            std::iter::successors(Some(self.last), |number| Some(number.wrapping_add(1) | OF_HOST));
        let Some(number) = numbers.by_ref().skip(1).find(is_free) else { return };
        self.last = number;
        let (uid, gid) = arrival.client;
        Frame::Arrive { node: arrival.node, uid, gid }.encode(number, &mut self.outgoing);
        self.connections.push(Connection {
            number,
            target: None,
            user: self.connector.shown(arrival.server.0, arrival.server.1),
            socket: Socket::Open(arrival.stream),
            flow: Flow::default(),
            failed: false,
        });
    }

    fn send(&mut self) -> io::Result<()> {
        let mut sent = 0;
        while sent < self.outgoing.len() {
            match self.port.write(&self.outgoing[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The machine has ended; the next read says so.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => break,
                Err(error) => return Err(error),
            }
        }
        self.outgoing.drain(..sent);
        Ok(())
    }

    /// Writes what the guest has sent and the sockets accept at once, after the machine has ended.
    fn deliver(&mut self) {
        for connection in &mut self.connections {
            connection.go_on(self.connector, &mut self.outgoing);
        }
    }
}

/// Returns the numbers of connections to mounted sockets, and of others.
fn counts(connections: &[Connection]) -> (usize, usize) {
    let mounted = connections.iter().filter(|one| one.target.is_some()).count();
    (mounted, connections.len() - mounted)
}

impl Connection {
    /// Continues the connection of a ticket. Without one it has failed.
    fn taken(number: u32, ticket: Option<Ticket>) -> Connection {
        let failed = ticket.is_none();
        let (socket, user) = match ticket {
            Some(ticket) => (Socket::Open(ticket.stream), ticket.user),
            None => (Socket::None, (0, 0)),
        };
        Connection { number, target: None, user, socket, flow: Flow::default(), failed }
    }

    /// Returns the events to wait for. `None` while there is nothing to do.
    fn watched(&self, full: bool) -> Option<(BorrowedFd<'_>, i16)> {
        let Socket::Open(stream) = &self.socket else { return None };
        let read = if !full && self.flow.room() > 0 { libc::POLLIN } else { 0 };
        let write = if self.flow.pending().is_empty() { 0 } else { libc::POLLOUT };
        // After the end of its data only the end of the connection itself is reported.
        let watched = !self.failed && (read | write != 0 || self.flow.has_ended());
        watched.then_some((stream.as_fd(), read | write))
    }

    /// Reads from a ready socket.
    fn serve(&mut self, ready: bool, outgoing: &mut Vec<u8>, refusals: &mut Refusals) {
        let Socket::Open(stream) = &mut self.socket else { return };
        if !ready || self.failed {
            return;
        }
        if self.flow.has_ended() && self.flow.pending().is_empty() {
            // Both directions are closed.
            self.failed = true;
            return;
        }
        let room = if outgoing.len() < OUT_MAX { self.flow.room() } else { 0 };
        if room == 0 {
            return;
        }
        let mut data = [0; DATA_MAX];
        match receive(stream, &mut data[..room]) {
            // Data without the descriptors that belong to it would have another meaning.
            Ok(Received { descriptors: true, .. }) => {
                refusals.tell(self.target, "the server");
                self.failed = true;
            }
            Ok(Received { bytes, .. }) => self.flow.send(self.number, &data[..bytes], outgoing),
            Err(error) if is_later(&error) => {}
            Err(_) => self.failed = true,
        }
    }

    /// Connects, writes what came from the guest, and tells the guest what it must know. Returns whether the connection
    /// goes on.
    fn go_on(&mut self, connector: &Connector, outgoing: &mut Vec<u8>) -> bool {
        if let (Socket::Waiting, Some(socket)) = (&self.socket, self.target) {
            let (uid, gid) = self.user;
            match connector.connect(socket, uid, gid) {
                Ok(stream) => self.socket = Socket::Open(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) => {
                    log::debug!("connect to socket {socket} of the host as user {uid}: {error}");
                    self.failed = true;
                }
            }
        }
        self.write();
        if outgoing.len() >= OUT_MAX {
            return true;
        }
        self.flow.give_credit(self.number, outgoing);
        if self.flow.must_shut()
            && let Socket::Open(stream) = &self.socket
        {
            let _ = stream.shutdown(Shutdown::Write);
        }
        let over = self.failed || self.flow.is_over();
        if over {
            // The guest counts the connection until then.
            Frame::Close.encode(self.number, outgoing);
        }
        !over
    }

    fn write(&mut self) {
        let Socket::Open(stream) = &mut self.socket else { return };
        while !self.failed && !self.flow.pending().is_empty() {
            match send(stream, self.flow.pending(), self.user) {
                Ok(count) => self.flow.wrote(count),
                Err(error) if is_later(&error) => return,
                Err(_) => self.failed = true,
            }
        }
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests;
