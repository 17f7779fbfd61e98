//! Both ends of a connection: one runs in a guest, the other on its host.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// Maximum time for the answer to a datagram, either of which may be lost.
const ANSWER: Duration = Duration::from_secs(2);
/// How often a datagram is sent until its answer arrives.
const ATTEMPTS: usize = 20;

/// Returns every datagram to its sender, forever.
pub fn echo(address: &str) {
    let socket = UdpSocket::bind(address).unwrap();
    println!("ready");
    let mut datagram = vec![0; 1 << 16];
    loop {
        let (len, from) = socket.recv_from(&mut datagram).unwrap();
        socket.send_to(&datagram[..len], from).unwrap();
    }
}

/// Sends datagrams of many lengths, some of them longer than a packet, and asserts that each is returned.
pub fn datagrams(address: &str) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(address).unwrap();
    socket.set_read_timeout(Some(ANSWER)).unwrap();
    let mut answer = vec![0; 1 << 16];
    for len in [1, 17, 1000, 1372, 1373, 4000, 30_000, 65_507] {
        let datagram: Vec<u8> = (0..len).map(|at| (at * 7 % 251) as u8).collect();
        let arrived = (0..ATTEMPTS).any(|_| {
            socket.send(&datagram).unwrap();
            socket.recv(&mut answer).is_ok_and(|count| answer[..count] == datagram)
        });
        assert!(arrived, "a datagram of {len} bytes is not answered");
    }
}

/// Size of a block in bytes: a number, and pseudo-random bytes that are the same in each block.
const BLOCK: usize = 1 << 18;

/// Maximum time for the delivery of a load after its last write.
const DELIVERY_MAX: Duration = Duration::from_secs(60);

/// Writes the number of a block.
fn number(block: &mut [u8], number: u64) {
    block[..8].copy_from_slice(&number.to_le_bytes());
}

fn block() -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..BLOCK).map(|_| next()).collect()
}

/// Receives the load of one connection, asserts that it is complete, and prints how long it took.
pub fn drain(address: &str, mib: &str) {
    let listener = TcpListener::bind(address).unwrap();
    println!("ready");
    let (mut stream, _) = listener.accept().unwrap();
    let (start, mut expected, mut arrived) = (Instant::now(), block(), vec![0; BLOCK]);
    for at in 0..blocks(mib) {
        number(&mut expected, at);
        stream.read_exact(&mut arrived).unwrap();
        assert!(arrived == expected, "block {at} differs");
    }
    assert_eq!(stream.read(&mut arrived).unwrap(), 0, "the load is longer than expected");
    println!("{mib} MiB in {} ms", start.elapsed().as_millis());
}

/// Sends a load over one connection. Returns after its delivery: a guest may end with its last process, and drop the
/// rest.
pub fn pour(address: &str, mib: &str) {
    let mut stream = TcpStream::connect(address).unwrap();
    rustix::net::sockopt::set_socket_linger(&stream, Some(DELIVERY_MAX)).unwrap();
    let mut block = block();
    for at in 0..blocks(mib) {
        number(&mut block, at);
        stream.write_all(&block).unwrap();
    }
}

fn blocks(mib: &str) -> u64 {
    mib.parse::<u64>().unwrap() * (1 << 20) / BLOCK as u64
}

/// Serves connections, forever: returns what it gets, and at its end the number of bytes.
pub fn serve(address: &str) {
    let listener = TcpListener::bind(address).unwrap();
    println!("ready");
    for stream in listener.incoming() {
        std::thread::spawn(move || {
            let mut stream = stream.unwrap();
            let count = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream).unwrap();
            write!(stream, "{count} bytes").unwrap();
        });
    }
}

/// Opens a socket of each protocol that programs try beside TCP and UDP.
pub fn protocols() {
    use rustix::net::{AddressFamily, Protocol, SocketType, socket};
    let number = |number: u32| core::num::NonZero::new(number).map(Protocol::from_raw);
    let all = [
        ("SCTP", AddressFamily::INET, SocketType::STREAM, number(132)),
        ("SCTP of IPv6", AddressFamily::INET6, SocketType::SEQPACKET, number(132)),
        ("Multipath TCP", AddressFamily::INET, SocketType::STREAM, number(262)),
        ("the kernel's ciphers", AddressFamily::from_raw(38), SocketType::SEQPACKET, None),
        ("netlink", AddressFamily::NETLINK, SocketType::RAW, None),
    ];
    for (name, family, kind, protocol) in all {
        socket(family, kind, protocol).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
