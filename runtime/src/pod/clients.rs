//! Who is connected to the pod's socket. A client that makes no sense, does not read, or does not say what it wants, loses its
//! connection; nobody else notices. Where no further one can be taken, for want of places or of descriptors, whoever comes is
//! told so.

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

/// The most clients at a time.
const CLIENTS_MAX: usize = 512;
/// How many are taken or refused before the pod looks after anything else.
const ACCEPTS_MAX: usize = 64;

/// A connection.
#[derive(Debug)]
pub struct Client {
    id: ClientId,
    connection: Connection,
    /// By when its request is to be whole, if one is awaited.
    due: Option<Instant>,
    /// It waits for an answer that comes later.
    waits: bool,
    /// It has its last answer: what it still says is not looked at.
    done: bool,
    /// It is gone, or is to be.
    closed: bool,
}

/// All connections.
#[derive(Debug)]
pub struct Clients {
    /// None where nobody can connect.
    listener: Option<UnixListener>,
    clients: Vec<Client>,
    next: ClientId,
    /// A descriptor that is given up to tell a client that there are no more.
    reserve: Option<File>,
    /// Until when nobody is accepted: one who came could be neither taken nor refused, and would wake us at once again.
    rest: Option<Instant>,
}

impl Clients {
    /// Returns the clients of `listener`, of which there are none yet.
    pub fn new(listener: Option<UnixListener>) -> Clients {
        Clients { listener, clients: Vec::new(), next: 1, reserve: reserve(), rest: None }
    }

    /// What is to be waited for; with `busy` only that answers are taken.
    /// Nobody stands for the socket itself.
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

    /// When [`accept`](Self::accept) or [`expire`](Self::expire) has something to do though nothing comes.
    pub fn deadline(&self) -> Option<Instant> {
        self.clients.iter().filter_map(|client| client.due).chain(self.rest).min()
    }

    /// Takes those who have come.
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
            return turn_away(socket, &format!("the machine has {CLIENTS_MAX} clients, the most it takes"));
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

    /// Takes a client with the descriptor that is kept for it, to tell it that there is no other. Returns whether that
    /// could be done, and can be done again.
    fn refuse(&mut self) -> bool {
        let told = self.reserve.take().is_some() && {
            let accepted = self.listener.as_ref().and_then(|listener| listener.accept().ok());
            accepted.map(|(socket, _)| turn_away(socket, "the machine has no further descriptors")).is_some()
        };
        self.reserve = reserve();
        told && self.reserve.is_some()
    }

    /// Lets go of those who have begun a request and not ended it in time, or not even begun one.
    pub fn expire(&mut self, now: Instant) {
        for client in &mut self.clients {
            if client.due.is_some_and(|due| due <= now) {
                client.closed = true;
                log::debug!("client {}: no request within {} s", client.id, deadlines::REQUEST.as_secs());
            }
        }
    }

    /// Takes what a client has sent. Returns false if it is gone.
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

    /// The process behind a connection, as long as it is there.
    pub fn process(&self, id: ClientId) -> Option<u32> {
        let client = self.clients.iter().find(|client| client.id == id && !client.closed)?;
        sys::peer_process(client.connection.fd()).ok()
    }

    /// Takes a client's next request.
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

    /// Tells a client that its answer comes later.
    pub fn accepted(&mut self, id: ClientId) {
        self.answer(id, &Reply::Accepted);
    }

    /// Gives `reply` to each who still waits for an answer, as far as their sockets take it.
    pub fn fail(&mut self, reply: &Reply) {
        let waiting = self.clients.iter().filter(|client| client.waits).map(|client| client.id);
        for id in waiting.collect::<Vec<_>>() {
            self.answer_last(id, reply);
        }
        // Who cannot be told sees the connection's end.
        self.flush();
    }

    /// Answers a client, if it is still there.
    pub fn answer(&mut self, id: ClientId, reply: &Reply) {
        let Some(client) = self.clients.iter_mut().find(|client| client.id == id) else { return };
        // A process that has been started is waited for, too.
        client.waits = matches!(reply, Reply::Accepted | Reply::Started);
        if let Err(error) = client.connection.send(reply) {
            client.closed = true;
            client.fault(&error);
        }
    }

    /// Answers a client for the last time.
    pub fn answer_last(&mut self, id: ClientId, reply: &Reply) {
        self.answer(id, reply);
        let client = self.clients.iter_mut().find(|client| client.id == id);
        client.into_iter().for_each(|client| client.done = true);
    }

