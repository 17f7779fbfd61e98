//! A container of a pod and its life: waiting, starting, running, its last output, its end, and again.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Instant, SystemTime};

use agent_proto::command::Code;
use agent_proto::payload::{ContainerName, Exit, KillCommand, WindowSize};
use host::signals::asks_for_an_end;
use host::terminal;
use link::streams::{Delivery, StreamSpec};
use link::{CommandId, LinkError};
use oci::spec::ConsoleSize;
use plan::INIT_PROCESS;

use super::log::{LogFile, Stream};
use super::output::Outputs;
use super::plan::ContainerSpec;
use super::restart::Restarts;
use super::tap::Tap;
use super::{Asker, Guest};
use crate::exit;
use crate::state::ContainerState;

/// Where a container stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is to be started when somebody asks for it.
    Created,
    /// It is to be started at this time.
    Waiting(Instant),
    /// The agent was asked to start it.
    Starting,
    /// Its first process runs.
    Running,
    /// Its first process has ended; its output is on the way.
    Draining(Exit),
    /// The agent was asked to forget it; then it is started again, or not.
    Clearing(Option<Instant>),
    /// It has ended for good.
    Ended,
}

/// How far it was asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// Not at all.
    Unasked,
    /// It is to be asked.
    Wanted,
    /// It has its stop signal.
    Asked,
    /// It has SIGKILL.
    Killed,
}

/// A container.
#[derive(Debug)]
pub struct Member {
    /// What it is.
    pub spec: ContainerSpec,
    /// Where it stands.
    pub phase: Phase,
    /// How far it was asked to end: it is not started again then.
    pub ending: Ending,
    /// When it is to have ended, since it was killed.
    pub killed: Option<Instant>,
    /// Who has it removed.
    pub removers: Vec<Asker>,
    /// It is to be removed when it has ended.
    pub leaves: bool,
    /// Who added it to the living pod and waits for its first start.
    pub adder: Option<Asker>,
    /// It has run.
    pub has_run: bool,
    /// It does not run, though its processes are there.
    pub paused: bool,
    /// How it ended last.
    pub exit: Option<u8>,
    error: String,
    restarts: Restarts,
    started: Instant,
    /// Numbers of its stdout's and stderr's streams.
    streams: Vec<u64>,
    taps: Vec<Tap>,
    log: Option<LogFile>,
    /// Its streams are this process's own, which stands for it.
    pub stands: bool,
    /// Signals that came before its first process, and whether they are for all of its processes.
    held: Vec<(i32, bool)>,
}

impl Member {
    /// Returns a container that is to be started now.
    pub fn new(spec: ContainerSpec, log: Option<LogFile>, now: Instant) -> Member {
        Member {
            phase: Phase::Waiting(now),
            ending: Ending::Unasked,
            killed: None,
            removers: Vec::new(),
            leaves: false,
            adder: None,
            has_run: false,
            paused: false,
            exit: None,
            error: String::new(),
            restarts: Restarts::new(spec.restart),
            started: now,
            streams: Vec::new(),
            taps: Vec::new(),
            spec,
            log,
            stands: false,
            held: Vec::new(),
        }
    }

    /// Returns a container that this process stands for: it waits for its start, and has our standard streams.
    pub fn standing(spec: ContainerSpec) -> Member {
        Member { phase: Phase::Created, stands: true, ..Member::new(spec, None, Instant::now()) }
    }

