//! A container of a pod and its phases, from creation over start, exit and last output to its end or restart.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Instant, SystemTime};

use agent_proto::command::{Code, Protocol};
use agent_proto::payload::{ContainerName, Exit};
use host::signals::requests_termination;
use host::terminal::{self, RawTerminal};
use link::streams::StreamSpec;
use link::{CommandId, LinkError};
use oci::spec::ConsoleSize;
use plan::INIT_PROCESS;

use super::log::{LogFile, Stream};
use super::output::PodOutput;
use super::output_pipe::OutputPipe;
use super::plan::ContainerSpec;
use super::process::{self, Process};
use super::restart::Restarts;
use super::{ClientId, Guest};
use crate::checkpoint::Saved;
use crate::exit;
use crate::state::ContainerState;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The container waits for a request to start it.
    Created,
    /// The container is to be started at this time.
    Waiting(Instant),
    /// The agent was asked to start the container.
    Starting,
    Running,
    /// The init process has exited; its output is on the way.
    Draining,
    /// The agent was asked to remove the container. Then it is restarted or has ended.
    Clearing(Option<Instant>),
    /// The container has ended and is not restarted.
    Ended,
}

/// Progress of a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopStage {
    None,
    /// The container is to get its stop signal.
    Requested,
    Signalled,
    Killed,
}

/// The process of the host that represents a container: its streams are the container's, and signals to it as well.
#[derive(Debug)]
enum Representative {
    /// No process. Output goes to the log and to the pod's own output, and there is no input.
    None,
    /// This process.
    Own,
    /// A client of the pod's socket.
    Client(Member),
}

/// The client that represents a container.
#[derive(Debug)]
pub struct Member {
    /// `None` once it is gone.
    pub client: Option<ClientId>,
    /// Its standard streams, until the container is started.
    fds: Vec<OwnedFd>,
    /// The last size of its terminal before the container was started.
    size: Option<ConsoleSize>,
}

pub struct Container {
    pub spec: ContainerSpec,
    pub phase: Phase,
    /// Progress of a stop. A container that is being stopped is not restarted.
    pub stop_stage: StopStage,
    /// When it must have ended, once it was killed.
    pub killed: Option<Instant>,
    /// Clients that wait for its removal.
    pub removers: Vec<ClientId>,
    /// The container is to be removed after its end.
    pub leaves: bool,
    /// The client that added or started the container, and waits for its start.
    pub starter: Option<ClientId>,
    pub has_run: bool,
    pub paused: bool,
    /// Exit code of the last run.
    pub exit: Option<u8>,
    /// The error that kept its output from the reader, with the stream's name.
    pub output_error: Option<(&'static str, io::Error)>,
    error: String,
    restarts: Restarts,
    started: Instant,
    /// The init process, from the command that starts it until its output is drained.
    process: Option<Process>,
    /// The pipes of its outputs, until end of file was read.
    pub pipes: Vec<OutputPipe>,
    log: Option<LogFile>,
    representative: Representative,
    /// The terminal in which this process was started, raw while the container uses it.
    terminal: Option<RawTerminal>,
    /// Signals that arrived before the start, and whether each is for all of its processes.
    held: Vec<(i32, bool)>,
}

impl Container {
    /// Returns a container that is to be started now, with the pod's streams.
    pub fn new(spec: ContainerSpec, log: Option<LogFile>, now: Instant) -> Container {
        Container {
            phase: Phase::Waiting(now),
            stop_stage: StopStage::None,
            killed: None,
            removers: Vec::new(),
            leaves: false,
            starter: None,
            has_run: false,
            paused: false,
            exit: None,
            output_error: None,
            error: String::new(),
            restarts: Restarts::new(spec.restart),
            started: now,
            process: None,
            pipes: Vec::new(),
            spec,
            log,
            representative: Representative::None,
            terminal: None,
            held: Vec::new(),
        }
    }

    /// Returns the container that this process represents, in `phase`.
    pub fn own(spec: ContainerSpec, phase: Phase) -> Container {
        let representative = Representative::Own;
        Container { phase, representative, ..Container::new(spec, None, Instant::now()) }
    }

