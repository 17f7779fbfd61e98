//! The host's view of a process in the guest: its streams, pending signals and window sizes, and its exit.
//!
//! Init and exec processes are the same here, with the extended protocol and with API 4244. A process's exit takes
//! effect once its output was delivered to the reader.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use agent_proto::command::Code;
use agent_proto::payload::{Exit, GUEST, KillCommand, SignalCommand, WindowSize};
use link::LinkError;
use link::api4244::InputPace;
use link::streams::{Delivery, StreamSpec};
use oci::spec::ConsoleSize;
use plan::INIT_PROCESS;

use super::Guest;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessPhase {
    Starting,
    Running,
    /// The process has exited; its output is on the way.
    Draining(Exit),
}

#[derive(Debug)]
pub struct Process {
    pub container: String,
    /// The name of the process; an init process is called [`INIT_PROCESS`].
    pub name: String,
    pub phase: ProcessPhase,
    /// The process has a terminal: stderr uses the stream of stdout.
    terminal: bool,
    /// Numbers of its streams: stdin and stdout, then stderr.
    streams: Vec<u64>,
    /// Signals that arrived before it ran, and whether each is for every process of the container.
    held: Vec<(i32, bool)>,
    /// Limits the rate of input with API 4244, which has no credit.
    pace: Option<InputPace>,
    /// The process got a signal because nobody reads its output, the only way with API 4244.
    hung_up: bool,
}

impl Process {
    /// Opens the streams of a process that the agent is about to be asked for.
    ///
    /// # Errors
    ///
    /// A descriptor of `streams` cannot be used. Then none of the streams is open.
    pub fn open(
        guest: &mut Guest<'_>,
        container: &str,
        name: &str,
        terminal: bool,
        streams: &[StreamSpec],
    ) -> io::Result<Process> {
        let mut process = Process::new(container, name, terminal);
        for stream in streams {
            if let Err(error) = guest.streams.open(stream) {
                process.close(guest);
                return Err(error);
            }
            process.streams.push(stream.seq);
        }
        Ok(process)
    }

    /// Returns the init process of a container that runs already, whose streams are open.
    pub fn running(container: &str, terminal: bool, streams: Vec<u64>) -> Process {
        let phase = ProcessPhase::Running;
        Process { phase, streams, ..Process::new(container, INIT_PROCESS, terminal) }
    }

    fn new(container: &str, name: &str, terminal: bool) -> Process {
        Process {
            container: container.to_owned(),
            name: name.to_owned(),
            phase: ProcessPhase::Starting,
            terminal,
            streams: Vec::new(),
            held: Vec::new(),
            pace: None,
            hung_up: false,
        }
    }

    /// Number of its first stream.
    pub fn first_stream(&self) -> Option<u64> {
        self.streams.first().copied()
    }

    /// Opens the stream of a connection that the agent is about to be asked for: a process of the guest itself.
    pub fn of_connection(
        guest: &mut Guest<'_>,
        name: &str,
        seq: u64,
        connection: BorrowedFd<'_>,
    ) -> io::Result<Process> {
        guest.streams.open_connection(seq, connection)?;
        Ok(Process { streams: vec![seq], ..Process::new(GUEST, name, false) })
    }

    /// Handles the start of the process: opens its input and sends the signals that have arrived.
    pub fn started(&mut self, guest: &mut Guest<'_>, size: Option<ConsoleSize>) -> Result<(), LinkError> {
        self.phase = ProcessPhase::Running;
        if let Some(seq) = self.streams.first() {
            guest.streams.start(*seq, guest.window());
            self.pace = guest.link.is_api4244().then(|| InputPace::new(*seq));
        }
        if let Some(size) = size {
            self.resize(guest, size)?;
        }
        let held = std::mem::take(&mut self.held);
        held.into_iter().try_for_each(|(signal, all)| self.send_signal(guest, signal, all))
    }

    /// Sends a signal to the process, or with `all` to every process of the container. Keeps it until the process runs.
    pub fn signal(&mut self, guest: &mut Guest<'_>, signal: i32, all: bool) -> Result<(), LinkError> {
        match self.phase {
            ProcessPhase::Starting => self.held.push((signal, all)),
            ProcessPhase::Running => self.send_signal(guest, signal, all)?,
            ProcessPhase::Draining(_) => {}
        }
        Ok(())
    }

    /// Keeps a signal until the process runs.
    pub fn hold(&mut self, signal: i32, all: bool) {
        self.held.push((signal, all));
    }

