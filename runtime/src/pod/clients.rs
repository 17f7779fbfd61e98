//! Connections to the pod's socket. A client is disconnected if it sends invalid data, does not read, or does not
//! complete its request in time. Other clients are not affected. If a limit of connections or of descriptors is
//! reached, a new client is told so.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

use host::sys;

use super::ClientId;
use super::containers::refused;
use crate::control::{Connection, ControlError, Reply, Request};
use crate::deadlines;

/// Maximum number of clients at a time.
const CLIENTS_MAX: usize = 512;
/// Maximum number of connections that are accepted or refused before other work is done.
const ACCEPTS_MAX: usize = 64;

#[derive(Debug)]
pub struct Client {
    id: ClientId,
    connection: Connection,
    /// When its request must be complete, if one is expected.
    due: Option<Instant>,
    /// The client waits for an answer that comes later.
    waits: bool,
    /// The client has its last answer, so its input is ignored.
    done: bool,
    /// The connection is closed, or is to be.
    closed: bool,
}

#[derive(Debug)]
pub struct Clients {
    /// `None` if no client can connect.
    listener: Option<UnixListener>,
    clients: Vec<Client>,
    next: ClientId,
    /// A spare descriptor, closed to accept a client and tell it that there are no more.
    reserve: Option<File>,
    /// No client is accepted until then, because one could be neither accepted nor refused, and would wake the loop at
    /// once.
    rest: Option<Instant>,
}

impl Clients {
    pub fn new(listener: Option<UnixListener>) -> Clients {
        Clients { listener, clients: Vec::new(), next: 1, reserve: reserve(), rest: None }
    }

