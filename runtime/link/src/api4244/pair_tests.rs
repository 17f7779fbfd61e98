//! The link against the agent's own code, both in the base form: no VM, no root.

use std::io::Write;
use std::time::{Duration, Instant};

use agent::agent::{Agent, Setting, Turn};
use agent_proto::command::API_VERSION;
use agent_proto::command::Protocol;
use agent_proto::payload::{
    ContainerName, ExecCommand, FileCommand, Interface, KillCommand, Pod, Route, Routes, SignalCommand,
    WindowSize,
};
use serde::Serialize;

use super::tests::{container, process};
use super::*;
use crate::testing::{Host, Stdio, read_text, specs};

/// Timeout of each step.
const PATIENCE: Duration = Duration::from_secs(20);

/// The link and the agent, both in the base form.
struct Pair {
    agent: Agent,
    host: Host,
    stdio: Stdio,
    pace: InputPace,
    turn: Turn,
}

impl Pair {
    fn new() -> Pair {
        let (stdio, fds) = Stdio::new();
        let (host, [control, channel]) = Host::new(&specs(&fds), Protocol::Api4244);
        let agent = Agent::new(control.into(), channel.into(), Setting::Host).unwrap();
        Pair { agent, host, stdio, pace: InputPace::new(1), turn: Turn::Continue }
    }

    /// Returns a pair whose container runs `script`.
    fn running(script: &str) -> Pair {
        let mut pair = Pair::new();
        pair.call(Code::StartPod, &Pod::default()).unwrap();
        pair.call(Code::NewContainer, &container(&["/bin/sh", "-c", script])).unwrap();
        pair.host.streams.start(INPUT_WINDOW);
        pair
    }

    fn call(&mut self, code: Code, payload: &impl Serialize) -> Result<Vec<u8>> {
        let id = self.host.link.send(code, "call", payload).unwrap();
        self.until(|pair| pair.host.link.reply(id))
    }

    fn bare(&mut self, code: Code) -> Result<Vec<u8>> {
        let id = self.host.link.send_bare(code, "call").unwrap();
        self.until(|pair| pair.host.link.reply(id))
    }

    /// Runs both sides in turns until `done` returns a value.
    fn until<T>(&mut self, mut done: impl FnMut(&mut Pair) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            self.host.link.receive().unwrap();
            self.pace.turn(&mut self.host.link, &self.host.streams.handle).unwrap();
            if let Some(value) = done(self) {
                return value;
            }
            assert!(start.elapsed() < PATIENCE, "the agent makes no progress");
            if self.turn != Turn::PowerOff {
                self.turn = self.agent.run_once(Some(Duration::from_millis(1))).unwrap();
            }
            self.host.carry(0..5);
        }
    }

    /// Waits for the exit report and the end of all output. Returns the status.
    fn exit(&mut self) -> i32 {
        let event = self.until(|pair| pair.host.link.event());
        assert_eq!((event.event.as_str(), event.exit.as_ref()), ("finished", None));
        self.until(|pair| pair.host.streams.handle.is_ended(1).then_some(()));
        event.status
    }

    fn output(&mut self) -> String {
        let count = self.host.streams.handle.received(1);
        read_text(&mut self.stdio.stdout, count)
    }
}

#[test]
fn container_of_the_base_form_reads_writes_and_ends() {
    let mut pair = Pair::running("read line; echo $A $line; echo oops >&2; cat; exit 3");
    let mut stdin = pair.stdio.stdin.take().unwrap();
    stdin.write_all(b"one\n").unwrap();
    let text: String = (0..1000).map(|n| format!("line {n}\n")).collect();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    assert_eq!(pair.exit(), 3);
    assert_eq!(pair.output(), format!("b one\n{text}"));
    assert_eq!(pair.host.streams.handle.received(2), 5);
    pair.bare(Code::DestroyPod).unwrap();
    assert_eq!(pair.turn, Turn::PowerOff);
}

