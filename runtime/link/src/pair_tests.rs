//! The link and the streams against the agent's own code, over two socket pairs: no VM, no root.

use std::io::pipe;
use std::time::{Duration, Instant};

use agent::agent::{Agent, Setting, Turn};
use agent_proto::payload::{
    Container, Env, Exit, FileCommand, Interface, KillCommand, OciProcess, Pod, Process, Route, Routes,
};

use super::*;
use crate::streams::Delivery;
use crate::testing::{Host, Stdio, read_text, specs};

mod endurance;

/// Timeout of each step.
const PATIENCE: Duration = Duration::from_secs(20);

/// Host and agent, which one thread runs in turns.
struct Pair {
    agent: Agent,
    host: Host,
    turn: Turn,
    stdio: Stdio,
}

impl Pair {
    fn new() -> Pair {
        let (stdio, fds) = Stdio::new();
        let (host, [control, channel]) = Host::new(&specs(&fds), Protocol::Extended);
        let agent = Agent::new(control.into(), channel.into(), Setting::Host).unwrap();
        Pair { agent, host, turn: Turn::Continue, stdio }
    }

    /// Returns a pair whose container runs `script`.
    fn running(script: &str) -> Pair {
        let mut pair = Pair::new();
        let pod = pair.host.link.send(Code::StartPod, "start the pod", &Pod::default()).unwrap();
        let container = pair.send_container(&["/bin/sh", "-c", script]);
        pair.until(|pair| pair.host.link.reply(pod)).unwrap();
        pair.until(|pair| pair.host.link.reply(container)).unwrap();
        let window = pair.host.link.ready().unwrap().window;
        pair.host.streams.start(window);
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
        let id = self.host.link.send(Code::NewContainer, "start the container", &container).unwrap();
        self.host.link.flush().unwrap();
        id
    }

    /// Runs both sides in turns until `done` returns a value.
    fn until<T>(&mut self, mut done: impl FnMut(&mut Pair) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            self.host.link.receive().unwrap();
            if let Some(value) = done(self) {
                return value;
            }
            assert!(start.elapsed() < PATIENCE, "the agent makes no progress");
            if self.turn != Turn::PowerOff {
                self.turn = self.agent.run_once(Some(Duration::from_millis(1))).unwrap();
            }
            // New streams are found without a wake-up.
            self.host.carry(1..5);
        }
    }

    fn exit(&mut self) -> Exit {
        let event = self.until(|pair| pair.host.link.event());
        assert_eq!((event.container.as_str(), event.process.as_str()), ("c1", "init"));
        assert_eq!(event.event, "finished");
        event.exit.unwrap()
    }

    fn delivered(&mut self, exit: &Exit) {
        for (seq, bytes) in [(1, exit.stdout_bytes), (2, exit.stderr_bytes)] {
            self.until(|pair| {
                (pair.host.streams.handle.delivery(seq, bytes) == Delivery::Done).then_some(())
            });
        }
    }
}

#[test]
fn a_container_says_hello_and_ends() {
    let mut pair = Pair::running("echo hello; echo oops >&2; exit 3");
    let exit = pair.exit();
    assert_eq!((exit.code, exit.signal, exit.stdout_bytes, exit.stderr_bytes), (Some(3), None, 6, 5));
    pair.delivered(&exit);
    assert_eq!(read_text(&mut pair.stdio.stdout, 6), "hello\n");
    assert_eq!(read_text(&mut pair.stdio.stderr, 5), "oops\n");
    let destroy = pair.host.link.send_bare(Code::DestroyPod, "end the pod").unwrap();
    pair.host.link.flush().unwrap();
    pair.until(|pair| pair.host.link.reply(destroy)).unwrap();
}

#[test]
fn input_comes_back_whole_and_its_end_is_seen() {
    let mut pair = Pair::running("cat");
    let mut stdin = pair.stdio.stdin.take().unwrap();
    let sent: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
    let text = sent.clone();
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()).unwrap());
    let mut stdout = pair.stdio.stdout.try_clone().unwrap();
    let reader = std::thread::spawn(move || read_text(&mut stdout, sent.len() as u64) == sent);
    let exit = pair.exit();
    assert_eq!(exit.code, Some(0));
    pair.delivered(&exit);
    writer.join().unwrap();
    assert!(reader.join().unwrap());
}

