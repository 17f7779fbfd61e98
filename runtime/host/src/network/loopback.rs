//! Connections to loopback addresses of a network namespace, whatever their TCP port.
//!
//! Programs of the host that enter a container's network namespace (`kubectl port-forward`, nsenter(1)) connect to
//! 127.0.0.1 there, where the guest's programs do not listen. The ports are not known beforehand, so a program of eBPF
//! selects one listening socket for all of them: it runs in this namespace alone, and only for connections to 127.0.0.1
//! and ::1. Other loopback addresses stay what they are: Docker's name server listens at 127.0.0.11. The kernel removes
//! the program with the last descriptor of its link, and so with this process.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::{set_ip_freebind, set_socket_linger, set_tcp_nodelay};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};

use crate::sys::bpf::{self, Instruction};

/// Maximum number of connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// License of the program, as the kernel knows it.
const LICENSE: &std::ffi::CStr = c"Apache-2.0";

/// The listening sockets, and the program that leads connections to them.
#[derive(Debug)]
pub struct Loopback {
    listeners: Vec<TcpListener>,
    _link: OwnedFd,
}

/// A connection to a port of the loopback interface.
#[derive(Debug)]
pub struct Connection {
    pub socket: TcpStream,
    /// The port to which the client has connected.
    pub port: u16,
}

impl Loopback {
    /// Listens in this thread's network namespace. A namespace without IPv6 has no ::1.
    ///
    /// # Errors
    ///
    /// Also if the kernel does not have or does not permit programs of this kind.
    pub fn listen() -> io::Result<Loopback> {
        let mut listeners = vec![listener(Ipv4Addr::LOCALHOST.into())?];
        listeners.extend(listener(Ipv6Addr::LOCALHOST.into()).ok());
        let map = bpf::socket_map(FAMILIES)?;
        for (key, listener) in (0..).zip(&listeners) {
            bpf::insert_socket(map.as_fd(), key, listener.as_fd())?;
        }
        let program = bpf::load_socket_lookup(&program(map.as_fd()), LICENSE)?;
        let namespace = File::open("/proc/thread-self/ns/net")?;
        let link = bpf::attach_socket_lookup(program.as_fd(), namespace.as_fd())?;
        Ok(Loopback { listeners, _link: link })
    }

    /// Returns descriptors that are readable when there may be a connection.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.listeners.iter().map(AsFd::as_fd)
    }

    /// Returns a connection; `None` if there is none now.
    pub fn accept(&self) -> Option<Connection> {
        // A connection that fails before it is accepted is the client's matter.
        let socket = self.listeners.iter().find_map(|listener| listener.accept().ok())?.0;
        let port = socket.local_addr().ok()?.port();
        Some(Connection { socket, port })
    }
}

/// Makes the end of a connection a reset, as for a port at which nothing listens.
pub fn reset_at_end(socket: &TcpStream) {
    // Without it the client sees the end of the data.
    set_socket_linger(socket, Some(Duration::ZERO)).unwrap_or_else(|error| log::debug!("SO_LINGER: {error}"));
}