    /// Asks the agent to start it, with streams from number `seq` on.
    pub fn start(&mut self, guest: &mut Guest<'_>, seq: u64, null: &File) -> Result<CommandId, StartError> {
        let terminal = self.spec.plan.container.process.terminal;
        let mut container = self.spec.plan.container.clone();
        let mut outputs = vec![(Stream::Stdout, seq)];
        container.process.stdio = seq;
        if !terminal {
            container.process.stderr = seq + 1;
            outputs.push((Stream::Stderr, seq + 1));
        }
        for (stream, seq) in outputs {
            if self.stands {
                guest.streams.open(&own_stream(stream, seq))?;
                self.streams.push(seq);
                continue;
            }
            let (tap, writer) = Tap::new(stream)?;
            // Nobody types: a program that reads finds the end, one on a terminal waits.
            let source = (stream == Stream::Stdout && !terminal).then(|| null.as_raw_fd());
            guest.streams.open(&StreamSpec { seq, source, sink: Some(writer.as_raw_fd()) })?;
            self.streams.push(seq);
            self.taps.push(tap);
        }
        self.phase = Phase::Starting;
        Ok(guest.link.send(Code::NewContainer, "start the container", &container)?)
    }

    /// Its first process runs.
    pub fn began(&mut self, guest: &mut Guest<'_>, now: Instant) -> Result<(), LinkError> {
        (self.phase, self.started, self.has_run) = (Phase::Running, now, true);
        if let Some(seq) = self.streams.first() {
            guest.streams.start(*seq, guest.window());
        }
        if let Some(size) =
            terminal::size().filter(|_| self.stands && self.spec.plan.container.process.terminal)
        {
            // It may have changed since the container was made.
            self.resize(guest, size)?;
        }
        let held = std::mem::take(&mut self.held);
        held.into_iter().try_for_each(|(signal, all)| self.signal(guest, signal, all))
    }

    /// It could not be started: it has ended with `code`.
    pub fn failed(&mut self, guest: &mut Guest<'_>, code: u8, error: String) {
        self.close(guest);
        self.taps.clear();
        (self.phase, self.exit, self.error) = (Phase::Ended, Some(code), error);
    }

    /// Its first process has ended.
    pub fn exited(&mut self, exit: Exit) {
        if matches!(self.phase, Phase::Running) {
            self.phase = Phase::Draining(exit);
        }
    }

    /// Once the first process's output is here and written down: returns whether the agent may forget the container.
    pub fn is_drained(&mut self, guest: &mut Guest<'_>, now: Instant) -> bool {
        let Phase::Draining(exit) = &self.phase else { return false };
        let bytes = [exit.stdout_bytes, exit.stderr_bytes];
        let open = self.streams.iter().zip(bytes);
        if open.clone().any(|(seq, bytes)| guest.streams.delivery(*seq, bytes) != Delivery::Done) {
            return false;
        }
        let code = exit::of_exit(exit);
        for (seq, name) in self.streams.iter().zip(["stdout", "stderr"]) {
            if let Some(error) = guest.streams.error(*seq).filter(|_| self.stands) {
                log::warn!("write {name}: {error}");
            }
        }
        self.close(guest);
        if !self.taps.iter().all(Tap::is_ended) {
            return false;
        }
        self.taps.clear();
        self.exit = Some(code);
        self.paused = false;
        let again = self.restarts.ended(code, self.started, now);
        self.phase = Phase::Clearing(again);
        true
    }

    /// Returns the stream of which the guest owes output that it says it has sent.
    pub fn owed(&self, guest: &Guest<'_>) -> Option<u64> {
        let Phase::Draining(exit) = &self.phase else { return None };
        let mut open = self.streams.iter().zip([exit.stdout_bytes, exit.stderr_bytes]);
        open.find(|(seq, bytes)| guest.streams.delivery(**seq, *bytes) == Delivery::Guest)
            .map(|(seq, _)| *seq)
    }

    /// The agent has forgotten it.
    pub fn cleared(&mut self) {
        if let Phase::Clearing(again) = self.phase {
            let again = again.filter(|_| self.ending == Ending::Unasked);
            self.killed = None;
            self.phase = again.map_or(Phase::Ended, Phase::Waiting);
        }
    }

