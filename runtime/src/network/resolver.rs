//! Serves a guest's name queries in the network namespace.
//!
//! Docker's name server listens on 127.0.0.11 in the namespace, which is not reachable from the guest's loopback. The
//! agent accepts the queries there and sends them through a port of the console. The host sends each query over a
//! socket of its own, UDP or TCP like the original, and returns the answer.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use agent_proto::datagram::{self, DATAGRAM_MAX};
use host::confine::{self, Role};
use host::sys;
use oci::Spec;

/// Maximum number of queries that wait for an answer. Another query replaces the oldest one.
const QUERIES_MAX: usize = 64;
const DNS: u16 = 53;
/// Maximum time for a server on this host to accept a connection and a query.
const PATIENCE: Duration = Duration::from_secs(2);
/// Maximum number of bytes per read from the guest.
const READ: usize = 16 << 10;
/// Maximum number of bytes of a resolv.conf that are parsed.
const RESOLV_CONF_MAX: u64 = 64 << 10;
/// The UDP sockets of this thread's network namespace (proc_pid_net(5)).
const SOCKETS: &str = "/proc/thread-self/net/udp";

/// A container's name queries, until a server is found.
#[derive(Debug)]
pub struct NameQueries {
    /// Path of the container's resolv.conf on the host.
    resolv_conf: PathBuf,
    /// Starts the thread that has the host's end of the guest's port. The thread exists before the machine runs, because
    /// the main thread may open no socket later, nor start a thread that may.
    start: Sender<Ipv4Addr>,
}

impl NameQueries {
    /// Returns the queries of a container whose resolv.conf is on the host, and the end of the guest's port.
    pub fn of(spec: &Spec) -> io::Result<Option<(NameQueries, UnixStream)>> {
        let mut mounts = spec.mounts.iter();
        let Some(mount) = mounts.rfind(|mount| mount.destination == "/etc/resolv.conf") else {
            return Ok(None);
        };
        let (port, guest) = UnixStream::pair()?;
        let (start, server) = channel();
        thread::Builder::new().name("resolver".to_owned()).spawn(move || {
            confine::enter(Role::Resolver);
            // An error means that the machine has ended, or that no server will be found.
            let Ok(server) = server.recv() else { return };
            if let Err(error) = carry(port, SocketAddrV4::new(server, DNS)) {
                log::debug!("name queries: {error}");
            }
        })?;
        Ok(Some((NameQueries { resolv_conf: PathBuf::from(&mount.source), start }, guest)))
    }

    /// Returns the loopback address that the container's resolv.conf names at present, if a server listens there in the
    /// namespace of this thread.
    pub fn server(&self) -> Option<Ipv4Addr> {
        let mut text = String::new();
        fs::File::open(&self.resolv_conf).ok()?.take(RESOLV_CONF_MAX).read_to_string(&mut text).ok()?;
        let listening = listening(&fs::read_to_string(SOCKETS).ok()?);
        name_servers(&text).find(|server| server.is_loopback() && listening.contains(server))
    }

    /// Sends the guest's queries to `server` from now on, in the thread that ends with the port.
    pub fn serve(self, server: Ipv4Addr) -> io::Result<()> {
        self.start.send(server).map_err(io::Error::other)
    }
}

fn name_servers(resolv_conf: &str) -> impl Iterator<Item = Ipv4Addr> {
    let servers = resolv_conf.lines().filter_map(|line| line.strip_prefix("nameserver"));
    servers.filter_map(|server| server.trim().parse().ok())
}

/// Returns the local addresses of UDP sockets: the second column, in host byte order.
fn listening(sockets: &str) -> Vec<Ipv4Addr> {
    let address = |line: &str| {
        let (address, _) = line.split_whitespace().nth(1)?.split_once(':')?;
        Some(Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?.to_ne_bytes()))
    };
    sockets.lines().skip(1).filter_map(address).collect()
}

struct Query {
    socket: Socket,
    program: SocketAddrV4,
}

