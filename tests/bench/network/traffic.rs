//! The traffic of the bench of networks: what the guest does, and the host's other end.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::contenders::HOST;

/// Ports of the host's end, TCP and UDP.
const STREAMS: u16 = 7001;
const DATAGRAMS: u16 = 7002;
/// Size of reads and writes of streams in bytes.
const BLOCK: usize = 128 << 10;
/// Size of requests, responses and datagrams in bytes.
const SMALL: usize = 64;
/// Datagrams that may be on their way, and of how many one is acknowledged: none is lost for want of a buffer.
const WINDOW: usize = 128;
const ACKNOWLEDGED: usize = 32;
/// Time after which a datagram is lost.
const LOST: Duration = Duration::from_secs(5);

/// A kind of traffic.
#[derive(Clone, Copy)]
pub struct Operation {
    pub name: &'static str,
    /// Name of the group for the command line.
    group: &'static str,
    /// MiB, requests or datagrams of one sample.
    pub count: usize,
    run: fn(usize),
}

/// All kinds of traffic, in the order of the table.
const OPERATIONS: [Operation; 9] = [
    Operation { name: "1 MiB to the host, 1 stream", group: "streams", count: 48, run: |mib| upload(1, mib) },
    Operation {
        name: "1 MiB to the host, 8 streams",
        group: "streams",
        count: 48,
        run: |mib| upload(8, mib),
    },
    Operation {
        name: "1 MiB from the host, 1 stream",
        group: "streams",
        count: 48,
        run: |mib| download(1, mib),
    },
    Operation {
        name: "1 MiB from the host, 8 streams",
        group: "streams",
        count: 48,
        run: |mib| download(8, mib),
    },
    Operation { name: "TCP request and response", group: "requests", count: 1000, run: requests },
    Operation { name: "UDP request and response", group: "requests", count: 1000, run: datagram_requests },
    Operation { name: "TCP connection with a request", group: "connections", count: 200, run: connections },
    Operation { name: "UDP packet to the host", group: "packets", count: 8192, run: send_datagrams },
    Operation { name: "UDP packet from the host", group: "packets", count: 8192, run: receive_datagrams },
];

/// Returns the operations of these groups, or all if there are none.
pub fn chosen(groups: &[&str]) -> Vec<Operation> {
    for group in groups {
        assert!(OPERATIONS.iter().any(|operation| operation.group == *group), "no group {group}");
    }
    let all = OPERATIONS.iter().copied();
    all.filter(|operation| groups.is_empty() || groups.contains(&operation.group)).collect()
}

/// Runs the operation `name` in the guest.
pub fn run(name: &str, count: usize) {
    let operation = OPERATIONS.iter().find(|operation| operation.name == name).expect("a known operation");
    (operation.run)(count);
}

/// Starts the host's end.
pub fn serve() {
    let streams = TcpListener::bind((HOST, STREAMS)).expect("listen");
    thread::spawn(move || {
        for stream in streams.incoming() {
            let stream = stream.expect("accept");
            thread::spawn(move || answer(stream));
        }
    });
    let datagrams = UdpSocket::bind((HOST, DATAGRAMS)).expect("bind");
    thread::spawn(move || answer_datagrams(&datagrams));
}

/// The host's end of a stream. Its first byte says what the guest does.
fn answer(mut stream: TcpStream) {
    stream.set_nodelay(true).expect("do not wait for more to send");
    let mut word = [0; 9];
    stream.read_exact(&mut word).expect("read the first bytes");
    let count = u64::from_le_bytes(word[1..].try_into().expect("eight bytes")) as usize;
    match word[0] {
        b'u' => {
            drain(&mut stream);
            // The guest has closed its direction, and waits for this byte.
            stream.write_all(b"d").expect("tell of the end");
        }
        b'd' => pour(&mut stream, count),
        b'r' => {
            let mut request = [0; SMALL];
            while stream.read_exact(&mut request).is_ok() {
                stream.write_all(&request).expect("respond");
            }
        }
        other => panic!("no kind of stream {other}"),
    }
}

/// A stream of a kind to the host's end.
fn connect(kind: u8, count: usize) -> TcpStream {
    let mut stream = TcpStream::connect((HOST, STREAMS)).expect("connect");
    stream.set_nodelay(true).expect("do not wait for more to send");
    let mut word = [kind; 9];
    word[1..].copy_from_slice(&(count as u64).to_le_bytes());
    stream.write_all(&word).expect("send the first bytes");
    stream
}

fn pour(stream: &mut TcpStream, count: usize) {
    let block = vec![1; BLOCK];
    let mut rest = count;
    while rest > 0 {
        let len = rest.min(BLOCK);
        stream.write_all(&block[..len]).expect("write");
        rest -= len;
    }
}