    /// Returns a container that `client` represents with these standard streams, and that waits for its start.
    pub fn of_client(spec: ContainerSpec, client: ClientId, fds: Vec<OwnedFd>) -> Container {
        let representative = Representative::Client(Member { client: Some(client), fds, size: None });
        Container { phase: Phase::Created, representative, ..Container::new(spec, None, Instant::now()) }
    }

    /// Whether a request names this container; an empty name is that of every container.
    pub fn is_meant(&self, name: &str) -> bool {
        name.is_empty() || self.spec.name() == name
    }

    /// Whether this process represents the container.
    pub fn is_own(&self) -> bool {
        matches!(self.representative, Representative::Own)
    }

    /// Whether a process represents the container, so that it is one of an engine.
    pub fn is_represented(&self) -> bool {
        !matches!(self.representative, Representative::None)
    }

    pub fn member(&self) -> Option<&Member> {
        if let Representative::Client(member) = &self.representative { Some(member) } else { None }
    }

    /// Handles the loss of the client that represents the container: it is killed and removed.
    pub fn lose_client(&mut self) {
        if let Representative::Client(member) = &mut self.representative {
            member.client = None;
            (self.leaves, self.stop_stage) = (true, self.stop_stage.max(StopStage::Requested));
        }
    }

    /// Makes the container, which this process represents, one that runs already in a machine that continues. Its streams are
    /// open.
    pub fn continued(&mut self, guest: &mut Guest<'_>, saved: &Saved) -> Result<(), StartError> {
        let streams = saved.specs().iter().map(|spec| spec.seq).collect();
        let process = Process::running(self.spec.name(), saved.terminal, streams);
        (self.phase, self.has_run) = (Phase::Running, true);
        if saved.terminal {
            self.terminal = RawTerminal::of_stdin().map_err(StartError::Terminal)?;
            terminal::size().map_or(Ok(()), |size| process.resize(guest, size))?;
        }
        self.process = Some(process);
        Ok(())
    }

    /// Number of the first stream of its init process, which runs.
    pub fn first_stream(&self) -> Option<u64> {
        self.process.as_ref().filter(|_| self.phase == Phase::Running)?.first_stream()
    }

    /// Records that the container's machine was saved, which ends it as SIGKILL does.
    pub fn end_with_checkpoint(&mut self) {
        (self.phase, self.exit) = (Phase::Ended, Some(exit::of_signal(libc::SIGKILL)));
    }

    /// Asks the agent to start the container, with streams from number `seq` on.
    pub fn start(&mut self, guest: &mut Guest<'_>, seq: u64, null: &File) -> Result<CommandId, StartError> {
        let mut container = self.spec.plan.container.clone();
        let terminal = container.process.terminal;
        (container.process.stdio, container.process.stderr) = (seq, if terminal { 0 } else { seq + 1 });
        let mut outputs = vec![(Stream::Stdout, seq)];
        if !terminal {
            outputs.push((Stream::Stderr, seq + 1));
        }
        let mut writers = Vec::new();
        let mut streams = Vec::new();
        if let Representative::Client(member) = &self.representative {
            streams = process::client_streams(seq, &member.fds);
            outputs.clear();
        }
        for (stream, seq) in outputs {
            if self.is_own() {
                streams.push(own_stream(stream, seq));
                continue;
            }
            let (pipe, writer) = OutputPipe::new(stream)?;
            // There is no input: a program that reads gets end of file; one on a terminal waits.
            let source = (stream == Stream::Stdout && !terminal).then(|| null.as_raw_fd());
            streams.push(StreamSpec { seq, source, sink: Some(writer.as_raw_fd()) });
            self.pipes.push(pipe);
            writers.push(writer);
        }
        let mut process = Process::open(guest, self.spec.name(), INIT_PROCESS, terminal, &streams)?;
        if let Representative::Client(member) = &mut self.representative {
            member.fds.clear();
        }
        for (signal, all) in std::mem::take(&mut self.held) {
            process.signal(guest, signal, all)?;
        }
        self.process = Some(process);
        self.phase = Phase::Starting;
        Ok(guest.link.send(Code::NewContainer, "start the container", &container)?)
    }

