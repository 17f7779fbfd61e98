//! CONNECT: a connection of the host to a TCP port of the loopback interface, on which the pod's programs listen.
//!
//! A process of the agent makes the connection and carries its data. To the rest of the agent it is like an exec process:
//! the connection's data are its standard streams, and its exit code says how the connection ended.

use alloc::format;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use agent_proto::command::Code;
use agent_proto::payload::{Connect, GUEST, Process};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, sockopt};

use crate::error::{Error, Step};
use crate::process::child::Stdio;
use crate::process::{pipes, report};
use crate::start::{AgentEnds, Forked, StartCommand};
use crate::state::State;
use crate::sys::{self, Fork};

/// Limit of bytes that are read at a time and wait to be written, in each direction.
const BUFFER: usize = 32 << 10;
/// Seconds within which a server must accept a connection.
const CONNECT_SECONDS: i64 = 5;

impl State {
    /// Starts to carry a connection. The command is answered when the server has accepted or refused it.
    pub(crate) fn connect(&mut self, id: u32, command: &Connect) -> Result<(), Error> {
        let Connect { name, port, stream } = command;
        let spec = Process { id: name.clone(), stdio: *stream, ..Process::default() };
        self.check_new(GUEST, &spec)?;
        let (pipes, stdio) = pipes(&spec)?;
        let (agent_report, report) = report::channel()?;
        match sys::fork(0, None).step("start", "process for a connection")? {
            Fork::Child => run(stdio, report, *port),
            Fork::Parent { pid, pidfd } => {
                let ends = AgentEnds { pipes, report: agent_report };
                let started_by = StartCommand { id, code: Code::Connect };
                self.add(GUEST, &spec, Forked { pid, pidfd }, ends, started_by).map(drop)
            }
        }
    }
}

/// Becomes the process that carries the connection.
fn run(stdio: Stdio, report: OwnedFd, port: u16) -> ! {
    sys::reset_signals();
    let Stdio { stdin: Some(input), stdout: Some(output), .. } = stdio else { sys::exit(1) };
    sys::close_others([&input, &output, &report].map(|fd| Some(fd.as_fd())));
    let _ = rustix::thread::set_name(c"forward");
    match connect(port).step("connect to", &format!("port {port}")) {
        Ok(socket) => {
            drop(report);
            sys::exit(i32::from(carry(input, output, &socket).is_err()))
        }
        Err(error) => {
            report::send_error(&report, &error);
            sys::exit(1)
        }
    }
}

fn connect(port: u16) -> Result<OwnedFd, Errno> {
    match connect_to(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)) {
        Err(Errno::CONNREFUSED) => connect_to(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port)),
        connected => connected,
    }
}

/// Connects to an address. A server that accepts no connection must not make the agent seem silent.
fn connect_to(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    match rustix::net::connect(&socket, &address) {
        Err(Errno::INPROGRESS) => {}
        connected => return connected.map(|()| socket),
    }
    let patience = Timespec { tv_sec: CONNECT_SECONDS, tv_nsec: 0 };
    match poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&patience))? {
        0 => Err(Errno::TIMEDOUT),
        _ => sockopt::socket_error(&socket)?.map(|()| socket),
    }
}

/// Carries data until both directions have ended. The end of one direction is passed on at once.
fn carry(input: OwnedFd, output: OwnedFd, socket: &OwnedFd) -> Result<(), Errno> {
    for fd in [&input, &output] {
        rustix::fs::fcntl_setfl(fd, OFlags::NONBLOCK)?;
    }
    let (mut sent, mut received) = (Half::default(), Half::default());
    let (mut input, mut output) = (Some(input), Some(output));
    while input.is_some() || output.is_some() {
        let from_host = input.as_ref().map(|input| sent.watched(input.as_fd(), socket.as_fd()));
        let to_host = output.as_ref().map(|output| received.watched(socket.as_fd(), output.as_fd()));
        match poll(&mut from_host.into_iter().chain(to_host).collect::<Vec<_>>(), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        if let Some(from) = &input
            && sent.advance(from.as_fd(), socket.as_fd())?
        {
            // A server that has closed the connection needs no information.
            let _ = rustix::net::shutdown(socket, Shutdown::Write);
            input = None;
        }
        if let Some(to) = &output
            && received.advance(socket.as_fd(), to.as_fd())?
        {
            output = None;
        }
    }
    Ok(())
}

/// One direction.
#[derive(Default)]
struct Half {
    data: Vec<u8>,
    /// Number of bytes of `data` that were written.
    written: usize,
}

impl Half {
    fn watched<'a>(&self, from: BorrowedFd<'a>, to: BorrowedFd<'a>) -> PollFd<'a> {
        match self.data.is_empty() {
            true => PollFd::from_borrowed_fd(from, PollFlags::IN),
            false => PollFd::from_borrowed_fd(to, PollFlags::OUT),
        }
    }

    /// Moves what can be moved without waiting. Returns whether the direction has ended.
    fn advance(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<bool, Errno> {
        loop {
            let moved = match self.data.get(self.written..) {
                Some(rest @ [_, ..]) => rustix::io::write(to, rest).map(|count| self.written += count),
                _ => {
                    self.data.clear();
                    self.written = 0;
                    match sys::read_append(from, &mut self.data, BUFFER) {
                        Ok(0) => return Ok(true),
                        other => other.map(drop),
                    }
                }
            };
            match moved {
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(errno) => return Err(errno),
            }
        }
    }
}
