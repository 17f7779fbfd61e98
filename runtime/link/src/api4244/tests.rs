//! The base form: the link against a scripted agent of API 4244.

use std::io::{self, Read, Write, pipe};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use agent_proto::command::Protocol;
use agent_proto::payload::{Container, Env, ExecCommand, Interface, IpAddress, Pod, Process, Route, Routes};
use agent_proto::stream::encode_header;
use serde::Serialize;

use super::*;
use crate::streams::Delivery;
use crate::testing::{Stdio, Streams, specs};

/// Maximum time for a pipe to be closed.
const DEADLINE: Duration = Duration::from_secs(10);
const READY: &[u8] = &[0, 0, 0, 8, 0, 0, 0, 8];

/// An agent that reads like the original, the header and then the rest, and acknowledges each read with NEXT.
struct Scripted {
    link: AgentLink,
    socket: UnixStream,
    /// Received bytes that were not acknowledged.
    came: Vec<u8>,
}

impl Scripted {
    fn new() -> Scripted {
        let (ours, socket) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        Scripted { link: AgentLink::new(ours, Protocol::Api4244).unwrap(), socket, came: Vec::new() }
    }

    /// Returns an agent that has sent READY and its version.
    fn ready() -> Scripted {
        let mut agent = Scripted::new();
        agent.says(READY);
        agent.hears(0, "");
        agent.says(&[0, 0, 0, 9, 0, 0, 0, 12, 0, 0, 0x10, 0x94]);
        agent
    }

    fn says(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
        self.link.receive().unwrap();
    }

    fn look(&mut self) {
        self.link.flush().unwrap();
        let mut buffer = [0; 4096];
        if let Ok(count) = self.socket.read(&mut buffer) {
            self.came.extend_from_slice(&buffer[..count]);
        }
        assert!(self.came.len() <= CHUNK, "{} bytes without a NEXT", self.came.len());
    }

    /// Reads exactly `count` bytes and acknowledges them.
    fn take(&mut self, count: usize) -> Vec<u8> {
        let mut taken = Vec::new();
        while taken.len() < count {
            self.look();
            let part: Vec<u8> = self.came.drain(..self.came.len().min(count - taken.len())).collect();
            assert_ne!(part.len(), 0, "expected {count} bytes, got {}", taken.len());
            self.says(&[&[0, 0, 0, 14, 0, 0, 0, 12][..], &(part.len() as u32).to_be_bytes()].concat());
            taken.extend(part);
        }
        taken
    }

    fn hears(&mut self, code: u32, payload: &str) {
        let header = self.take(8);
        assert_eq!(header, [code.to_be_bytes(), (8 + payload.len() as u32).to_be_bytes()].concat());
        assert_eq!(String::from_utf8(self.take(payload.len())).unwrap(), payload);
    }

    /// Handles one command and replies with ACK.
    fn plays(&mut self, code: Code, payload: &impl Serialize, json: &str) {
        let id = self.link.send(code, "play", payload).unwrap();
        self.hears(code as u32, json);
        assert!(self.link.reply(id).is_none());
        self.says(&[0, 0, 0, 9, 0, 0, 0, 8]);
        assert_eq!(self.link.reply(id).unwrap().unwrap(), b"");
    }
}

pub(super) fn process(id: &str, args: &[&str], stdio: u64, stderr: u64) -> Process {
    Process {
        id: id.into(),
        stdio,
        stderr,
        args: args.iter().map(|arg| arg.to_string()).collect(),
        envs: vec![Env { env: "A".into(), value: "b".into() }],
        workdir: "/".into(),
        ..Process::default()
    }
}

pub(super) fn container(args: &[&str]) -> Container {
    Container {
        id: "c1".into(),
        rootfs: "rootfs".into(),
        image: "c1".into(),
        process: process("init", args, 1, 2),
        restart_policy: "never".into(),
        initialize: true,
        ..Container::default()
    }
}