    /// Handles the agent's reply that the container was started.
    pub fn began(&mut self, guest: &mut Guest<'_>, now: Instant) -> Result<(), StartError> {
        (self.phase, self.started, self.has_run) = (Phase::Running, now, true);
        let own_terminal = self.is_own() && self.spec.plan.container.process.terminal;
        if own_terminal {
            self.terminal = RawTerminal::of_stdin().map_err(StartError::Terminal)?;
        }
        // The size may have changed since the container was created, and API 4244 has no size at the start.
        let size = match &mut self.representative {
            Representative::Client(member) => member.size.take(),
            _ => terminal::size().filter(|_| own_terminal),
        };
        let Some(process) = &mut self.process else { return Ok(()) };
        Ok(process.started(guest, size)?)
    }

    /// Handles a failed start: the container has ended with `code`.
    pub fn failed(&mut self, guest: &mut Guest<'_>, code: u8, error: String) {
        self.close(guest);
        self.pipes.clear();
        (self.phase, self.exit, self.error) = (Phase::Ended, Some(code), error);
    }

    pub fn exited(&mut self, exit: Exit) {
        if let Some(process) = self.process.as_mut().filter(|_| self.phase == Phase::Running) {
            process.exited(exit);
            self.phase = Phase::Draining;
        }
    }

    /// Does what the protocol leaves to the host while the container runs.
    pub fn advance(&mut self, guest: &mut Guest<'_>) -> Result<(), LinkError> {
        self.process.as_mut().map_or(Ok(()), |process| process.advance(guest))
    }

    /// Returns true once, when the init process's output was delivered and logged.
    pub fn drain(&mut self, guest: &mut Guest<'_>, now: Instant) -> bool {
        if self.phase != Phase::Draining {
            return false;
        }
        if let Some(process) = &self.process {
            let process::ProcessPhase::Draining(exit) = &process.phase else { return false };
            if !process.is_drained(guest) {
                return false;
            }
            self.exit = Some(exit::of_exit(exit));
            self.close(guest);
        }
        if !self.pipes.is_empty() {
            return false;
        }
        self.paused = false;
        let again = self.restarts.ended(self.exit.unwrap_or(0), self.started, now);
        self.phase = Phase::Clearing(again);
        true
    }

    /// Whether the agent has to remove the container, which frees its name. Not needed if the machine ends with the
    /// container.
    pub fn is_cleared(&self, protocol: Protocol) -> bool {
        !(self.is_own() || protocol == Protocol::Api4244)
    }

    /// Returns a stream for which the guest has reported more output than has arrived.
    pub fn owed(&self, guest: &Guest<'_>) -> Option<u64> {
        self.process.as_ref().filter(|_| self.phase == Phase::Draining)?.owed(guest)
    }

    /// Handles the agent's reply that the container was removed.
    pub fn cleared(&mut self) {
        if let Phase::Clearing(again) = self.phase {
            let again = again.filter(|_| self.stop_stage == StopStage::None);
            self.killed = None;
            self.phase = again.map_or(Phase::Ended, Phase::Waiting);
        }
    }