#[test]
fn a_signal_ends_a_process_and_is_reported_as_one() {
    let mut pair = Pair::running("echo ready; exec cat");
    pair.until(|pair| (pair.host.streams.handle.delivery(1, 6) == Delivery::Done).then_some(()));
    let command = KillCommand { container: "c1".into(), signal: libc::SIGTERM, all_processes: false };
    pair.host.link.notify(Code::KillContainer, "forward a signal", &command).unwrap();
    pair.host.link.flush().unwrap();
    let exit = pair.exit();
    assert_eq!((exit.code, exit.signal), (None, Some(libc::SIGTERM)));
}

#[test]
fn a_missing_program_is_distinguished_from_one_that_cannot_run() {
    for (program, expected) in
        [("/nonexistent", ErrorCode::NotExecutableMissing), ("/etc/passwd", ErrorCode::NotExecutable)]
    {
        let mut pair = Pair::new();
        let pod = pair.host.link.send(Code::StartPod, "start the pod", &Pod::default()).unwrap();
        let container = pair.send_container(&[program]);
        pair.until(|pair| pair.host.link.reply(pod)).unwrap();
        match pair.until(|pair| pair.host.link.reply(container)) {
            Err(LinkError::Refused { code, .. }) => assert_eq!(code, expected, "{program}"),
            other => panic!("{program}: {other:?}"),
        }
    }
}

#[test]
fn a_client_that_disconnects_ends_a_process_that_continues_to_write() {
    let mut pair = Pair::running("exec yes");
    let (empty, _) = pipe().unwrap();
    drop(std::mem::replace(&mut pair.stdio.stdout, empty));
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
    let (link, step) = (&mut pair.host.link, "call");
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
        pair.until(|pair| pair.host.link.reply(id)).unwrap();
    }
}

#[test]
fn file_is_written_and_read_back_and_an_error_has_its_text() {
    let mut pair = Pair::running("exec cat");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a } name").to_str().unwrap().to_owned();
    let file = FileCommand { container: "c1".into(), file: path.clone(), ..FileCommand::default() };
    let data: Vec<u8> = (0..300_000).map(|n| n as u8).collect();
    let written = pair.host.link.send_file("write", &file, &data).unwrap();
    let read = pair.host.link.send(Code::ReadFile, "read", &file).unwrap();
    pair.host.link.flush().unwrap();
    pair.until(|pair| pair.host.link.reply(written)).unwrap();
    assert!(pair.until(|pair| pair.host.link.reply(read)).unwrap() == data);
    std::fs::remove_file(&path).unwrap();
    let missing = pair.host.link.send(Code::ReadFile, "read", &file).unwrap();
    pair.host.link.flush().unwrap();
    let error = pair.until(|pair| pair.host.link.reply(missing)).unwrap_err().to_string();
    assert_eq!(error, format!("read: open {path}: no such file or directory"));
}

#[test]
fn child_in_the_background_does_not_hold_back_the_exit() {
    let mut pair = Pair::running("sleep 1000 & echo $!; exit 5");
    let exit = pair.exit();
    assert_eq!(exit.code, Some(5));
    pair.delivered(&exit);
    let child = read_text(&mut pair.stdio.stdout, exit.stdout_bytes);
    // The child does not belong to the container any more; the test must end it.
    assert_eq!(std::process::Command::new("kill").arg(child.trim()).status().unwrap().code(), Some(0));
}

#[test]
fn damaged_frame_of_the_host_ends_the_agent_with_a_reason() {
    let mut pair = Pair::new();
    pair.host.link.socket.write_all(&[0, 0, 0, 12, 0, 0, 0, 7, 0, 0, 0, 9]).unwrap();
    let fault = pair.agent.run_once(Some(Duration::from_millis(100))).unwrap_err();
    assert_eq!(fault.text, "control channel: frame of 7 bytes is shorter than its header of 8 bytes");
}
