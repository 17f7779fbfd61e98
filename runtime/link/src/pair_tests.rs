//! The link and the streams against the agent's own code, over two socket pairs: no VM, no root.

use std::io::{PipeReader, PipeWriter, pipe};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use agent::agent::{Agent, Setting, Turn};
use agent_proto::payload::{
    Container, Env, Exit, Interface, KillCommand, OciProcess, Pod, Process, Route, Routes,
};

use super::streams::{Delivery, StreamHandle, StreamSpec, StreamTable, streams};
use super::*;

mod endurance;

/// Timeout of each step.
const PATIENCE: Duration = Duration::from_secs(20);

/// Host and agent, which one thread runs in turns.
struct Pair {
    agent: Agent,
    link: AgentLink,
    table: StreamTable,
    handle: StreamHandle,
    channel: UnixStream,
    /// Frames from the table that the channel has not accepted.
    unsent: Vec<u8>,
    turn: Turn,
    stdin: Option<PipeWriter>,
    stdout: PipeReader,
    stderr: PipeReader,
}

impl Pair {
    fn new() -> Pair {
        let (control, agent_control) = UnixStream::pair().unwrap();
        let (channel, agent_channel) = UnixStream::pair().unwrap();
        for socket in [&agent_control, &agent_channel, &channel] {
            socket.set_nonblocking(true).unwrap();
        }
        let (stdin_reader, stdin) = pipe().unwrap();
        let (stdout, stdout_writer) = pipe().unwrap();
        let (stderr, stderr_writer) = pipe().unwrap();
        let specs = [
            StreamSpec { seq: 1, source: Some(raw(&stdin_reader)), sink: Some(raw(&stdout_writer)) },
            StreamSpec { seq: 2, source: None, sink: Some(raw(&stderr_writer)) },
        ];
        let (table, handle) = streams(&specs, None).unwrap();
        let agent =
            Agent::new(OwnedFd::from(agent_control), OwnedFd::from(agent_channel), Setting::Host).unwrap();
        let link = AgentLink::new(control, Protocol::Extended).unwrap();
        let (unsent, turn, stdin) = (Vec::new(), Turn::Continue, Some(stdin));
        Pair { agent, link, table, handle, channel, unsent, turn, stdin, stdout, stderr }
    }

    /// Returns a pair whose container runs `script`.
    fn running(script: &str) -> Pair {
        let mut pair = Pair::new();
        let pod = pair.link.send(Code::StartPod, "start the pod", &Pod::default()).unwrap();
        let container = pair.send_container(&["/bin/sh", "-c", script]);
        pair.until(|pair| pair.link.reply(pod)).unwrap();
        pair.until(|pair| pair.link.reply(container)).unwrap();
        let window = pair.link.ready().unwrap().window;
        pair.handle.start(1, window);
        pair.table.ready(0, &mut |_, _, _| Ok(()));
        pair
    }

    fn send_container(&mut self, args: &[&str]) -> CommandId {
        let process = Process {
            id: "init".into(),
            stdio: 1,
            stderr: 2,
            args: args.iter().map(|arg| arg.to_string()).collect(),
            envs: vec![Env { env: "PATH".into(), value: "/usr/bin:/bin".into() }],
            workdir: "/".into(),
            oci: Some(OciProcess::default()),
            ..Process::default()
        };
        let container = Container { id: "c1".into(), process, ..Container::default() };
        let id = self.link.send(Code::NewContainer, "start the container", &container).unwrap();
        self.link.flush().unwrap();
        id
    }

