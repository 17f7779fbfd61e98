//! Connections to the loopback interface of a container's network namespace, as `kubectl port-forward` makes them.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Nets;
use crate::lifecycle::{Container, reap};
use crate::members::{Engine, joining};

/// Maximum time for an answer.
const DEADLINE: Duration = Duration::from_secs(60);
/// Number of connections that are carried at a time.
const AT_A_TIME: usize = 64;

impl Nets {
    /// Connects to an address in the pod's namespace, from the host.
    fn connect(&self, address: &str) -> io::Result<TcpStream> {
        let connect = || {
            let namespace = File::open(self.path())?;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            TcpStream::connect(address)
        };
        let stream = thread::scope(|scope| scope.spawn(connect).join()).expect("connect in the namespace")?;
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(stream)
    }

    /// Connects to an address in the pod's namespace, sends `data`, and returns what comes back until the end.
    pub(crate) fn forwarded(&self, address: &str, data: &[u8]) -> io::Result<Vec<u8>> {
        exchange(self.connect(address)?, data)
    }

    /// Starts a container with a server at `address`.
    #[track_caller]
    fn serving(&self, address: &str) -> Container {
        let container = Container::new(self.guest(&format!("serve-tcp {address}")));
        container.create_with(&[]);
        container.out(&["start", "c"]);
        let until = Instant::now() + DEADLINE;
        while !container.read("stdout").contains("ready") {
            assert!(Instant::now() < until, "{}", container.read("stderr"));
            thread::yield_now();
        }
        container
    }
}

/// Sends `data`, and returns what comes back until the end.
fn exchange(stream: TcpStream, data: &[u8]) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    thread::scope(|scope| {
        let mut writer = stream.try_clone()?;
        let sent = scope.spawn(move || {
            writer.write_all(data)?;
            writer.shutdown(Shutdown::Write)
        });
        (&stream).read_to_end(&mut answer)?;
        sent.join().expect("send")
    })?;
    Ok(answer)
}

#[track_caller]
fn is_answered(nets: &Nets, address: &str, data: &[u8]) {
    let answer = nets.forwarded(address, data).expect("exchange data");
    let expected = [data, format!("{} bytes", data.len()).as_bytes()].concat();
    assert!(answer == expected, "{} bytes instead of {}", answer.len(), expected.len());
}

#[test]
fn a_server_on_a_loopback_address_of_the_guest_answers_in_the_namespace() {
    let nets = Nets::joined();
    let container = nets.serving("127.0.0.1:8080");
    is_answered(&nets, "127.0.0.1:8080", b"some text");
    is_answered(&nets, "[::1]:8080", b"");
    let large: Vec<u8> = (0..5_000_000_u32).map(|number| (number % 251) as u8).collect();
    is_answered(&nets, "127.0.0.1:8080", &large);
    // Several at once, of which one is not read.
    let idle = nets.connect("127.0.0.1:8080").expect("connect");
    idle.try_clone().expect("duplicate").write_all(&large[..100_000]).expect("send");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| is_answered(&nets, "127.0.0.1:8080", &large[..1_000_000]));
        }
    });
    // Nothing listens at this port of the guest.
    let mut refused = nets.connect("127.0.0.1:8081").expect("connect");
    let error = refused.read(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    // Other addresses are the namespace's own.
    for address in ["127.0.0.2:8080", "10.9.0.2:8080"] {
        assert_eq!(nets.connect(address).expect_err("refused").kind(), ErrorKind::ConnectionRefused);
    }
    container.out(&["delete", "--force", "c"]);
    let mut idle = idle;
    let ended = io::copy(&mut idle, &mut io::sink());
    assert!(ended.is_ok() || ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    assert_eq!(nets.connect("127.0.0.1:8080").expect_err("refused").kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_server_that_listens_only_on_ipv6_is_found_and_connections_above_the_limit_wait() {
    let nets = Nets::joined();
    let _container = nets.serving("[::1]:8080");
    is_answered(&nets, "127.0.0.1:8080", b"some text");
    let connect = || {
        let mut stream = nets.connect("127.0.0.1:8080").expect("connect");
        stream.write_all(b"x").expect("send");
        stream
    };
    let mut all: Vec<TcpStream> = (0..AT_A_TIME).map(|_| connect()).collect();
    let mut byte = [0];
    all.iter_mut().for_each(|stream| stream.read_exact(&mut byte).expect("an answer"));
    let mut next = connect();
    next.set_nonblocking(true).expect("set O_NONBLOCK");
    assert_eq!(next.read(&mut byte).expect_err("no answer").kind(), ErrorKind::WouldBlock);
    next.set_nonblocking(false).expect("clear O_NONBLOCK");
    drop(all.pop());
    next.read_exact(&mut byte).expect("an answer");
    assert_eq!(&byte, b"x");
}

#[test]
fn a_member_s_server_answers_and_a_killed_machine_leaves_nothing() {
    let nets = Nets::joined();
    let (mut engine, first) = Engine::with_first(nets.bundle("sleep 1000"));
    let member = joining(nets.guest("serve-tcp 127.0.0.1:80"), first, &[("ipc", "ipc"), ("uts", "uts")]);
    engine.run("server", member);
    let until = Instant::now() + DEADLINE;
    while !engine.read("server.out").contains("ready") {
        assert!(Instant::now() < until);
        thread::yield_now();
    }
    is_answered(&nets, "127.0.0.1:80", b"some text");
    let mut open = nets.connect("127.0.0.1:80").expect("connect");
    kill_process(first, Signal::KILL).expect("kill the machine");
    // The end, or a reset.
    let ended = open.read(&mut [0]).map_err(|error| error.kind());
    assert!(matches!(ended, Ok(0) | Err(ErrorKind::ConnectionReset)), "{ended:?}");
    assert_eq!(reap(first), Err(9));
    assert_eq!(nets.connect("127.0.0.1:80").expect_err("refused").kind(), ErrorKind::ConnectionRefused);
    drop(engine);
    assert_eq!(nets.traces(), "");
}