fn listener(address: IpAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    // The interface may not be up yet.
    set_ip_freebind(&socket, true)?;
    // Connections inherit it.
    set_tcp_nodelay(&socket, true)?;
    bind(&socket, &SocketAddr::new(address, 0))?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Number of address families, whose listeners are 0 and 1 in the map.
const FAMILIES: u32 = 2;
/// Offsets in struct bpf_sk_lookup (linux/bpf.h).
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_IP4: i16 = 40;
const LOCAL_IP6: i16 = 44;
/// Numbers of helper functions.
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;
/// Answer of the program: use the socket that it has selected, or without one that of the usual search.
const PASS: i32 = 1;

/// Registers: the answer, arguments of a helper, two that helpers keep, and the end of the stack.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const CONTEXT: u8 = 6;
const SOCKET: u8 = 7;
const STACK: u8 = 10;
/// Place of the key on the stack.
const KEY: i16 = -4;

/// Operation codes (Linux, Documentation/bpf/instruction-set.rst).
const ADD: u8 = 0x07;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const LOAD_WORD: u8 = 0x61;
const STORE_WORD: u8 = 0x62;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const SET: u8 = 0xb7;
const COPY: u8 = 0xbf;

/// Returns the program: for each family a block that selects its socket. Addresses have the order of the network.
fn program(map: BorrowedFd<'_>) -> Vec<Instruction> {
    let v4 = i32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets());
    let v6 = [0, 0, 0, i32::from_be(1)];
    let words = (LOCAL_IP6..).step_by(size_of::<i32>());
    let start = [copy(CONTEXT, R1)].into_iter();
    let v4 = block(map, 0, libc::AF_INET, &[(LOCAL_IP4, v4)]);
    let v6 = block(map, 1, libc::AF_INET6, &words.zip(v6).collect::<Vec<_>>());
    let end = [with_value(SET, R0, PASS), with_value(EXIT, R0, 0)];
    start.chain(v4).chain(v6).chain(end).collect()
}

/// Returns the block for a TCP connection of a family to an address, whose words have these offsets. If it is another
/// connection, or there is no socket for it, the program goes on behind the block.
fn block(map: BorrowedFd<'_>, key: i32, family: i32, address: &[(i16, i32)]) -> Vec<Instruction> {
    let first = [(PROTOCOL, libc::IPPROTO_TCP), (FAMILY, family)];
    let tests = first.iter().chain(address).flat_map(|(offset, value)| {
        let load = Instruction { offset: *offset, ..with_registers(LOAD_WORD, R2, CONTEXT) };
        [load, with_value(JUMP_UNLESS_EQUAL, R2, *value)]
    });
    let mut code: Vec<Instruction> = tests.collect();
    code.push(Instruction { offset: KEY, ..with_value(STORE_WORD, STACK, key) });
    code.extend(bpf::load_map(R1, map));
    code.extend([
        copy(R2, STACK),
        with_value(ADD, R2, KEY.into()),
        with_value(CALL, R0, MAP_LOOKUP_ELEM),
        with_value(JUMP_IF_EQUAL, R0, 0),
        copy(SOCKET, R0),
        copy(R1, CONTEXT),
        copy(R2, SOCKET),
        with_value(SET, R3, 0),
        with_value(CALL, R0, SK_ASSIGN),
        copy(R1, SOCKET),
        with_value(CALL, R0, SK_RELEASE),
    ]);
    let length = code.len();
    for (index, jump) in code.iter_mut().enumerate() {
        if matches!(jump.code, JUMP_IF_EQUAL | JUMP_UNLESS_EQUAL) {
            jump.offset = (length - index - 1) as i16;
        }
    }
    code
}

fn copy(to: u8, from: u8) -> Instruction {
    with_registers(COPY, to, from)
}

fn with_registers(code: u8, to: u8, from: u8) -> Instruction {
    Instruction { code, registers: to | from << 4, offset: 0, value: 0 }
}

fn with_value(code: u8, register: u8, value: i32) -> Instruction {
    Instruction { code, registers: register, offset: 0, value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_lead_behind_their_block() {
        let null = File::open("/dev/null").unwrap();
        let program = program(null.as_fd());
        let is_jump = |it: &&(usize, &Instruction)| matches!(it.1.code, JUMP_IF_EQUAL | JUMP_UNLESS_EQUAL);
        let jumps: Vec<_> = program.iter().enumerate().collect();
        let targets = jumps.iter().filter(is_jump).map(|(index, it)| index + 1 + it.offset as usize);
        let targets: Vec<usize> = targets.collect();
        let second =
            program.iter().skip(2).position(|it| it.offset == PROTOCOL && it.code == LOAD_WORD).unwrap();
        assert_eq!(targets[..4], [second + 2; 4]);
        assert_eq!(targets[4..], [program.len() - 2; 7]);
    }
}