    /// Runs both sides in turns until `done` returns a value.
    fn until<T>(&mut self, mut done: impl FnMut(&mut Pair) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            self.link.receive().unwrap();
            if let Some(value) = done(self) {
                return value;
            }
            assert!(start.elapsed() < PATIENCE, "the agent makes no progress");
            if self.turn != Turn::PowerOff {
                self.turn = self.agent.run_once(Some(Duration::from_millis(1))).unwrap();
            }
            self.carry();
        }
    }

    /// Does the work of the devices thread: transfers the bytes of the stream channel, and handles all ready
    /// descriptors.
    fn carry(&mut self) {
        let mut buffer = vec![0; 8192];
        while let Ok(count @ 1..) = self.channel.read(&mut buffer) {
            self.table.take(&buffer[..count], &mut |_, _, _| Ok(()));
        }
        for token in 1..5 {
            self.table.ready(token, &mut |_, _, _| Ok(()));
        }
        loop {
            if self.unsent.is_empty() {
                let count = self.table.fill(&mut buffer);
                self.unsent.extend_from_slice(&buffer[..count]);
            }
            match self.channel.write(&self.unsent) {
                Ok(count @ 1..) => drop(self.unsent.drain(..count)),
                _ => return,
            }
        }
    }

    fn exit(&mut self) -> Exit {
        let event = self.until(|pair| pair.link.event());
        assert_eq!((event.container.as_str(), event.process.as_str()), ("c1", "init"));
        assert_eq!(event.event, "finished");
        event.exit.unwrap()
    }

    fn delivered(&mut self, exit: &Exit) {
        for (seq, bytes) in [(1, exit.stdout_bytes), (2, exit.stderr_bytes)] {
            self.until(|pair| (pair.handle.delivery(seq, bytes) == Delivery::Done).then_some(()));
        }
    }

    fn read(reader: &mut PipeReader, count: u64) -> String {
        let mut data = vec![0; count as usize];
        reader.read_exact(&mut data).unwrap();
        String::from_utf8(data).unwrap()
    }
}

fn raw(fd: &impl std::os::fd::AsRawFd) -> i32 {
    fd.as_raw_fd()
}

#[test]
fn a_container_says_hello_and_ends() {
    let mut pair = Pair::running("echo hello; echo oops >&2; exit 3");
    let exit = pair.exit();
    assert_eq!((exit.code, exit.signal, exit.stdout_bytes, exit.stderr_bytes), (Some(3), None, 6, 5));
    pair.delivered(&exit);
    assert_eq!(Pair::read(&mut pair.stdout, 6), "hello\n");
    assert_eq!(Pair::read(&mut pair.stderr, 5), "oops\n");
    let destroy = pair.link.send_bare(Code::DestroyPod, "end the pod").unwrap();
    pair.link.flush().unwrap();
    pair.until(|pair| pair.link.reply(destroy)).unwrap();
}

#[test]
fn input_comes_back_whole_and_its_end_is_seen() {
    let mut pair = Pair::running("cat");
    let mut stdin = pair.stdin.take().unwrap();
    let sent: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
    let text = sent.clone();
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()).unwrap());
    let mut stdout = pair.stdout.try_clone().unwrap();
    let reader = std::thread::spawn(move || Pair::read(&mut stdout, sent.len() as u64) == sent);
    let exit = pair.exit();
    assert_eq!(exit.code, Some(0));
    pair.delivered(&exit);
    writer.join().unwrap();
    assert!(reader.join().unwrap());
}

#[test]
fn a_signal_ends_a_process_and_is_reported_as_one() {
    let mut pair = Pair::running("echo ready; exec cat");
    pair.until(|pair| (pair.handle.delivery(1, 6) == Delivery::Done).then_some(()));
    let command = KillCommand { container: "c1".into(), signal: libc::SIGTERM, all_processes: false };
    pair.link.notify(Code::KillContainer, "forward a signal", &command).unwrap();
    pair.link.flush().unwrap();
    let exit = pair.exit();
    assert_eq!((exit.code, exit.signal), (None, Some(libc::SIGTERM)));
}

