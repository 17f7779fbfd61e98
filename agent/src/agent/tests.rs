//! The agent on socket pairs, with real child processes on the host, without isolation.

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

mod commands;
mod reference;

/// Timeout of each step of a test.
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
    /// Received data of each stream, and whether it has ended.
    output: BTreeMap<u64, (Vec<u8>, bool)>,
    credit: BTreeMap<u64, u64>,
    gives_credit: bool,
    /// Data that the stream channel has not accepted yet.
    waiting: Vec<u8>,
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
            waiting: Vec::new(),
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
        host.extend();
        host.ok(Code::StartPod, &Pod { hostname: "pod".into(), ..Pod::default() });
        host
    }

    /// Switches to the extended form.
    fn extend(&mut self) {
        self.send(Code::Extend, &Extend { extension: 1 });
        self.extended = true;
        self.codec.set_extended(true);
        assert_eq!(self.frame(|_| true), ControlFrame { code: Code::Ack as u32, ..ControlFrame::default() });
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

    /// Runs one turn of the agent and receives what it sent.
    fn turn(&mut self) {
        let taken = rustix::io::write(&self.streams, &self.waiting).unwrap_or(0);
        self.waiting.drain(..taken);
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
        assert!(!*ended, "stream {} continues after its end", frame.seq);
        data.extend_from_slice(&frame.data);
        *ended = frame.data.is_empty();
        if self.extended && self.gives_credit && !frame.data.is_empty() {
            self.give_credit(frame.seq, frame.data.len() as u32);
        }
    }

    fn give_credit(&mut self, seq: u64, bytes: u32) {
        Credit::encode(&[Credit { seq, bytes }], &mut self.waiting);
    }

    fn input(&mut self, seq: u64, data: &[u8]) {
        StreamFrame { seq, data: data.to_vec() }.encode(&mut self.waiting);
    }

    /// Runs turns until `until` returns true.
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
fn output_its_end_and_the_exit_are_reported_in_this_order_with_byte_counts() {
    let mut host = Host::extended();
    host.ok(Code::NewContainer, &container("echo hello; echo oops >&2; exit 7"));
    let event = host.exit("init");
    assert_eq!((host.output(1), host.output(2)), (&b"hello\n"[..], &b"oops\n"[..]));
    assert!(host.has_ended(1) && host.has_ended(2));
    let exit = event.exit.unwrap();
    assert_eq!((exit.code, exit.signal, exit.stdout_bytes, exit.stderr_bytes), (Some(7), None, 6, 5));
    assert_eq!((event.container.as_str(), event.event.as_str(), event.status), ("c1", "finished", 7));
}

#[test]
fn death_by_signal_is_its_number() {
    let mut host = Host::extended();
    host.ok(Code::NewContainer, &container("kill -TERM $$"));
    let exit = host.exit("init").exit.unwrap();
    assert_eq!((exit.code, exit.signal), (None, Some(15)));
}

#[test]
fn stdin_reaches_the_process_and_its_end_too() {
    let mut host = Host::extended();
    host.ok(Code::NewContainer, &container("cat"));
    host.input(1, b"through ");
    host.input(1, b"cat");
    host.input(1, b"");
    host.exit("init");
    assert_eq!(host.output(1), b"through cat");
    // Credit is returned only when half of the window has been used.
    assert_eq!(host.credit.get(&1), None);
}

#[test]
fn output_stops_at_the_window_and_goes_on_with_credit() {
    let mut host = Host::extended();
    host.gives_credit = false;
    host.ok(Code::NewContainer, &container("head -c 1000000 /dev/zero; echo end >&2"));
    host.work(|host| host.output(1).len() == STREAM_WINDOW as usize);
    // Other streams continue.
    host.ok(Code::ExecCmd, &ExecCommand { container: "c1".into(), process: shell("e1", "echo free", 3, 4) });
    host.exit("e1");
    assert_eq!(host.output(3), b"free\n");
    assert_eq!(host.output(1).len(), STREAM_WINDOW as usize);
    host.gives_credit = true;
    host.give_credit(1, STREAM_WINDOW);
    let exit = host.exit("init").exit.unwrap();
    assert_eq!((exit.stdout_bytes, host.output(1).len()), (1_000_000, 1_000_000));
    assert_eq!(host.output(2), b"end\n");
}

#[test]
fn background_child_that_keeps_stdout_open_does_not_delay_the_exit() {
    let mut host = Host::extended();
    host.ok(Code::NewContainer, &container("sleep 1000 & echo $!; exit 3"));
    assert_eq!(host.exit("init").exit.unwrap().code, Some(3));
    assert!(host.has_ended(1));
    let sleeper = std::str::from_utf8(host.output(1)).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(sleeper).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
}

#[test]
fn background_child_that_continues_to_write_does_not_delay_the_exit() {
    let mut host = Host::extended();
    host.ok(Code::NewContainer, &container("yes & echo $! >&2; exit 3"));
    let exit = host.exit("init").exit.unwrap();
    assert_eq!((exit.code, exit.stdout_bytes), (Some(3), host.output(1).len() as u64));
    // The agent has closed the pipe, so the writer gets SIGPIPE.
}

#[test]
fn full_stdin_does_not_stop_the_credit_of_others() {
    let mut host = Host::extended();
    host.gives_credit = false;
    host.ok(Code::NewContainer, &container("sleep 1000"));
    let exec = ExecCommand { container: "c1".into(), process: shell("e1", "head -c 600000 /dev/zero", 3, 4) };
    host.ok(Code::ExecCmd, &exec);
    host.work(|host| host.output(3).len() == STREAM_WINDOW as usize);
    for _ in 0..STREAM_WINDOW / 1024 {
        host.input(1, &[b'x'; 1024]);
    }
    host.gives_credit = true;
    host.give_credit(3, STREAM_WINDOW);
    host.exit("e1");
    assert_eq!(host.output(3).len(), 600_000);
    host.ok(Code::KillContainer, &killed(9));
    host.exit("init");
}

#[test]
fn missing_program_is_an_error_and_leaves_no_container() {
    let mut host = Host::extended();
    let mut spec = container("");
    spec.process.args = vec!["no-such-program".into()];
    let error = host.refused(Code::NewContainer, &spec);
    assert_eq!(error.code, ErrorCode::NotExecutableMissing);
    assert!(error.message.starts_with("execute no-such-program: no such file"), "{}", error.message);
    host.ok(Code::NewContainer, &container("exit 0"));
    assert_eq!(host.exit("init").status, 0);
    assert!(host.frames.is_empty());
}

#[test]
fn directory_is_not_executable() {
    let mut host = Host::extended();
    let mut spec = container("");
    spec.process.args = vec!["/proc".into()];
    assert_eq!(host.refused(Code::NewContainer, &spec).code, ErrorCode::NotExecutable);
}

#[test]
fn missing_working_directory_is_refused_by_name() {
    let mut host = Host::extended();
    let mut spec = container("");
    spec.process.workdir = "/no/such/place".into();
    let error = host.refused(Code::NewContainer, &spec);
    assert_eq!(error.message, "enter working directory /no/such/place: no such file or directory");
}

#[test]
fn terminal_echoes_has_its_size_and_takes_the_end_of_file() {
    let mut host = Host::extended();
    let mut spec = container("stty size; read line; stty size; echo got $line; cat; echo over");
    spec.process = payload::Process { terminal: true, stderr: 0, rows: 30, columns: 100, ..spec.process };
    host.ok(Code::NewContainer, &spec);
    host.work(|host| host.output(1).ends_with(b"30 100\r\n"));
    host.ok(
        Code::WinSize,
        &WindowSize { container: "c1".into(), process: "init".into(), row: 40, column: 120 },
    );
    host.input(1, b"hey\n");
    host.work(|host| host.output(1).ends_with(b"got hey\r\n"));
    host.input(1, b"half");
    host.input(1, b"");
    assert_eq!(host.exit("init").exit.unwrap().code, Some(0));
    let text = String::from_utf8(host.output(1).to_vec()).unwrap();
    assert_eq!(text, "30 100\r\nhey\r\n40 120\r\ngot hey\r\nhalfhalfover\r\n");
}

#[test]
fn ctrl_c_on_the_terminal_is_a_signal() {
    let mut host = Host::extended();
    let mut spec = container("echo ready; exec sleep 1000");
    spec.process = payload::Process { terminal: true, stderr: 0, ..spec.process };
    host.ok(Code::NewContainer, &spec);
    host.work(|host| host.output(1).ends_with(b"ready\r\n"));
    host.input(1, &[3]);
    assert_eq!(host.exit("init").exit.unwrap().signal, Some(2));
}

#[test]
fn signals_reach_the_process_and_its_group() {
    let mut host = Host::extended();
    host.ok(Code::NewContainer, &container("echo ready; exec sleep 1000"));
    host.work(|host| host.output(1) == b"ready\n");
    host.ok(
        Code::ExecCmd,
        &ExecCommand { container: "c1".into(), process: shell("e1", "echo ready; sleep 1000; true", 3, 4) },
    );
    host.work(|host| host.output(3) == b"ready\n");
    host.ok(Code::SignalProcess, &SignalCommand { container: "c1".into(), process: "e1".into(), signal: 15 });
    assert_eq!(host.exit("e1").exit.unwrap().signal, Some(15));
    assert_eq!(host.refused(Code::KillContainer, &killed(0)).message, "invalid signal");
    assert_eq!(host.refused(Code::KillContainer, &killed(65)).code, ErrorCode::BadRequest);
    host.ok(Code::KillContainer, &killed(9));
    assert_eq!(host.exit("init").exit.unwrap().signal, Some(9));
    assert_eq!(host.refused(Code::KillContainer, &killed(9)).message, "no such process");
}

#[test]
fn container_is_removed_only_once_it_has_ended() {
    let mut host = Host::extended();
    let name = ContainerName { container: "c1".into() };
    host.ok(Code::NewContainer, &container("cat"));
    assert_eq!(host.refused(Code::RemoveContainer, &name).message, "container c1 is running");
    assert_eq!(host.refused(Code::NewContainer, &container("true")).code, ErrorCode::Exists);
    host.input(1, b"");
    host.exit("init");
    host.ok(Code::RemoveContainer, &name);
    assert_eq!(host.refused(Code::RemoveContainer, &name).code, ErrorCode::NotFound);
    let spec = ExecCommand { container: "c1".into(), process: shell("e1", "true", 3, 4) };
    assert_eq!(host.refused(Code::ExecCmd, &spec).code, ErrorCode::NotFound);
}

#[test]
fn streams_belong_to_one_process() {
    let mut host = Host::extended();
    host.ok(Code::NewContainer, &container("cat"));
    for (stdio, stderr) in [(1, 5), (5, 2), (5, 5), (0, 6), (6, 0)] {
        let process = shell("e1", "true", stdio, stderr);
        host.refused(Code::ExecCmd, &ExecCommand { container: "c1".into(), process });
    }
    host.input(1, b"");
    host.exit("init");
}

#[test]
fn unknown_and_obsolete_commands_are_refused_by_name() {
    let mut host = Host::extended();
    for (code, text) in [
        (99, "unknown command 99"),
        (2, "GetPodDeprecated is obsolete and not supported"),
        (9, "Ack is not a command"),
        (15, "WriteFile: no JSON"),
        (14, "Next is not a command"),
    ] {
        let id = host.send_raw(code, Vec::new());
        let error: ErrorReply = serde_json::from_slice(&host.reply(id).unwrap_err()).unwrap();
        assert_eq!(error.message, text);
    }
    let id = host.send_raw(Code::StartPod as u32, b"{\"hostname\":1}".to_vec());
    let error: ErrorReply = serde_json::from_slice(&host.reply(id).unwrap_err()).unwrap();
    assert!(error.message.starts_with("StartPod: invalid type"), "{}", error.message);
    assert_eq!(host.refused(Code::StartPod, &Pod::default()).code, ErrorCode::Exists);
}

#[test]
fn extend_is_refused_when_it_is_late_or_of_another_version() {
    let mut host = Host::base();
    host.send(Code::Extend, &Extend { extension: 7 });
    host.extended = true;
    host.codec.set_extended(true);
    let frame = host.frame(|_| true);
    let error: ErrorReply = serde_json::from_slice(&frame.payload).unwrap();
    assert_eq!(error.message, "extension version 7: only version 1 is supported");
    let mut host = Host::extended();
    assert_eq!(
        host.refused(Code::Extend, &Extend { extension: 1 }).message,
        "Extend must be the first command"
    );
}

#[test]
fn destroy_kills_all_processes_and_powers_off() {
    let mut host = Host::extended();
    host.ok(Code::NewContainer, &container("trap '' TERM; echo ready; while :; do sleep 1000; done"));
    host.work(|host| host.output(1) == b"ready\n");
    host.ok(Code::DestroyPod, &());
    host.work(|host| host.turn == Turn::PowerOff);
    assert!(host.agent.state.processes.values().all(|process| process.pidfd.is_none()));
}

#[test]
fn closed_control_channel_is_reported() {
    let mut host = Host::extended();
    rustix::net::shutdown(&host.control, rustix::net::Shutdown::Write).unwrap();
    host.work(|host| host.turn == Turn::HostGone);
}

#[test]
fn invalid_frame_ends_the_agent() {
    let mut host = Host::extended();
    rustix::io::write(&host.control, &[0xff; 12]).unwrap();
    let error = host.agent.run_once(None).unwrap_err();
    assert!(error.text.starts_with("control channel: frame of"), "{}", error.text);
}

#[test]
fn base_session_is_api_4244s() {
    let mut host = Host::base();
    let next = |bytes: u32| ControlFrame { code: 14, id: 0, payload: bytes.to_be_bytes().into() };
    let ack = |payload: &[u8]| ControlFrame { code: 9, id: 0, payload: payload.into() };
    host.send_raw(0, Vec::new());
    assert_eq!(host.frame(|_| true), next(8));
    assert_eq!(host.frame(|_| true), ack(&4244u32.to_be_bytes()));
    let pod = br#"{"hostname":"h","dns":["1.1.1.1"],"shareDir":"share_dir","restartPolicy":"never"}"#;
    host.send_raw(1, pod.to_vec());
    assert_eq!(host.frame(|_| true), next(8 + pod.len() as u32));
    assert_eq!(host.frame(|_| true), ack(b""));
    let spec =
        br#"{"id":"c1","rootfs":"rootfs","image":"c1","process":{"id":"init","terminal":false,"stdio":1,
        "stderr":2,"args":["sh","-c","cat; echo $A; echo oops >&2; exit 5"],"envs":[{"env":"A","value":"b"}],
        "workdir":"/"},"restartPolicy":"never","initialize":true,"readOnly":false}"#;
    host.send_raw(17, spec.to_vec());
    assert_eq!(host.frame(|frame| frame.code != 14), ack(b""));
    host.input(1, b"in ");
    host.input(1, b"");
    let event = host.frame(|frame| frame.code == 23);
    assert_eq!(event.payload, br#"{"container":"c1","process":"init","event":"finished","status":5}"#);
    assert_eq!((host.output(1), host.output(2)), (&b"in b\n"[..], &b"oops\n"[..]));
    // One end frame for the whole process, on the stdio stream.
    assert!(host.has_ended(1) && !host.has_ended(2));
    host.send_raw(4, Vec::new());
    assert_eq!(host.frame(|frame| frame.code != 14), ack(b""));
    host.work(|host| host.turn == Turn::PowerOff);
}

