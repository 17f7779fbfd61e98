//! The agent on a socketpair, with real child processes in the host's own surroundings.

use std::time::{Duration, Instant};

use agent_proto::command::{Code, STREAM_WINDOW};
use agent_proto::control::{ControlCodec, ControlFrame};
use agent_proto::payload::{
    self, Container, ContainerName, Env, ErrorCode, ErrorReply, ExecCommand, Extend, KillCommand, Pod, Ready,
    SignalCommand, WindowSize,
};
use agent_proto::stream::{Credit, StreamCodec, StreamFrame};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::Serialize;
use std::collections::BTreeMap;
use std::string::String;

use super::*;
use crate::sys;

/// Longest time that any step of a test may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// A host that drives the agent.
struct Host {
    agent: Agent,
    control: OwnedFd,
    streams: OwnedFd,
    codec: ControlCodec,
    stream_codec: StreamCodec,
    extended: bool,
    next_id: u32,
    frames: Vec<ControlFrame>,
    /// What came of each stream; true once it has ended.
    output: BTreeMap<u64, (Vec<u8>, bool)>,
    credit: BTreeMap<u64, u64>,
    gives_credit: bool,
    turn: Turn,
}

fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap()
}

impl Host {
    /// Returns a host that has seen READY and nothing else.
    fn base() -> Host {
        let (control, agent_control) = pair();
        let (streams, agent_streams) = pair();
        let agent = Agent::new(agent_control, agent_streams, Setting::Host).unwrap();
        let mut host = Host {
            agent,
            control,
            streams,
            codec: ControlCodec::new(),
            stream_codec: StreamCodec::new(),
            extended: false,
            next_id: 1,
            frames: Vec::new(),
            output: BTreeMap::new(),
            credit: BTreeMap::new(),
            gives_credit: true,
            turn: Turn::Continue,
        };
        let ready = host.frame(|frame| frame.code == Code::Ready as u32);
        let offer: Ready = serde_json::from_slice(&ready.payload).unwrap();
        assert_eq!(offer, Ready { api: 4244, extension: 1, window: STREAM_WINDOW });
        host
    }

    /// Returns a host of the extended form with a started pod.
    fn extended() -> Host {
        let mut host = Host::base();
        host.send(Code::Extend, &Extend { extension: 1 });
        host.extended = true;
        host.codec.set_extended(true);
        assert_eq!(host.frame(|_| true), ControlFrame { code: Code::Ack as u32, ..ControlFrame::default() });
        host.ok(Code::StartPod, &Pod { hostname: "pod".into(), ..Pod::default() });
        host
    }

    fn send(&mut self, code: Code, payload: &impl Serialize) -> u32 {
        self.send_raw(code as u32, serde_json::to_vec(payload).unwrap())
    }

    fn send_raw(&mut self, code: u32, payload: Vec<u8>) -> u32 {
        let id = if self.extended { self.next_id } else { 0 };
        self.next_id += 1;
        let mut bytes = Vec::new();
        ControlFrame { code, id, payload }.encode(self.extended, &mut bytes);
        assert_eq!(rustix::io::write(&self.control, &bytes), Ok(bytes.len()));
        id
    }

    /// Lets the agent work once and takes what it sent.
    fn turn(&mut self) {
        let turn = self.agent.run_once(Some(Duration::from_millis(200))).unwrap();
        if turn != Turn::Continue {
            self.turn = turn;
        }
        let mut bytes = Vec::new();
        while sys::read_append(self.control.as_fd(), &mut bytes, 64 << 10).is_ok_and(|count| count > 0) {}
        self.codec.push(&bytes);
        while let Some(frame) = self.codec.next().unwrap() {
            self.frames.push(frame);
        }
        let mut bytes = Vec::new();
        while sys::read_append(self.streams.as_fd(), &mut bytes, 64 << 10).is_ok_and(|count| count > 0) {}
        self.stream_codec.push(&bytes);
        while let Some(frame) = self.stream_codec.next().unwrap() {
            self.take(frame);
        }
    }

    fn take(&mut self, frame: StreamFrame) {
        if self.extended && frame.seq == 0 {
            for record in frame.data.chunks(12) {
                let seq = u64::from_be_bytes(record[..8].try_into().unwrap());
                let bytes = u32::from_be_bytes(record[8..].try_into().unwrap());
                *self.credit.entry(seq).or_default() += u64::from(bytes);
            }
            return;
        }
        let (data, ended) = self.output.entry(frame.seq).or_default();
        assert!(!*ended, "stream {} goes on after its end", frame.seq);
        data.extend_from_slice(&frame.data);
        *ended = frame.data.is_empty();
        if self.extended && self.gives_credit && !frame.data.is_empty() {
            self.give_credit(frame.seq, frame.data.len() as u32);
        }
    }