    fn send_signal(&self, guest: &mut Guest<'_>, signal: i32, all: bool) -> Result<(), LinkError> {
        let container = self.container.clone();
        if self.name == INIT_PROCESS {
            let command = KillCommand { container, signal, all_processes: all };
            return guest.link.notify(Code::KillContainer, "signal the container", &command);
        }
        let command = SignalCommand { container, process: self.name.clone(), signal };
        guest.link.notify(Code::SignalProcess, "signal the process", &command)
    }

    pub fn resize(&self, guest: &mut Guest<'_>, size: ConsoleSize) -> Result<(), LinkError> {
        if !self.terminal || self.phase != ProcessPhase::Running {
            return Ok(());
        }
        let (container, process) = (self.container.clone(), self.name.clone());
        let command = WindowSize { container, process, row: size.height, column: size.width };
        guest.link.notify(Code::WinSize, "resize the terminal", &command)
    }

    /// Does what API 4244 leaves to the host while a process runs: limits the rate of its input, and signals that its
    /// output is not read any more.
    pub fn advance(&mut self, guest: &mut Guest<'_>) -> Result<(), LinkError> {
        if self.phase != ProcessPhase::Running {
            return Ok(());
        }
        if let Some(pace) = &mut self.pace {
            pace.turn(guest.link, guest.streams)?;
        }
        if !self.hung_up && self.streams.iter().any(|seq| guest.streams.is_hung_up(*seq)) {
            self.hung_up = true;
            self.send_signal(guest, libc::SIGPIPE, false)?;
        }
        Ok(())
    }

    pub fn exited(&mut self, exit: Exit) {
        if self.phase == ProcessPhase::Running {
            self.phase = ProcessPhase::Draining(exit);
        }
    }

    /// Whether the process has exited and all of its output was delivered.
    pub fn is_drained(&self, guest: &Guest<'_>) -> bool {
        self.outputs(guest).is_some_and(|mut outputs| outputs.all(|(_, delivery)| delivery == Delivery::Done))
    }

    /// Returns a stream for which the guest has reported more output than has arrived.
    pub fn owed(&self, guest: &Guest<'_>) -> Option<u64> {
        let mut outputs = self.outputs(guest)?;
        outputs.find(|(_, delivery)| *delivery == Delivery::Guest).map(|(seq, _)| seq)
    }

    /// Returns the state of delivery of each stream of a process that has exited. With API 4244 the report has no
    /// counts: the end of the stdio stream comes after all output of both streams.
    fn outputs(&self, guest: &Guest<'_>) -> Option<impl Iterator<Item = (u64, Delivery)>> {
        let ProcessPhase::Draining(exit) = &self.phase else { return None };
        let streams = &guest.streams;
        let counted = !guest.link.is_api4244();
        let ended = self.streams.first().is_none_or(|seq| streams.is_ended(*seq));
        let bytes = [exit.stdout_bytes, exit.stderr_bytes];
        let outputs: Vec<(u64, Delivery)> = self
            .streams
            .iter()
            .zip(bytes)
            .map(|(seq, bytes)| {
                let bytes = if counted { bytes } else { streams.received(*seq) };
                let delivery = match streams.delivery(*seq, bytes) {
                    Delivery::Done if !counted && !ended => Delivery::Guest,
                    delivery => delivery,
                };
                (*seq, delivery)
            })
            .collect();
        Some(outputs.into_iter())
    }

    /// Closes the streams. Returns the first error that kept output from its reader, with the stream's name.
    pub fn close(&mut self, guest: &mut Guest<'_>) -> Option<(&'static str, io::Error)> {
        let mut failed = None;
        for (seq, name) in self.streams.drain(..).zip(["stdout", "stderr"]) {
            failed = failed.or(guest.streams.error(seq).map(|error| (name, error)));
            guest.streams.close(seq);
        }
        failed
    }
}

/// Returns the streams of a process whose ends are a client's descriptors, with numbers from `seq` on.
pub fn client_streams(seq: u64, fds: &[OwnedFd]) -> Vec<StreamSpec> {
    let number = |index: usize| fds.get(index).map(AsRawFd::as_raw_fd);
    let stderr = number(2).map(|fd| StreamSpec { seq: seq + 1, source: None, sink: Some(fd) });
    [StreamSpec { seq, source: number(0), sink: number(1) }].into_iter().chain(stderr).collect()
}