#[test]
fn a_missing_program_is_distinguished_from_one_that_cannot_run() {
    for (program, expected) in
        [("/nonexistent", ErrorCode::NotExecutableMissing), ("/etc/passwd", ErrorCode::NotExecutable)]
    {
        let mut pair = Pair::new();
        let pod = pair.link.send(Code::StartPod, "start the pod", &Pod::default()).unwrap();
        let container = pair.send_container(&[program]);
        pair.until(|pair| pair.link.reply(pod)).unwrap();
        match pair.until(|pair| pair.link.reply(container)) {
            Err(LinkError::Refused { code, .. }) => assert_eq!(code, expected, "{program}"),
            other => panic!("{program}: {other:?}"),
        }
    }
}

#[test]
fn a_client_that_disconnects_ends_a_process_that_continues_to_write() {
    let mut pair = Pair::running("exec yes");
    let (empty, _) = pipe().unwrap();
    drop(std::mem::replace(&mut pair.stdout, empty));
    let exit = pair.exit();
    assert!(exit.signal == Some(libc::SIGPIPE) || exit.code == Some(1), "{exit:?}");
}

#[test]
fn each_command_of_the_extended_form_is_answered_while_a_slow_one_runs() {
    let mut pair = Pair::running("exec cat");
    let interface = Interface { device: "eth0".into(), ..Interface::default() };
    let route = Route { dest: "default".into(), ..Route::default() };
    let file =
        FileCommand { container: "c1".into(), file: "/proc/self/stat".into(), ..FileCommand::default() };
    let (link, step) = (&mut pair.link, "call");
    let mut ids = vec![
        link.send(Code::SetupInterface, step, &interface).unwrap(),
        link.send(Code::DeleteInterface, step, &interface).unwrap(),
        link.send(Code::SetupRoute, step, &Routes { routes: vec![route] }).unwrap(),
        link.send(Code::ReadFile, step, &file).unwrap(),
    ];
    for code in [Code::GetVersion, Code::Ready, Code::Ping, Code::OnlineCpuMem] {
        ids.push(link.send_bare(code, step).unwrap());
    }
    link.flush().unwrap();
    for id in ids {
        pair.until(|pair| pair.link.reply(id)).unwrap();
    }
}

#[test]
fn file_is_written_and_read_back_and_an_error_has_its_text() {
    let mut pair = Pair::running("exec cat");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a } name").to_str().unwrap().to_owned();
    let file = FileCommand { container: "c1".into(), file: path.clone(), ..FileCommand::default() };
    let data: Vec<u8> = (0..300_000).map(|n| n as u8).collect();
    let written = pair.link.send_file("write", &file, &data).unwrap();
    let read = pair.link.send(Code::ReadFile, "read", &file).unwrap();
    pair.link.flush().unwrap();
    pair.until(|pair| pair.link.reply(written)).unwrap();
    assert!(pair.until(|pair| pair.link.reply(read)).unwrap() == data);
    std::fs::remove_file(&path).unwrap();
    let missing = pair.link.send(Code::ReadFile, "read", &file).unwrap();
    pair.link.flush().unwrap();
    let error = pair.until(|pair| pair.link.reply(missing)).unwrap_err().to_string();
    assert_eq!(error, format!("read: open {path}: no such file or directory"));
}

#[test]
fn child_in_the_background_does_not_hold_back_the_exit() {
    let mut pair = Pair::running("sleep 1000 & echo $!; exit 5");
    let exit = pair.exit();
    assert_eq!(exit.code, Some(5));
    pair.delivered(&exit);
    let child = Pair::read(&mut pair.stdout, exit.stdout_bytes);
    // The child does not belong to the container any more; the test must end it.
    assert_eq!(std::process::Command::new("kill").arg(child.trim()).status().unwrap().code(), Some(0));
}

#[test]
fn damaged_frame_of_the_host_ends_the_agent_with_a_reason() {
    let mut pair = Pair::new();
    pair.link.socket.write_all(&[0, 0, 0, 12, 0, 0, 0, 7, 0, 0, 0, 9]).unwrap();
    let fault = pair.agent.run_once(Some(Duration::from_millis(100))).unwrap_err();
    assert_eq!(fault.text, "control channel: frame of 7 bytes is shorter than its header of 8 bytes");
}