#[test]
fn base_form_reports_a_missing_program_as_exit_127_and_a_signal_as_0() {
    let mut host = Host::base();
    host.send(Code::StartPod, &Pod::default());
    assert_eq!(host.frame(|frame| frame.code != 14).code, 9);
    let mut spec = container("");
    spec.process.args = vec!["no-such-program".into()];
    host.send(Code::NewContainer, &spec);
    assert_eq!(host.frame(|frame| frame.code != 14).code, 9);
    assert_eq!(host.exit("init").status, 127);
    host.send(Code::RemoveContainer, &ContainerName { container: "c1".into() });
    assert_eq!(host.frame(|frame| frame.code != 14).code, 9);
    host.output.clear();
    host.send(Code::NewContainer, &container("kill -9 $$"));
    assert_eq!(host.frame(|frame| frame.code != 14).code, 9);
    assert_eq!(host.exit("init").status, 0);
    host.send(Code::KillContainer, &KillCommand { container: "x".into(), ..killed(9) });
    let frame = host.frame(|frame| frame.code != 14);
    assert_eq!((frame.code, frame.payload.as_slice()), (10, &b"no such container\0"[..]));
}

#[test]
fn base_form_answers_input_of_an_unknown_stream_with_an_end_frame() {
    let mut host = Host::base();
    host.input(77, b"anyone?");
    host.work(|host| host.has_ended(77));
}