    /// Does what is due for its end; `kill` says that patience is over.
    pub fn end(&mut self, guest: &mut Guest<'_>, kill: bool) -> Result<(), LinkError> {
        match self.phase {
            // What was to be started again is not.
            Phase::Waiting(_) | Phase::Created => self.phase = Phase::Ended,
            Phase::Running if kill && self.ending < Ending::Killed => {
                self.ending = Ending::Killed;
                self.signal(guest, libc::SIGKILL, true)?;
            }
            Phase::Running if self.ending == Ending::Wanted => {
                self.ending = Ending::Asked;
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

    /// Sends its first process a signal, or all of its processes.
    pub fn signal(&self, guest: &mut Guest<'_>, signal: i32, all: bool) -> Result<(), LinkError> {
        let command = KillCommand { container: self.spec.name().to_owned(), signal, all_processes: all };
        guest.link.notify(Code::KillContainer, "signal the container", &command)
    }

    /// Takes a signal for a container that this process stands for and whose first process is not there: one that asks for
    /// an end is its end before it was asked to start, and is kept after that. Returns false for any other container.
    pub fn hold(&mut self, signal: i32, all: bool) -> bool {
        match self.phase {
            _ if !self.stands => return false,
            Phase::Created if signal == libc::SIGKILL || asks_for_an_end(signal) => {
                (self.phase, self.exit) = (Phase::Ended, Some(exit::of_signal(signal)));
            }
            Phase::Created => {}
            Phase::Waiting(_) | Phase::Starting => self.held.push((signal, all)),
            _ => return false,
        }
        true
    }

    /// Gives its terminal another size.
    pub fn resize(&self, guest: &mut Guest<'_>, size: ConsoleSize) -> Result<(), LinkError> {
        let (container, process) = (self.spec.name().to_owned(), INIT_PROCESS.to_owned());
        let command = WindowSize { container, process, row: size.height, column: size.width };
        guest.link.notify(Code::WinSize, "resize the terminal", &command)
    }

    /// The taps that are to be waited for.
    pub fn taps(&self) -> impl Iterator<Item = &Tap> {
        self.taps.iter().filter(|tap| !tap.is_ended())
    }

    /// Writes down what has come, and shows it; `named` says that the container's name stands before it, and `ready` which
    /// of [`taps`](Self::taps) have something.
    pub fn read_output(
        &mut self,
        outputs: &mut Outputs,
        named: bool,
        ready: &mut impl Iterator<Item = bool>,
    ) {
        for tap in self.taps.iter_mut().filter(|tap| !tap.is_ended()) {
            if ready.next() != Some(true) {
                continue;
            }
            let stream = tap.stream;
            let mut bytes = Vec::new();
            let mut lines: Vec<Vec<u8>> = Vec::new();
            tap.read(|data| bytes.extend_from_slice(data), |line| lines.push(line.to_vec()));
            if let Some(log) = &mut self.log {
                let now = SystemTime::now();
                lines.iter().for_each(|line| log.write(line, stream, now));
            }
            if named {
                lines.iter().for_each(|line| outputs.write_line(stream, self.spec.name(), line));
            } else {
                outputs.write(stream, &bytes);
            }
        }
    }

    fn close(&mut self, guest: &mut Guest<'_>) {
        for seq in self.streams.drain(..) {
            guest.streams.close(seq);
        }
    }

    /// What is told of it.
    pub fn state(&self) -> ContainerState {
        let status = match self.phase {
            Phase::Created => "created",
            Phase::Waiting(_) | Phase::Clearing(Some(_)) => "waiting",
            Phase::Starting => "starting",
            Phase::Running if self.paused => "paused",
            Phase::Running | Phase::Draining(_) => "running",
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
        }
    }
}

/// Our own stream for one of its outputs, and for its input.
fn own_stream(stream: Stream, seq: u64) -> StreamSpec {
    match stream {
        Stream::Stdout => {
            StreamSpec { seq, source: Some(libc::STDIN_FILENO), sink: Some(libc::STDOUT_FILENO) }
        }
        Stream::Stderr => StreamSpec { seq, source: None, sink: Some(libc::STDERR_FILENO) },
    }
}

/// Why the agent could not even be asked.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The link is broken.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The host has no further descriptors.
    #[error("open the container's output")]
    Host(#[from] io::Error),
}
