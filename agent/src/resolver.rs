//! Forwards name queries to a server on a loopback address of the host's network namespace.
//!
//! An engine's name server listens on a loopback address in the container's network namespace on the host (Docker:
//! 127.0.0.11), and the container's resolv.conf contains that address. The guest has another loopback interface. So a
//! separate process accepts the queries in the guest and sends them through a port to the host, which forwards them in
//! that namespace.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, SocketAddrV4};

use agent_proto::datagram::{self, DATAGRAM_MAX};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use self::connections::Connections;
use crate::error::{Error, Step};
use crate::ports;
use crate::sys::{self, Fork};

mod connections;

/// UDP and TCP port of DNS.
const DNS: u16 = 53;
/// Limit of connections that wait to be accepted.
const BACKLOG: i32 = 16;
/// Limit of bytes that are read from the port at a time.
const READ: usize = 16 << 10;

/// Parses the address at which queries are accepted.
pub fn parse(address: &str) -> Result<Ipv4Addr, Error> {
    address.parse().map_err(|_| Error::bad_request(format!("resolver: invalid IPv4 address {address:?}")))
}

/// Starts to accept queries at `address`, in a process that runs as long as the guest.
pub fn start(address: Ipv4Addr) -> Result<(), Error> {
    let name = &address.to_string();
    let bound = |kind, flags| {
        let socket = rustix::net::socket_with(AddressFamily::INET, kind, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrV4::new(address, DNS))?;
        Ok(socket)
    };
    let socket = bound(SocketType::DGRAM, SocketFlags::CLOEXEC).step("bind UDP socket to", name)?;
    let listener = bound(SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        .and_then(|socket| rustix::net::listen(&socket, BACKLOG).map(|()| socket))
        .step("listen for TCP connections at", name)?;
    let port = ports::open_resolver()?;
    match sys::fork(0, None).step("start", "resolver process")? {
        Fork::Child => {
            sys::close_others([&socket, &listener, &port].map(|fd| Some(fd.as_fd())));
            let _ = rustix::thread::set_name(c"resolver");
            let _ = serve(&socket, &listener, &port);
            sys::exit(1)
        }
        Fork::Parent { .. } => Ok(()),
    }
}

/// Forwards queries and answers until the port fails.
fn serve(socket: &OwnedFd, listener: &OwnedFd, port: &OwnedFd) -> Result<(), Errno> {
    let (mut incoming, mut outgoing) = (Vec::new(), Vec::new());
    let mut connections = Connections::default();
    let mut data = [0; DATAGRAM_MAX];
    loop {
        let mut fds: Vec<PollFd<'_>> =
            [socket, listener, port].map(|fd| PollFd::new(fd, PollFlags::IN)).into_iter().collect();
        fds.extend(connections.watched());
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        if ready[0]
            && let Ok((_, count, Some(from))) = rustix::net::recvfrom(socket, &mut data, RecvFlags::DONTWAIT)
            && let Ok(program) = SocketAddrV4::try_from(from)
        {
            datagram::encode(program, &data[..count], &mut outgoing);
        }
        connections.take(&ready[3..], &mut outgoing);
        if ready[1] {
            connections.accept(listener);
        }
        write_all(port.as_fd(), &outgoing)?;
        outgoing.clear();
        if ready[2] {
            match sys::read_append(port.as_fd(), &mut incoming, READ) {
                Ok(0) => return Ok(()),
                Ok(_) => {
                    datagram::drain(&mut incoming, |program, data| match datagram::connection(program) {
                        Some(number) => connections.answer(number, data),
                        // Ignore failures: the program may have exited.
                        None => _ = rustix::net::sendto(socket, data, SendFlags::DONTWAIT, &program),
                    })
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

fn write_all(port: BorrowedFd<'_>, mut data: &[u8]) -> Result<(), Errno> {
    while !data.is_empty() {
        match rustix::io::write(port, data) {
            Ok(count) => data = &data[count..],
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::from_borrowed_fd(port, PollFlags::OUT)], None);
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