#[test]
fn each_command_of_the_base_form_is_answered() {
    let mut pair = Pair::running("exec cat");
    for code in [Code::Ping, Code::Ready, Code::OnlineCpuMem] {
        assert_eq!(pair.bare(code).unwrap(), b"", "{code:?}");
    }
    assert_eq!(pair.bare(Code::GetVersion).unwrap(), API_VERSION.to_be_bytes());
    let interface = Interface { device: "eth0".into(), ..Interface::default() };
    pair.call(Code::SetupInterface, &interface).unwrap();
    pair.call(Code::DeleteInterface, &interface).unwrap();
    let route = Route { dest: "default".into(), ..Route::default() };
    pair.call(Code::SetupRoute, &Routes { routes: vec![route] }).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a } name").to_str().unwrap().to_owned();
    let file = FileCommand { container: "c1".into(), file, ..FileCommand::default() };
    let long: Vec<u8> = (0..5000).map(|n| n as u8).collect();
    let written = pair.host.link.send_file("write", &file, &long).unwrap();
    pair.until(|pair| pair.host.link.reply(written)).unwrap();
    assert_eq!(pair.call(Code::ReadFile, &file).unwrap(), long);
    let exec = |stdio, script: &str| ExecCommand {
        container: "c1".into(),
        process: process("e1", &["/bin/sh", "-c", script], stdio, stdio + 1),
    };
    pair.call(Code::ExecCmd, &exec(3, "exec sleep 1000")).unwrap();
    let signal = |signal| SignalCommand { container: "c1".into(), process: "e1".into(), signal };
    pair.call(Code::SignalProcess, &signal(9)).unwrap();
    let event = pair.until(|pair| pair.host.link.event());
    // API 4244 reports status 0 after a signal.
    assert_eq!((event.process.as_str(), event.status), ("e1", 0));
    pair.call(Code::ExecCmd, &exec(5, "exit 7")).unwrap();
    assert_eq!(pair.until(|pair| pair.host.link.event()).status, 7);
    // A missing program is reported as a process that ran and exited.
    let mut missing = exec(7, "");
    missing.process.args = vec!["/no/such/program".into()];
    pair.call(Code::ExecCmd, &missing).unwrap();
    assert_eq!(pair.until(|pair| pair.host.link.event()).status, 127);
    let kill = |signal| KillCommand { container: "c1".into(), signal, all_processes: false };
    pair.call(Code::KillContainer, &kill(15)).unwrap();
    assert_eq!(pair.exit(), 0);
    assert_eq!(pair.call(Code::KillContainer, &kill(15)).unwrap_err().to_string(), "call: no such process");
    pair.call(Code::RemoveContainer, &ContainerName { container: "c1".into() }).unwrap();
}

#[test]
fn each_error_of_the_base_form_leaves_the_link_as_it_was() {
    let mut pair = Pair::running("exec cat");
    let error = |result: Result<Vec<u8>>| result.unwrap_err().to_string();
    let no_reason = "call: refused; API 4244 gives no reason";
    for code in [
        Code::GetPodDeprecated,
        Code::StopPodDeprecated,
        Code::RestartContainerDeprecated,
        Code::CmdFinishedDeprecated,
        Code::PodFinishedDeprecated,
        Code::Extend,
        Code::Next,
        Code::StartPod,
    ] {
        assert_eq!(error(pair.bare(code)), no_reason, "{code:?}");
    }
    assert_eq!(error(pair.call(Code::StartPod, &Pod::default())), no_reason);
    assert_eq!(error(pair.call(Code::NewContainer, &container(&["true"]))), no_reason);
    let nobody = || "nobody".to_owned();
    let exec = ExecCommand { container: nobody(), process: process("e1", &["true"], 3, 4) };
    assert_eq!(error(pair.call(Code::ExecCmd, &exec)), no_reason);
    let size = WindowSize { container: "c1".into(), process: "init".into(), row: 1, column: 1 };
    assert_eq!(error(pair.call(Code::WinSize, &size)), no_reason);
    assert_eq!(error(pair.call(Code::RemoveContainer, &ContainerName { container: "c1".into() })), no_reason);
    assert_eq!(error(pair.call(Code::SetupInterface, &Interface::default())), no_reason);
    assert_eq!(error(pair.call(Code::SetupRoute, &Routes { routes: vec![Route::default()] })), no_reason);
    let file = FileCommand { container: nobody(), file: "/x".into(), ..FileCommand::default() };
    assert_eq!(error(pair.call(Code::ReadFile, &file)), no_reason);
    let kill = KillCommand { container: nobody(), signal: 9, all_processes: false };
    assert_eq!(error(pair.call(Code::KillContainer, &kill)), "call: no such container");
    pair.bare(Code::Ping).unwrap();
    drop(pair.stdio.stdin.take());
    assert_eq!(pair.exit(), 0);
}

#[test]
fn signal_and_input_right_behind_a_start_are_not_lost_in_the_base_form() {
    let mut pair = Pair::new();
    let commands = [
        pair.host.link.send(Code::StartPod, "start the pod", &Pod::default()).unwrap(),
        pair.host.link.send(Code::NewContainer, "start", &container(&["/bin/cat"])).unwrap(),
    ];
    pair.stdio.stdin.as_mut().unwrap().write_all(b"early").unwrap();
    pair.host.streams.start(INPUT_WINDOW);
    for id in commands {
        pair.until(|pair| pair.host.link.reply(id)).unwrap();
    }
    pair.until(|pair| (pair.host.streams.handle.received(1) == 5).then_some(()));
    let exec = ExecCommand { container: "c1".into(), process: process("e1", &["/bin/sleep", "1000"], 3, 4) };
    let signal = SignalCommand { container: "c1".into(), process: "e1".into(), signal: 15 };
    let ids = [
        pair.host.link.send(Code::ExecCmd, "exec", &exec).unwrap(),
        pair.host.link.send(Code::SignalProcess, "signal", &signal).unwrap(),
    ];
    for id in ids {
        pair.until(|pair| pair.host.link.reply(id)).unwrap();
    }
    assert_eq!(pair.until(|pair| pair.host.link.event()).process, "e1");
}