#[test]
fn base_commands_in_one_write_are_answered_in_order() {
    let mut host = Host::base();
    let mut bytes = Vec::new();
    ControlFrame { code: 1, id: 0, payload: b"{}".to_vec() }.encode(false, &mut bytes);
    let spec = serde_json::to_vec(&container("exit 0")).unwrap();
    ControlFrame { code: 17, id: 0, payload: spec }.encode(false, &mut bytes);
    ControlFrame { code: 0, id: 0, payload: Vec::new() }.encode(false, &mut bytes);
    rustix::io::write(&host.control, &bytes).unwrap();
    let payloads: Vec<usize> =
        (0..3).map(|_| host.frame(|frame| frame.code == 9 || frame.code == 10).payload.len()).collect();
    assert_eq!(payloads, [0, 0, 4]);
}

#[test]
fn input_larger_than_the_window_arrives_complete() {
    const TOTAL: usize = 4 << 20;
    let mut host = Host::extended();
    host.ok(Code::NewContainer, &container("cat"));
    let (mut made, mut credit) = (0, STREAM_WINDOW as usize);
    host.work(|host| {
        credit += host.credit.remove(&1).unwrap_or(0) as usize;
        while made < TOTAL && credit >= 16_000 {
            let data: Vec<u8> = (made..made + 16_000.min(TOTAL - made)).map(|at| (at % 251) as u8).collect();
            made += data.len();
            credit -= data.len();
            host.input(1, &data);
        }
        made == TOTAL
    });
    host.input(1, b"");
    host.exit("init");
    assert_eq!(host.output(1).len(), TOTAL);
    assert!(host.output(1).iter().enumerate().all(|(at, byte)| *byte == (at % 251) as u8));
}