#[test]
fn reference_session_has_the_bytes_of_api_4244() {
    let mut agent = Scripted::new();
    // The link writes nothing before READY.
    agent.look();
    assert!(agent.came.is_empty() && agent.link.ready().is_none());
    agent.says(READY);
    agent.hears(0, "");
    agent.says(&[0, 0, 0, 9, 0, 0, 0, 12, 0, 0, 0x10, 0x94]);
    let pod = Pod {
        hostname: "h".into(),
        dns: vec!["1.1.1.1".into()],
        share_dir: "share_dir".into(),
        ..Pod::default()
    };
    agent.plays(Code::StartPod, &pod, r#"{"hostname":"h","dns":["1.1.1.1"],"shareDir":"share_dir"}"#);
    let interface = Interface {
        device: "eth0".into(),
        new_device_name: "eth0".into(),
        ip_addresses: vec![IpAddress {
            ip_address: "10.0.0.2".into(),
            net_mask: "24".into(),
            ..IpAddress::default()
        }],
        mtu: 1500,
        ..Interface::default()
    };
    agent.plays(
        Code::SetupInterface,
        &interface,
        concat!(
            r#"{"device":"eth0","newDeviceName":"eth0","#,
            r#""ipAddresses":[{"ipAddress":"10.0.0.2","netMask":"24"}],"mtu":1500}"#
        ),
    );
    let route = Route {
        dest: "default".into(),
        gateway: "10.0.0.1".into(),
        device: "eth0".into(),
        ..Route::default()
    };
    agent.plays(
        Code::SetupRoute,
        &Routes { routes: vec![route] },
        r#"{"routes":[{"dest":"default","gateway":"10.0.0.1","device":"eth0"}]}"#,
    );
    agent.plays(
        Code::NewContainer,
        &container(&["sh"]),
        concat!(
            r#"{"id":"c1","rootfs":"rootfs","image":"c1","process":{"id":"init","terminal":false,"stdio":1,"#,
            r#""stderr":2,"args":["sh"],"envs":[{"env":"A","value":"b"}],"workdir":"/"},"restartPolicy":"never","#,
            r#""initialize":true,"readOnly":false}"#
        ),
    );
    reference_streams();
    let event = br#"{"container":"c1","process":"init","event":"finished","status":0}"#;
    agent.says(&[&[0, 0, 0, 23, 0, 0, 0, 8 + event.len() as u8][..], event].concat());
    assert_eq!(agent.link.event().unwrap().status, 0);
    let tty = Process { terminal: true, ..process("e1", &["ps"], 3, 0) };
    agent.plays(
        Code::ExecCmd,
        &ExecCommand { container: "c1".into(), process: tty },
        concat!(
            r#"{"container":"c1","process":{"id":"e1","terminal":true,"stdio":3,"stderr":0,"args":["ps"],"#,
            r#""envs":[{"env":"A","value":"b"}],"workdir":"/"}}"#
        ),
    );
    let destroy = agent.link.send_bare(Code::DestroyPod, "end the pod").unwrap();
    agent.hears(4, "");
    agent.says(&[0, 0, 0, 9, 0, 0, 0, 8]);
    assert!(agent.link.reply(destroy).unwrap().is_ok());
    assert!(!agent.link.is_waiting());
}

/// Stream frames of the session: stdin and its end, output on both streams, and one end for all.
fn reference_streams() {
    let mut wire = Wire::new();
    let mut stdin = wire.stdio.stdin.take().unwrap();
    stdin.write_all(b"in").unwrap();
    wire.streams.start(INPUT_WINDOW);
    assert_eq!(wire.streams.filled(), b"\0\0\0\0\0\0\0\x01\0\0\0\x0ein");
    drop(stdin);
    // A process that another test is starting holds a copy of the pipe for a moment.
    let until = Instant::now() + DEADLINE;
    let mut sent = Vec::new();
    while sent.is_empty() && Instant::now() < until {
        wire.streams.ready(1);
        sent = wire.streams.filled();
    }
    assert_eq!(sent, b"\0\0\0\0\0\0\0\x01\0\0\0\x0c");
    wire.streams.take(b"\0\0\0\0\0\0\0\x01\0\0\0\x0fout\0\0\0\0\0\0\0\x02\0\0\0\x0eno");
    assert!(!wire.streams.handle.is_ended(1));
    wire.streams.take(b"\0\0\0\0\0\0\0\x01\0\0\0\x0c");
    assert!(wire.streams.handle.is_ended(1) && !wire.streams.handle.is_ended(2));
    assert_eq!((wire.streams.handle.received(1), wire.streams.handle.received(2)), (3, 2));
    assert_eq!(wire.streams.filled(), b"");
}

/// The streams of one process, without an agent.
struct Wire {
    streams: Streams,
    stdio: Stdio,
}

impl Wire {
    fn new() -> Wire {
        let (stdio, fds) = Stdio::new();
        Wire { streams: Streams::new(&specs(&fds), Protocol::Api4244), stdio }
    }
}

#[test]
fn input_goes_out_512_bytes_for_three_answers() {
    let mut agent = Scripted::ready();
    let mut wire = Wire::new();
    wire.stdio.stdin.as_mut().unwrap().write_all(&[7; 2000]).unwrap();
    wire.streams.start(INPUT_WINDOW);
    let mut pace = InputPace::new(1);
    for length in [512, 512, 512, 464] {
        assert_eq!(wire.streams.filled().len(), 12 + length);
        for _ in 0..3 {
            pace.turn(&mut agent.link, &wire.streams.handle).unwrap();
            wire.streams.ready(0);
            assert_eq!(wire.streams.filled(), b"");
            agent.hears(12, "");
            agent.says(&[0, 0, 0, 9, 0, 0, 0, 8]);
        }
        pace.turn(&mut agent.link, &wire.streams.handle).unwrap();
        wire.streams.ready(0);
    }
    assert!(!agent.link.is_waiting());
}

#[test]
fn output_is_not_taken_while_a_client_is_slow_and_none_is_lost() {
    let mut wire = Wire::new();
    let mut sent = 0;
    while wire.streams.table.takes_output() {
        let frame = [&encode_header(1, 30_000)[..], &[b'x'; 30_000]].concat();
        wire.streams.take(&frame);
        sent += 30_000;
    }
    assert!(sent > 60_000);
    assert_eq!(
        (wire.streams.handle.received(1), wire.streams.handle.delivery(1, sent)),
        (sent, Delivery::Client)
    );
    let mut data = vec![0; sent as usize];
    let mut got = 0;
    while got < data.len() {
        got += wire.stdio.stdout.read(&mut data[got..]).unwrap();
        wire.streams.ready(2);
    }
    assert!(wire.streams.table.takes_output() && data.iter().all(|byte| *byte == b'x'));
    assert_eq!(wire.streams.handle.delivery(1, sent), Delivery::Done);
}

#[test]
fn client_that_disconnects_is_recorded_and_not_reported_to_the_guest() {
    let mut wire = Wire::new();
    drop(std::mem::replace(&mut wire.stdio.stdout, pipe().unwrap().0));
    assert!(!wire.streams.handle.is_hung_up(1));
    wire.streams.take(b"\0\0\0\0\0\0\0\x01\0\0\0\x0fout");
    assert!(
        wire.streams.handle.is_hung_up(1)
            && !wire.streams.handle.is_hung_up(2)
            && wire.streams.table.takes_output()
    );
    assert_eq!((wire.streams.filled(), wire.streams.handle.delivery(1, 3)), (vec![], Delivery::Done));
}

#[test]
fn long_command_goes_out_in_chunks_and_replies_come_in_order() {
    let mut agent = Scripted::ready();
    let long = "x".repeat(3000);
    let ids = [
        agent.link.send(Code::StartPod, "start the pod", &long).unwrap(),
        agent.link.send_bare(Code::Ping, "ping").unwrap(),
    ];
    agent.hears(1, &format!("\"{long}\""));
    agent.hears(12, "");
    agent.says(&[0, 0, 0, 10, 0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0, 9, b'x']);
    let refused = agent.link.reply(ids[0]).unwrap().unwrap_err().to_string();
    assert_eq!(refused, "start the pod: refused; API 4244 gives no reason");
    assert_eq!(agent.link.reply(ids[1]).unwrap().unwrap(), b"x");
}

#[test]
fn agent_of_another_version_and_excess_acknowledgement_end_the_link() {
    let mut agent = Scripted::new();
    agent.says(READY);
    agent.hears(0, "");
    agent.socket.write_all(&[0, 0, 0, 9, 0, 0, 0, 12, 0, 0, 0x10, 0x92]).unwrap();
    let error = agent.link.receive().unwrap_err().to_string();
    assert_eq!(error, "the agent's control channel: GETVERSION: API 4242, not 4244");
    let mut agent = Scripted::ready();
    agent.socket.write_all(&[0, 0, 0, 14, 0, 0, 0, 12, 0, 0, 0, 1]).unwrap();
    assert!(matches!(agent.link.receive(), Err(LinkError::Protocol(_))));
    let mut agent = Scripted::ready();
    agent.socket.write_all(&[0, 0, 0, 9, 0, 0, 0, 8]).unwrap();
    assert!(matches!(agent.link.receive(), Err(LinkError::Protocol(_))));
}

#[test]
fn link_writes_nothing_before_ready_to_an_agent_of_another_program() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut link = AgentLink::new(ours, Protocol::Negotiated).unwrap();
    link.send_bare(Code::Ping, "ping").unwrap();
    link.flush().unwrap();
    assert_eq!(link.interest(), libc::POLLIN);
    let mut buffer = [0; 64];
    assert_eq!(theirs.read(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    let offer = br#"{"api":4244,"extension":1,"window":4096}"#;
    theirs.write_all(&[&[0, 0, 0, 8, 0, 0, 0, 8 + offer.len() as u8][..], offer].concat()).unwrap();
    link.receive().unwrap();
    let count = theirs.read(&mut buffer).unwrap();
    assert_eq!(&buffer[..8], [0, 0, 0, 64, 0, 0, 0, 23]);
    assert_eq!(&buffer[23..count], [0, 0, 0, 12, 0, 0, 0, 12, 0, 0, 0, 1]);
}

#[test]
fn next_chunk_begins_when_the_last_is_acknowledged_completely() {
    let mut pace = Pace::default();
    pace.wrote(500);
    assert_eq!(pace.room(), 12);
    pace.next(&8_u32.to_be_bytes()).unwrap();
    assert_eq!(pace.room(), 12);
    pace.wrote(12);
    pace.next(&503_u32.to_be_bytes()).unwrap();
    assert_eq!(pace.room(), 0);
    pace.next(&1_u32.to_be_bytes()).unwrap();
    assert_eq!(pace.room(), CHUNK);
}

#[test]
fn invalid_next_is_refused() {
    let mut pace = Pace::default();
    pace.wrote(8);
    for payload in [&9_u32.to_be_bytes()[..], &u32::MAX.to_be_bytes(), &[0, 0, 8], &[]] {
        assert!(matches!(pace.next(payload), Err(LinkError::Protocol(_))), "{payload:?}");
    }
}

#[test]
fn errors_have_the_texts_of_kill_container_or_none() {
    let text = |payload: &[u8]| refusal("kill", payload).to_string();
    assert_eq!(text(b"no such process\0"), "kill: no such process");
    assert_eq!(text(b""), "kill: refused; API 4244 gives no reason");
    assert_eq!(text(b"\x1b[2J"), "kill: \\u{1b}[2J");
}