    /// Writes the answers, and lets go of those who have their last. Returns those who were lost before.
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

/// Whether the process or the host has no further descriptor.
fn is_scarce(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// Tells who has come why it cannot stay.
fn turn_away(socket: UnixStream, why: &str) {
    let told = Connection::new(socket).and_then(|mut connection| {
        connection.send(&refused(why.to_owned()))?;
        connection.flush()
    });
    told.unwrap_or_else(|error| log::debug!("{error}"));
    log::warn!("a client of the pod's socket was turned away: {why}");
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Asks, and has the pod answer meanwhile.
    fn answer(clients: &mut Clients, client: &mut Connection, id: ClientId) -> Result<Reply, ControlError> {
        client.send(&Request::Stats).unwrap();
        client.flush().unwrap();
        assert!(clients.receive(id));
        assert_eq!(clients.next(id).unwrap().0, Request::Stats);
        clients.answer(id, &Reply::Done);
        assert!(clients.flush().is_empty());
        next(client)
    }

    /// The next message of the pod.
    fn next(client: &mut Connection) -> Result<Reply, ControlError> {
        loop {
            if let Some((reply, _)) = client.take()? {
                return Ok(reply);
            }
            if !client.receive()? {
                return Err(ControlError::Ended);
            }
        }
    }

    /// A socket in a folder, and its clients, of whom there are none.
    fn none() -> (tempfile::TempDir, Clients) {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        listener.set_nonblocking(true).unwrap();
        (folder, Clients::new(Some(listener)))
    }

    fn connect(folder: &tempfile::TempDir) -> UnixStream {
        UnixStream::connect(folder.path().join("s")).unwrap()
    }

    /// Clients of a socket in a folder, one of whom has come.
    fn one() -> (tempfile::TempDir, Clients, Connection, ClientId) {
        let (folder, mut clients) = none();
        let client = Connection::new(connect(&folder)).unwrap();
        clients.accept(Instant::now());
        let id = clients.interests(false, Instant::now())[0].0.unwrap();
        (folder, clients, client, id)
    }

    #[test]
    fn a_client_is_heard_and_answered() {
        let (_folder, mut clients, mut client, id) = one();
        assert_eq!(answer(&mut clients, &mut client, id).unwrap(), Reply::Done);
        assert!(clients.next(id).is_none());
        clients.answer_last(id, &Reply::Exited(1));
        assert!(clients.flush().is_empty());
        assert_eq!(next(&mut client).unwrap(), Reply::Exited(1));
        assert!(matches!(next(&mut client), Err(ControlError::Ended)));
        // Nobody is there any more to be answered.
        clients.answer(id, &Reply::Done);
    }

    #[test]
    fn who_makes_no_sense_or_goes_is_let_go() {
        let (folder, mut clients, client, id) = one();
        drop(client);
        assert!(!clients.receive(id));
        assert_eq!(clients.interests(false, Instant::now()).len(), 1);
        for bytes in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x01x"] {
            let mut socket = connect(&folder);
            socket.write_all(bytes).unwrap();
            clients.accept(Instant::now());
            let id = clients.interests(false, Instant::now())[0].0.unwrap();
            assert!(clients.receive(id));
            assert!(clients.next(id).is_none());
            assert_eq!(clients.flush(), [id]);
        }
    }

    #[test]
    fn a_busy_pod_hears_nobody_and_answers_all_the_same() {
        let (_folder, mut clients, _client, id) = one();
        assert_eq!(clients.interests(true, Instant::now()).len(), 0);
        clients.answer(id, &Reply::Done);
        assert_eq!(clients.interests(true, Instant::now())[0].1.1, libc::POLLOUT);
    }

    #[test]
    fn who_does_not_say_what_it_wants_is_let_go() {
        let (folder, mut clients, mut client, id) = one();
        clients.expire(Instant::now());
        assert!(clients.flush().is_empty());
        // One that has been heard may stay, as whoever waits for a process does.
        assert_eq!(answer(&mut clients, &mut client, id).unwrap(), Reply::Done);
        assert_eq!(clients.deadline(), None);
        let mut half = connect(&folder);
        half.write_all(b"\0\0").unwrap();
        clients.accept(Instant::now());
        let other = clients.clients[1].id;
        assert!(clients.receive(other) && clients.next(other).is_none());
        clients.expire(clients.deadline().unwrap());
        assert_eq!(clients.flush(), [other]);
        assert_eq!(clients.deadline(), None);
    }

    #[test]
    fn one_too_many_is_told_so() {
        let (folder, mut clients) = none();
        let mut all: Vec<_> = (0..CLIENTS_MAX)
            .map(|_| {
                let socket = connect(&folder);
                clients.accept(Instant::now());
                socket
            })
            .collect();
        let mut further = Connection::new(connect(&folder)).unwrap();
        clients.accept(Instant::now());
        let told = next(&mut further).unwrap();
        assert_eq!(told, refused("the machine has 512 clients, the most it takes".into()));
        assert!(matches!(next(&mut further), Err(ControlError::Ended)));
        drop(all.pop());
        let gone = clients.clients[CLIENTS_MAX - 1].id;
        assert!(!clients.receive(gone));
        let _next = connect(&folder);
        clients.accept(Instant::now());
        assert_eq!(clients.clients.len(), CLIENTS_MAX);
    }

    #[test]
    fn who_waits_for_the_guest_is_told_of_its_end() {
        let (_folder, mut clients, mut client, id) = one();
        clients.accepted(id);
        clients.fail(&refused("no answer".into()));
        assert_eq!(next(&mut client).unwrap(), Reply::Accepted);
        assert_eq!(next(&mut client).unwrap(), refused("no answer".into()));
        assert!(matches!(next(&mut client), Err(ControlError::Ended)));
    }
}
