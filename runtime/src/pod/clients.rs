//! Who is connected to the pod's socket. A client that makes no sense, or does not read, loses its connection; nobody else
//! notices.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;

use super::Asker;
use crate::control::{Connection, ControlError, Reply, Request};
use crate::sys;

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

    /// The process behind a connection, as long as it is there.
    pub fn process(&self, asker: Asker) -> Option<u32> {
        let client = self.clients.iter().find(|client| client.asker == asker && !client.closed)?;
        sys::peer_process(client.connection.fd()).ok()
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Clients of a socket in a folder, one of whom has come.
    fn one() -> (tempfile::TempDir, Clients, Connection, Asker) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut clients = Clients::new(listener);
        let client = Connection::new(UnixStream::connect(&path).unwrap(), true).unwrap();
        clients.accept();
        let asker = clients.interests(false)[0].0.unwrap();
        (folder, clients, client, asker)
    }

    #[test]
    fn a_client_is_heard_and_answered() {
        let (_folder, mut clients, mut client, asker) = one();
        client.send(&Request::Stats).unwrap();
        client.flush().unwrap();
        assert!(clients.receive(asker));
        assert_eq!(clients.next(asker).unwrap().0, Request::Stats);
        assert!(clients.next(asker).is_none());
        clients.answer(asker, &Reply::Done);
        assert!(clients.flush().is_empty());
        assert_eq!(client.wait().unwrap(), Reply::Done);
        clients.answer_last(asker, &Reply::Exited(1));
        assert!(clients.flush().is_empty());
        assert_eq!(client.wait().unwrap(), Reply::Exited(1));
        assert!(matches!(client.wait(), Err(ControlError::Ended)));
        // Nobody is there any more to be answered.
        clients.answer(asker, &Reply::Done);
    }

    #[test]
    fn who_makes_no_sense_or_goes_is_let_go() {
        let (_folder, mut clients, client, asker) = one();
        drop(client);
        assert!(!clients.receive(asker));
        assert_eq!(clients.interests(false).len(), 1);
        let path = _folder.path().join("s");
        for bytes in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x01x"] {
            let mut socket = UnixStream::connect(&path).unwrap();
            socket.write_all(bytes).unwrap();
            clients.accept();
            let asker = clients.interests(false)[0].0.unwrap();
            assert!(clients.receive(asker));
            assert!(clients.next(asker).is_none());
            assert_eq!(clients.flush(), [asker]);
        }
    }

    #[test]
    fn a_busy_pod_hears_nobody_and_answers_all_the_same() {
        let (_folder, mut clients, _client, asker) = one();
        assert_eq!(clients.interests(true).len(), 0);
        clients.answer(asker, &Reply::Done);
        assert_eq!(clients.interests(true)[0].1.1, libc::POLLOUT);
    }
}