    /// Takes the next step of a stop. `kill` means that the deadline is over.
    pub fn advance_stop(&mut self, guest: &mut Guest<'_>, kill: bool) -> Result<(), LinkError> {
        match self.phase {
            // A pending restart is cancelled.
            Phase::Waiting(_) | Phase::Created => self.phase = Phase::Ended,
            Phase::Running if kill && self.stop_stage < StopStage::Killed => {
                self.stop_stage = StopStage::Killed;
                self.signal(guest, libc::SIGKILL, true)?;
            }
            Phase::Running if self.stop_stage == StopStage::Requested => {
                self.stop_stage = StopStage::Signalled;
                if std::mem::take(&mut self.paused) {
                    let name = ContainerName { container: self.spec.name().to_owned() };
                    guest.link.notify(Code::Resume, "resume the container", &name)?;
                }
                self.signal(guest, self.spec.stop_signal, false)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Sends a signal to the init process, or to all processes.
    pub fn signal(&mut self, guest: &mut Guest<'_>, signal: i32, all: bool) -> Result<(), LinkError> {
        self.process.as_mut().map_or(Ok(()), |process| process.signal(guest, signal, all))
    }

    /// Keeps a signal for a container that a process represents and whose init process does not exist yet. Before
    /// the request to start, a signal to terminate ends the container. Returns false for any other container.
    pub fn hold(&mut self, signal: i32, all: bool) -> bool {
        if !self.is_represented() {
            return false;
        }
        match (&self.phase, &mut self.process) {
            (Phase::Created, _) if signal == libc::SIGKILL || requests_termination(signal) => {
                (self.phase, self.exit) = (Phase::Ended, Some(exit::of_signal(signal)));
            }
            (Phase::Created, _) => {}
            (Phase::Waiting(_), _) => self.held.push((signal, all)),
            (Phase::Starting, Some(process)) => process.hold(signal, all),
            _ => return false,
        }
        true
    }

    pub fn resize(&mut self, guest: &mut Guest<'_>, size: ConsoleSize) -> Result<(), LinkError> {
        if let Representative::Client(member) = &mut self.representative
            && !self.has_run
        {
            member.size = Some(size);
        }
        self.process.as_ref().map_or(Ok(()), |process| process.resize(guest, size))
    }

    /// Logs new output and writes it to the pod's output, prefixed with the container's name if `named`. `ready` says
    /// for each of the pipes whether it has data.
    pub fn read_output(
        &mut self,
        outputs: &mut PodOutput,
        named: bool,
        ready: &mut impl Iterator<Item = bool>,
    ) {
        let (name, log, now) = (self.spec.name(), &mut self.log, SystemTime::now());
        self.pipes.retain_mut(|pipe| {
            if ready.next() != Some(true) {
                return true;
            }
            let (stream, chunk) = (pipe.stream, pipe.read());
            if let Some(log) = log {
                chunk.lines.iter().for_each(|line| log.write(line, stream, now));
            }
            if named {
                chunk.lines.iter().for_each(|line| outputs.write_line(stream, name, line));
            } else {
                outputs.write(stream, &chunk.bytes);
            }
            !chunk.ended
        });
    }

    fn close(&mut self, guest: &mut Guest<'_>) {
        let failed = self.process.take().and_then(|mut process| process.close(guest));
        // Output of other containers goes to a log, which reports its own errors.
        if self.is_represented() && self.output_error.is_none() {
            self.output_error = failed;
        }
        self.terminal = None;
    }

    /// Returns the container's state for the state file.
    pub fn state(&self) -> ContainerState {
        let status = match self.phase {
            Phase::Created => "created",
            Phase::Waiting(_) | Phase::Clearing(Some(_)) => "waiting",
            Phase::Starting => "starting",
            Phase::Running if self.paused => "paused",
            Phase::Running | Phase::Draining => "running",
            Phase::Clearing(None) | Phase::Ended => "stopped",
        };
        ContainerState {
            name: self.spec.name().to_owned(),
            status: status.to_owned(),
            exit_code: self.exit,
            restarts: self.restarts.count,
            error: self.error.clone(),
            log: self.log.as_ref().map(|log| log.path().to_owned()),
            labels: self.spec.labels.clone(),
            stubs: Vec::new(),
        }
    }
}

/// Returns this process's own stream for an output, and for the input.
fn own_stream(stream: Stream, seq: u64) -> StreamSpec {
    match stream {
        Stream::Stdout => {
            StreamSpec { seq, source: Some(libc::STDIN_FILENO), sink: Some(libc::STDOUT_FILENO) }
        }
        Stream::Stderr => StreamSpec { seq, source: None, sink: Some(libc::STDERR_FILENO) },
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("open the container's output")]
    Host(#[from] io::Error),
    #[error("set the terminal to raw mode")]
    Terminal(#[source] io::Error),
}