/// Each query has a socket of its own, so that answers cannot be confused.
enum Socket {
    Udp(UdpSocket),
    /// With the bytes of the answer so far, after its length.
    Tcp(TcpStream, Vec<u8>),
}

impl Query {
    fn ask(server: SocketAddrV4, program: SocketAddrV4, query: &[u8]) -> io::Result<Query> {
        if datagram::connection(program).is_none() {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_nonblocking(true)?;
            socket.connect(server)?;
            socket.send(query)?;
            return Ok(Query { socket: Socket::Udp(socket), program });
        }
        let length = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // The server is on this host, so this does not block for long.
        let mut stream = TcpStream::connect_timeout(&server.into(), PATIENCE)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(&[&length.to_be_bytes(), query].concat())?;
        stream.set_nonblocking(true)?;
        Ok(Query { socket: Socket::Tcp(stream, Vec::new()), program })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Udp(socket) => socket.as_fd(),
            Socket::Tcp(stream, _) => stream.as_fd(),
        }
    }

    /// Reads from the server, and appends a complete answer to `out`. Returns whether more is to come.
    fn take(&mut self, buffer: &mut [u8], out: &mut Vec<u8>) -> bool {
        match &mut self.socket {
            Socket::Udp(socket) => {
                // An error is a refusal of the server. The guest's program asks again or gives up, as on the host.
                if let Ok(count) = socket.recv(buffer) {
                    datagram::encode(self.program, &buffer[..count], out);
                }
                false
            }
            Socket::Tcp(stream, came) => {
                let more = match stream.read(buffer) {
                    Ok(count) => {
                        came.extend_from_slice(&buffer[..count]);
                        count > 0
                    }
                    Err(error) => {
                        matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
                    }
                };
                let whole = came
                    .split_first_chunk()
                    .and_then(|(length, rest)| rest.get(..usize::from(u16::from_be_bytes(*length))));
                if whole.is_some() || !more {
                    datagram::encode(self.program, whole.unwrap_or_default(), out);
                }
                whole.is_none() && more
            }
        }
    }
}

