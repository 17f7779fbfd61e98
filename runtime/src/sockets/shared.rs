//! Sockets in shared directories: what the file server asks of the thread that carries connections.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use host::sockets::Connector;
use vmm::devices::share::sockets::{Reached, SocketRequests, SocketTask};

/// Limit of connections of a machine to and from sockets in shared directories. Processes that connect wait until there are
/// fewer.
pub const SHARED_MAX: usize = 128;

/// A connection that was made for a process of the guest, and for which the guest's carrier has not asked yet.
#[derive(Debug)]
pub struct Ticket {
    number: u32,
    pub stream: UnixStream,
    /// User and group of the process.
    pub user: (u32, u32),
}

/// A socket on which a process of the guest listens.
#[derive(Debug)]
struct Listener {
    node: u64,
    socket: OwnedFd,
    /// User and group of the process that listens.
    user: (u32, u32),
}

/// A connection of a process of the host to a socket of the guest.
#[derive(Debug)]
pub struct Arrival {
    pub stream: UnixStream,
    /// The file server's number of the socket's file.
    pub node: u64,
    /// User and group of the process, as in the guest.
    pub client: (u32, u32),
    /// User and group of the process that listens.
    pub server: (u32, u32),
}

/// The sockets of shared directories.
#[derive(Debug)]
pub struct Shared {
    queue: SocketRequests,
    tickets: Vec<Ticket>,
    listeners: Vec<Listener>,
    /// The last ticket.
    last: u32,
}

impl Shared {
    pub fn new(queue: SocketRequests) -> Shared {
        Shared { queue, tickets: Vec::new(), listeners: Vec::new(), last: 0 }
    }

    /// Is readable when the file server asks.
    pub fn wake(&self) -> BorrowedFd<'_> {
        self.queue.wake.as_fd()
    }

    /// The sockets on which to wait for connections.
    pub fn listeners(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.listeners.iter().map(|listener| listener.socket.as_fd())
    }

    /// Whether a process of the guest listens, or will ask for a connection.
    pub fn is_used(&self) -> bool {
        !self.listeners.is_empty() || !self.tickets.is_empty()
    }

    /// Number of connections for which nobody has asked yet.
    pub fn waiting(&self) -> usize {
        self.tickets.len()
    }

    /// Does what the file server asks. `carried` is the number of connections that are carried.
    pub fn serve(&mut self, connector: &Connector, carried: usize) {
        // This thread is here because there is a byte; what is left wakes it again.
        let _ = self.queue.wake.read(&mut [0; 64]);
        while let Ok(request) = self.queue.requests.try_recv() {
            let result = self.act(request.task, connector, carried);
            // The file server waits for it, unless the machine has ended.
            let _ = request.done.send(result);
        }
    }

    fn act(
        &mut self,
        task: SocketTask,
        connector: &Connector,
        carried: usize,
    ) -> io::Result<Option<Reached>> {
        match task {
            SocketTask::Connect(file, user) => {
                if carried + self.tickets.len() >= SHARED_MAX {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                let stream = connector.connect_to(file.as_fd(), user.0, user.1)?;
                let (uid, gid) = connector.peer(&stream)?;
                // No ticket is 0, which a connection without one has.
                self.last = self.last.wrapping_add(1).max(1);
                self.tickets.push(Ticket { number: self.last, stream, user });
                return Ok(Some(Reached { ticket: self.last, uid, gid }));
            }
            SocketTask::Cancel(number) => drop(self.take(number)),
            SocketTask::Listen { node, socket, backlog, user } => {
                connector.listen(socket.as_fd(), backlog, user.0, user.1)?;
                if !self.listeners.iter().any(|listener| listener.node == node) {
                    self.listeners.push(Listener { node, socket, user });
                }
            }
            SocketTask::Close(node) => self.listeners.retain(|listener| listener.node != node),
        }
        Ok(None)
    }

    /// Returns the connection with this ticket.
    pub fn take(&mut self, number: u32) -> Option<Ticket> {
        let at = self.tickets.iter().position(|ticket| ticket.number == number)?;
        Some(self.tickets.swap_remove(at))
    }

    /// Accepts a connection of the listener at this place.
    pub fn accept(&self, at: usize, connector: &Connector) -> Option<Arrival> {
        let listener = self.listeners.get(at)?;
        // The client may be gone.
        let stream = connector.accept(listener.socket.as_fd()).ok()?;
        let client = connector.peer(&stream).ok()?;
        Some(Arrival { stream, node: listener.node, client, server: listener.user })
    }
}