    /// Returns the descriptors to wait for, with `busy` only those of clients with unsent answers. `None` in place of a
    /// client is the listening socket.
    pub fn interests(&self, busy: bool, now: Instant) -> Vec<(Option<ClientId>, (BorrowedFd<'_>, i16))> {
        let wanted = |interest: i16| if busy { interest & libc::POLLOUT } else { interest };
        let mut all: Vec<_> = self
            .clients
            .iter()
            .map(|client| (Some(client.id), (client.connection.fd(), wanted(client.connection.interest()))))
            .filter(|(_, (_, interest))| *interest != 0)
            .collect();
        if !busy && self.rest.is_none_or(|rest| rest <= now) {
            all.extend(self.listener.iter().map(|listener| (None, (listener.as_fd(), libc::POLLIN))));
        }
        all
    }

    /// Returns when [`accept`](Self::accept) or [`expire`](Self::expire) has work without an event.
    pub fn deadline(&self) -> Option<Instant> {
        self.clients.iter().filter_map(|client| client.due).chain(self.rest).min()
    }

    pub fn accept(&mut self, now: Instant) {
        if self.rest.is_some_and(|rest| rest > now) {
            return;
        }
        self.rest = None;
        for _ in 0..ACCEPTS_MAX {
            let Some(listener) = &self.listener else { return };
            match listener.accept() {
                Ok((socket, _)) => self.admit(socket, now),
                Err(error) if is_scarce(&error) => {
                    if !self.refuse() {
                        self.rest = Some(now + deadlines::REST);
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => {
                    log::warn!("accept a client of the pod's socket: {error}");
                    self.rest = Some(now + deadlines::REST);
                    return;
                }
            }
        }
    }

    fn admit(&mut self, socket: UnixStream, now: Instant) {
        if self.clients.len() >= CLIENTS_MAX {
            return turn_away(socket, &format!("limit of {CLIENTS_MAX} clients reached"));
        }
        match Connection::new(socket) {
            Ok(connection) => {
                let due = Some(now + deadlines::REQUEST);
                let client =
                    Client { id: self.next, connection, due, waits: false, done: false, closed: false };
                self.clients.push(client);
                self.next += 1;
            }
            Err(error) => log::warn!("{error}"),
        }
    }

    /// Accepts a client with the spare descriptor, to tell it that there are no more. Returns whether that succeeded,
    /// and can be repeated.
    fn refuse(&mut self) -> bool {
        let told = self.reserve.take().is_some() && {
            let accepted = self.listener.as_ref().and_then(|listener| listener.accept().ok());
            accepted.map(|(socket, _)| turn_away(socket, "no free file descriptors")).is_some()
        };
        self.reserve = reserve();
        told && self.reserve.is_some()
    }

    /// Disconnects clients that have not completed a request in time.
    pub fn expire(&mut self, now: Instant) {
        for client in &mut self.clients {
            if client.due.is_some_and(|due| due <= now) {
                client.closed = true;
                log::debug!("client {}: no request within {} s", client.id, deadlines::REQUEST.as_secs());
            }
        }
    }

    /// Reads from a client. Returns false if it is gone.
    pub fn receive(&mut self, id: ClientId) -> bool {
        let Some(index) = self.clients.iter().position(|client| client.id == id) else { return false };
        let client = &mut self.clients[index];
        let there =
            !client.closed && client.connection.receive().unwrap_or_else(|error| client.fault(&error));
        if !there {
            self.clients.remove(index);
        }
        there
    }

    /// Returns the process behind a connection while it exists.
    pub fn process(&self, id: ClientId) -> Option<u32> {
        let client = self.clients.iter().find(|client| client.id == id && !client.closed)?;
        sys::peer_process(client.connection.fd()).ok()
    }

    pub fn next(&mut self, id: ClientId) -> Option<(Request, Vec<OwnedFd>)> {
        let client = self.clients.iter_mut().find(|client| client.id == id && !client.done)?;
        let taken = client.connection.take().unwrap_or_else(|error| {
            client.closed = true;
            client.fault(&error);
            None
        });
        client.due = match (&taken, client.due) {
            (Some(_), _) => None,
            (None, None) if client.connection.is_amid() => Some(Instant::now() + deadlines::REQUEST),
            (None, due) => due,
        };
        taken
    }

    /// Writes a client's answers, and waits until the client confirms them, at most until `until`. Returns false if it does not,
    /// or is gone. Other clients wait.
    pub fn is_confirmed(&mut self, id: ClientId, until: Instant) -> bool {
        loop {
            if let Some((request, _)) = self.next(id) {
                return request == Request::Confirm;
            }
            let Some(client) = self.clients.iter_mut().find(|client| client.id == id) else { return false };
            let left = until.saturating_duration_since(Instant::now());
            let flushed = client.connection.flush().is_ok();
            let interest = [(client.connection.fd(), client.connection.interest())];
            let waits = flushed && !left.is_zero() && sys::poll(interest, Some(left)).is_ok();
            if !waits || !self.receive(id) {
                return false;
            }
        }
    }

    /// Tells a client that its answer comes later.
    pub fn accepted(&mut self, id: ClientId) {
        self.answer(id, &Reply::Accepted);
    }

    /// Sends `reply` to every client that waits for an answer, as far as their sockets accept it.
    pub fn fail(&mut self, reply: &Reply) {
        let waiting = self.clients.iter().filter(|client| client.waits).map(|client| client.id);
        for id in waiting.collect::<Vec<_>>() {
            self.answer_last(id, reply);
        }
        // A client that cannot be told sees the end of its connection.
        self.flush();
    }

    /// Answers a client if it is still connected.
    pub fn answer(&mut self, id: ClientId, reply: &Reply) {
        let Some(client) = self.clients.iter_mut().find(|client| client.id == id) else { return };
        // A process that was started ends with a further answer.
        client.waits = matches!(reply, Reply::Accepted | Reply::Started);
        if let Err(error) = client.connection.send(reply) {
            client.closed = true;
            client.fault(&error);
        }
    }

    pub fn answer_last(&mut self, id: ClientId, reply: &Reply) {
        self.answer(id, reply);
        let client = self.clients.iter_mut().find(|client| client.id == id);
        client.into_iter().for_each(|client| client.done = true);
    }

    /// Writes answers and closes connections after their last one. Returns the clients that were lost before.
    pub fn flush(&mut self) -> Vec<ClientId> {
        for client in &mut self.clients {
            if let Err(error) = client.connection.flush() {
                client.closed = true;
                client.fault(&error);
            }
            client.closed |= client.done && client.connection.is_flushed();
        }
        let gone = self.clients.extract_if(.., |client| client.closed);
        gone.filter(|client| !client.done).map(|client| client.id).collect()
    }
}

impl Client {
    fn fault(&self, error: &ControlError) -> bool {
        log::debug!("client {}: {error}", self.id);
        false
    }
}

fn reserve() -> Option<File> {
    File::open("/dev/null").ok()
}

/// Whether the process or the host has no free descriptor.
fn is_scarce(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// Tells a new client why it is refused.
fn turn_away(socket: UnixStream, why: &str) {
    let told = Connection::new(socket).and_then(|mut connection| {
        connection.send(&refused(why.to_owned()))?;
        connection.flush()
    });
    told.unwrap_or_else(|error| log::debug!("{error}"));
    log::warn!("refused a client of the pod's socket: {why}");
}

#[cfg(test)]
mod tests;