/// Reads to the end, and returns the number of bytes.
fn drain(stream: &mut TcpStream) -> usize {
    let mut block = vec![0; BLOCK];
    let mut bytes = 0;
    loop {
        match stream.read(&mut block).expect("read") {
            0 => return bytes,
            len => bytes += len,
        }
    }
}

/// Does `work` in so many threads, and waits for all.
fn at_once(streams: usize, work: impl Fn() + Sync) {
    thread::scope(|scope| {
        for _ in 1..streams {
            scope.spawn(&work);
        }
        work();
    });
}

fn upload(streams: usize, mib: usize) {
    let bytes = (mib << 20) / streams;
    at_once(streams, || {
        let mut stream = connect(b'u', bytes);
        pour(&mut stream, bytes);
        stream.shutdown(std::net::Shutdown::Write).expect("end");
        stream.read_exact(&mut [0]).expect("wait until all has arrived");
    });
}

fn download(streams: usize, mib: usize) {
    let bytes = (mib << 20) / streams;
    at_once(streams, || assert_eq!(drain(&mut connect(b'd', bytes)), bytes));
}

fn requests(count: usize) {
    let mut stream = connect(b'r', 0);
    (0..count).for_each(|_| request(&mut stream));
}

fn connections(count: usize) {
    (0..count).for_each(|_| request(&mut connect(b'r', 0)));
}

fn request(stream: &mut TcpStream) {
    let mut bytes = [3; SMALL];
    stream.write_all(&bytes).expect("request");
    stream.read_exact(&mut bytes).expect("read the response");
}

/// A datagram: kind, number and nothing.
fn datagram(kind: u8, number: usize) -> [u8; SMALL] {
    let mut bytes = [0; SMALL];
    bytes[0] = kind;
    bytes[1..9].copy_from_slice(&(number as u64).to_le_bytes());
    bytes
}

/// A socket with one peer.
struct Datagrams<'a> {
    socket: &'a UdpSocket,
    peer: SocketAddr,
}

impl Datagrams<'_> {
    fn send(&self, kind: u8, number: usize) {
        self.socket.send_to(&datagram(kind, number), self.peer).expect("send a datagram");
    }

    /// Returns the number in the next datagram.
    fn receive(&self) -> usize {
        let mut bytes = [0; SMALL];
        self.socket.recv_from(&mut bytes).expect("receive a datagram");
        u64::from_le_bytes(bytes[1..9].try_into().expect("eight bytes")) as usize
    }

    /// Sends so many datagrams, as fast as the peer acknowledges them.
    fn pour(&self, count: usize) {
        let mut acknowledged = 0;
        for number in 1..=count {
            self.send(b's', number);
            while number - acknowledged >= WINDOW || (number == count && acknowledged < count) {
                acknowledged = self.receive();
            }
        }
    }

    /// Receives datagrams up to number `count`, of which `received` have come.
    fn drain(&self, received: usize, count: usize) {
        for expected in received + 1..=count {
            assert_eq!(self.receive(), expected, "a datagram was lost");
            self.acknowledge(expected, count);
        }
    }

    fn acknowledge(&self, number: usize, count: usize) {
        if number.is_multiple_of(ACKNOWLEDGED) || number == count {
            self.send(b'a', number);
        }
    }
}

/// The host's end of all datagrams. The guest announces what it does.
fn answer_datagrams(socket: &UdpSocket) {
    loop {
        let mut bytes = [0; SMALL];
        let (_, peer) = socket.recv_from(&mut bytes).expect("receive a datagram");
        let count = u64::from_le_bytes(bytes[1..9].try_into().expect("eight bytes")) as usize;
        let datagrams = Datagrams { socket, peer };
        match bytes[0] {
            b'r' => datagrams.send(b'r', count),
            b'u' => {
                datagrams.send(b'u', count);
                datagrams.drain(0, count);
            }
            b'd' => datagrams.pour(count),
            other => panic!("no kind of datagram {other}"),
        }
    }
}

/// Does `work` with a socket to the host's end.
fn with_datagrams(work: impl FnOnce(&Datagrams)) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bind");
    socket.set_read_timeout(Some(LOST)).expect("set a deadline");
    work(&Datagrams { socket: &socket, peer: (HOST, DATAGRAMS).into() });
}

fn datagram_requests(count: usize) {
    with_datagrams(|datagrams| {
        for number in 0..count {
            datagrams.send(b'r', number);
            assert_eq!(datagrams.receive(), number);
        }
    });
}

fn send_datagrams(count: usize) {
    with_datagrams(|datagrams| {
        datagrams.send(b'u', count);
        datagrams.receive();
        datagrams.pour(count);
    });
}

fn receive_datagrams(count: usize) {
    with_datagrams(|datagrams| {
        datagrams.send(b'd', count);
        datagrams.drain(0, count);
    });
}