    fn give_credit(&mut self, seq: u64, bytes: u32) {
        let mut out = Vec::new();
        Credit::encode(&[Credit { seq, bytes }], &mut out);
        assert_eq!(rustix::io::write(&self.streams, &out), Ok(out.len()));
    }

    fn input(&mut self, seq: u64, data: &[u8]) {
        let mut out = Vec::new();
        StreamFrame { seq, data: data.to_vec() }.encode(&mut out);
        assert_eq!(rustix::io::write(&self.streams, &out), Ok(out.len()));
    }

    /// Works until `until` says so.
    fn work(&mut self, mut until: impl FnMut(&mut Host) -> bool) {
        let end = Instant::now() + DEADLINE;
        while !until(self) {
            assert!(Instant::now() < end, "frames {:?}, output {:?}", self.frames, self.output.keys());
            self.turn();
        }
    }

    fn frame(&mut self, wanted: impl Fn(&ControlFrame) -> bool) -> ControlFrame {
        self.work(|host| host.frames.iter().any(&wanted));
        let at = self.frames.iter().position(wanted).unwrap();
        self.frames.remove(at)
    }

    fn reply(&mut self, id: u32) -> Result<Vec<u8>, Vec<u8>> {
        let is_reply = |code| code == Code::Ack as u32 || code == Code::Error as u32;
        let frame = self.frame(|frame| frame.id == id && is_reply(frame.code));
        if frame.code == Code::Ack as u32 { Ok(frame.payload) } else { Err(frame.payload) }
    }

    fn ok(&mut self, code: Code, payload: &impl Serialize) -> Vec<u8> {
        let id = self.send(code, payload);
        self.reply(id).map_err(String::from_utf8).unwrap()
    }

    fn refused(&mut self, code: Code, payload: &impl Serialize) -> ErrorReply {
        let id = self.send(code, payload);
        serde_json::from_slice(&self.reply(id).unwrap_err()).unwrap()
    }

    fn exit(&mut self, process: &str) -> payload::ProcessEvent {
        let event = |frame: &ControlFrame| -> Option<payload::ProcessEvent> {
            let wanted = frame.code == Code::ProcessAsyncEvent as u32;
            wanted.then(|| serde_json::from_slice(&frame.payload).unwrap())
        };
        let frame = self.frame(|frame| event(frame).is_some_and(|event| event.process == process));
        event(&frame).unwrap()
    }

    fn output(&self, seq: u64) -> &[u8] {
        self.output.get(&seq).map_or(&[], |(data, _)| data)
    }

    fn has_ended(&self, seq: u64) -> bool {
        self.output.get(&seq).is_some_and(|(_, ended)| *ended)
    }
}

fn shell(id: &str, script: &str, stdio: u64, stderr: u64) -> payload::Process {
    payload::Process {
        id: id.into(),
        args: vec!["/bin/sh".into(), "-c".into(), script.into()],
        envs: vec![Env { env: "PATH".into(), value: "/usr/bin:/bin".into() }],
        workdir: "/".into(),
        stdio,
        stderr,
        oci: Some(payload::OciProcess::default()),
        ..payload::Process::default()
    }
}

fn container(script: &str) -> Container {
    Container { id: "c1".into(), process: shell("init", script, 1, 2), ..Container::default() }
}

fn killed(signal: i32) -> KillCommand {
    KillCommand { container: "c1".into(), signal, ..KillCommand::default() }
}

#[test]
fn output_ends_and_exit_are_told_in_this_order_with_their_bytes() {
    let mut host = Host::extended();
    host.ok(Code::NewContainer, &container("echo hello; echo oops >&2; exit 7"));
    let event = host.exit("init");
    assert_eq!((host.output(1), host.output(2)), (&b"hello\n"[..], &b"oops\n"[..]));
    assert!(host.has_ended(1) && host.has_ended(2));
    let exit = event.exit.unwrap();
    assert_eq!((exit.code, exit.signal, exit.stdout_bytes, exit.stderr_bytes), (Some(7), None, 6, 5));
    assert_eq!((event.container.as_str(), event.event.as_str(), event.status), ("c1", "finished", 7));
}