fn carry(mut port: UnixStream, server: SocketAddrV4) -> io::Result<()> {
    let mut queries: VecDeque<Query> = VecDeque::new();
    let (mut incoming, mut outgoing) = (Vec::new(), Vec::new());
    let (mut buffer, mut answer) = (vec![0; READ], vec![0; DATAGRAM_MAX]);
    loop {
        let sockets = queries.iter().map(|query| (query.fd(), libc::POLLIN));
        let watched: Vec<_> = std::iter::once((port.as_fd(), libc::POLLIN)).chain(sockets).collect();
        let ready = sys::poll_all(watched.iter(), None)?;
        let mut ready_queries = ready[1..].iter();
        queries.retain_mut(|query| {
            !ready_queries.next().is_some_and(|it| *it) || query.take(&mut answer, &mut outgoing)
        });
        if ready[0] {
            let count = match port.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                other => other?,
            };
            incoming.extend_from_slice(&buffer[..count]);
            datagram::drain(&mut incoming, |program, data| match Query::ask(server, program, data) {
                Ok(query) => queries.push_back(query),
                Err(error) => {
                    log::debug!("ask {server}: {error}");
                    if datagram::connection(program).is_some() {
                        datagram::encode(program, &[], &mut outgoing);
                    }
                }
            });
            queries.drain(..queries.len().saturating_sub(QUERIES_MAX));
        }
        port.write_all(&outgoing)?;
        outgoing.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn servers_and_listeners_are_read() {
        let text = "# of an engine\nsearch a\nnameserver 127.0.0.11\nnameserver ::1\nnameserver 9.9.9.9\noptions ndots:0\n";
        assert_eq!(
            name_servers(text).collect::<Vec<_>>(),
            [Ipv4Addr::new(127, 0, 0, 11), Ipv4Addr::new(9, 9, 9, 9)]
        );
        let sockets =
            "   sl  local_address rem_address   st\n  3: 0B00007F:9C5D 00000000:0000 07 00000000:00000000\n";
        assert_eq!(listening(sockets), [Ipv4Addr::new(127, 0, 0, 11)]);
    }

    /// Runs `carry` in a thread with the resolver's rights. A system call beyond them ends the tests.
    fn confined<T: Send + 'static>(carry: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        thread::spawn(move || {
            confine::enter(Role::Resolver);
            carry()
        })
    }

    /// Returns the next answer that the guest gets.
    fn next_answer(guest: &mut UnixStream) -> (SocketAddrV4, Vec<u8>) {
        let (mut received, mut answers) = (Vec::new(), Vec::new());
        while answers.is_empty() {
            let mut bytes = [0; 64];
            let count = guest.read(&mut bytes).unwrap();
            received.extend_from_slice(&bytes[..count]);
            datagram::drain(&mut received, |to, data| answers.push((to, data.to_vec())));
        }
        answers.remove(0)
    }

    #[test]
    fn queries_over_tcp_are_forwarded_over_tcp() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let std::net::SocketAddr::V4(address) = server.local_addr().unwrap() else { unreachable!() };
        let (mut guest, ours) = UnixStream::pair().unwrap();
        let carrier = confined(move || carry(ours, address));
        let mut ask = |number| {
            let mut sent = Vec::new();
            datagram::encode(datagram::of_connection(number), b"query", &mut sent);
            guest.write_all(&sent).unwrap();
            let (mut stream, mut query) = (server.accept().unwrap().0, [0; 7]);
            stream.read_exact(&mut query).unwrap();
            assert_eq!(&query, b"\0\x05query");
            (stream, guest.try_clone().unwrap())
        };
        let (mut stream, mut from) = ask(3);
        // In pieces, one of which splits the length.
        for piece in [&b"\0"[..], b"\x06ans", b"wer and more"] {
            stream.write_all(piece).unwrap();
        }
        assert_eq!(next_answer(&mut from), (datagram::of_connection(3), b"answer".to_vec()));
        let (stream, mut from) = ask(4);
        drop(stream);
        assert_eq!(next_answer(&mut from), (datagram::of_connection(4), Vec::new()));
        from.shutdown(std::net::Shutdown::Both).unwrap();
        carrier.join().unwrap().unwrap();
    }

    #[test]
    fn queries_are_forwarded_and_answers_returned() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let std::net::SocketAddr::V4(address) = server.local_addr().unwrap() else { unreachable!() };
        let (mut guest, ours) = UnixStream::pair().unwrap();
        let carrier = confined(move || carry(ours, address));
        let program = |number| SocketAddrV4::new(Ipv4Addr::LOCALHOST, number);
        let mut sent = Vec::new();
        datagram::encode(program(1), b"one", &mut sent);
        datagram::encode(program(2), b"two", &mut sent);
        guest.write_all(&sent).unwrap();
        let mut query = [0; 16];
        let mut asked = Vec::new();
        for _ in 0..2 {
            let (count, from) = server.recv_from(&mut query).unwrap();
            asked.push((query[..count].to_vec(), from));
        }
        // The answer to the second query arrives first.
        for (query, from) in asked.iter().rev() {
            server.send_to(&[b"re: ", query.as_slice()].concat(), from).unwrap();
        }
        let (mut received, mut answers) = (Vec::new(), Vec::new());
        while answers.len() < 2 {
            let mut bytes = [0; 64];
            let count = guest.read(&mut bytes).unwrap();
            received.extend_from_slice(&bytes[..count]);
            datagram::drain(&mut received, |to, data| answers.push((to.port(), data.to_vec())));
        }
        answers.sort();
        assert_eq!(answers, [(1, b"re: one".to_vec()), (2, b"re: two".to_vec())]);
        drop(guest);
        carrier.join().unwrap().unwrap();
    }
}
