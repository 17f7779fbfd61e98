//! Who is connected to the pod's socket. A client that makes no sense, or does not read, loses its connection; nobody else
//! notices.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;

use super::Asker;
use crate::control::{Connection, ControlError, Reply, Request};

/// The most clients at a time.
const CLIENTS_MAX: usize = 512;

/// A connection.
#[derive(Debug)]
pub struct Client {
    asker: Asker,
    connection: Connection,
    /// It has its last answer: what it still says is not looked at.
    done: bool,
    /// It is gone, or is to be.
    closed: bool,
}

/// All connections.
#[derive(Debug)]
pub struct Clients {
    listener: UnixListener,
    clients: Vec<Client>,
    next: Asker,
}

impl Clients {
    /// Returns the clients of `listener`, of which there are none yet.
    pub fn new(listener: UnixListener) -> Clients {
        Clients { listener, clients: Vec::new(), next: 1 }
    }

    /// What is to be waited for; with `busy` only that answers are taken.
    /// Nobody stands for the socket itself.
    pub fn interests(&self, busy: bool) -> Vec<(Option<Asker>, (BorrowedFd<'_>, i16))> {
        let wanted = |interest: i16| if busy { interest & libc::POLLOUT } else { interest };
        let mut all: Vec<_> = self
            .clients
            .iter()
            .map(|client| {
                (Some(client.asker), (client.connection.fd(), wanted(client.connection.interest())))
            })
            .filter(|(_, (_, interest))| *interest != 0)
            .collect();
        if !busy && self.clients.len() < CLIENTS_MAX {
            all.push((None, (self.listener.as_fd(), libc::POLLIN)));
        }
        all
    }

    /// Takes those who have come.
    pub fn accept(&mut self) {
        while self.clients.len() < CLIENTS_MAX
            && let Ok((socket, _)) = self.listener.accept()
        {
            match Connection::new(socket, false) {
                Ok(connection) => {
                    let client = Client { asker: self.next, connection, done: false, closed: false };
                    self.clients.push(client);
                    self.next += 1;
                }
                Err(error) => log::warn!("{error}"),
            }
        }
    }

    /// Takes what a client has sent. Returns false if it is gone.
    pub fn receive(&mut self, asker: Asker) -> bool {
        let Some(index) = self.clients.iter().position(|client| client.asker == asker) else { return false };
        let client = &mut self.clients[index];
        let there =
            !client.closed && client.connection.receive().unwrap_or_else(|error| client.fault(&error));
        if !there {
            self.clients.remove(index);
        }
        there
    }

    /// Takes a client's next request.
    pub fn next(&mut self, asker: Asker) -> Option<(Request, Vec<OwnedFd>)> {
        let client = self.clients.iter_mut().find(|client| client.asker == asker && !client.done)?;
        client.connection.take().unwrap_or_else(|error| {
            client.closed = true;
            client.fault(&error);
            None
        })
    }

    /// Answers a client, if it is still there.
    pub fn answer(&mut self, asker: Asker, reply: &Reply) {
        if let Some(client) = self.clients.iter_mut().find(|client| client.asker == asker)
            && let Err(error) = client.connection.send(reply)
        {
            client.closed = true;
            client.fault(&error);
        }
    }

    /// Answers a client for the last time.
    pub fn answer_last(&mut self, asker: Asker, reply: &Reply) {
        self.answer(asker, reply);
        let client = self.clients.iter_mut().find(|client| client.asker == asker);
        client.into_iter().for_each(|client| client.done = true);
    }

    /// Writes the answers, and lets go of those who have their last. Returns those who were lost before.
    pub fn flush(&mut self) -> Vec<Asker> {
        for client in &mut self.clients {
            if let Err(error) = client.connection.flush() {
                client.closed = true;
                client.fault(&error);
            }
            client.closed |= client.done && client.connection.is_flushed();
        }
        let gone = self.clients.extract_if(.., |client| client.closed);
        gone.filter(|client| !client.done).map(|client| client.asker).collect()
    }
}

impl Client {
    fn fault(&self, error: &ControlError) -> bool {
        log::debug!("client {}: {error}", self.asker);
        false
    }
}
