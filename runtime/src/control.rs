//! The pod's own socket: what other processes ask of a living pod.
//!
//! A message is `u32 length` (big-endian, without itself) and JSON. A client's descriptors come with the first byte of its
//! request. Requests of one connection are answered in order. What the pod has to ask its guest for is accepted at once and
//! answered later, so that a client can tell a guest that takes its time from a pod that does nothing. A connection that had an exec started carries its signals and
//! window sizes afterwards, and ends with its exit code. Who may connect is a question of the directory's mode.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use agent_proto::payload::usage::{ContainerProcesses, ContainerUsage};
use host::sys;
use oci::exec::ProcessChanges;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::deadlines;

/// The largest message, to the pod and from it.
pub const MESSAGE_MAX: usize = 4 << 20;
/// The most descriptors that wait for their request.
const FDS_MAX: usize = sys::FDS_MAX;
/// Bytes taken from a connection at a time.
const READ_SIZE: usize = 16 << 10;
/// The most bytes that wait for a client who does not read.
const OUTGOING_MAX: usize = 2 * MESSAGE_MAX;

/// What went wrong on a connection.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It cannot be used.
    #[error("{step} the pod's socket")]
    Socket {
        /// Read or write.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A message is too large.
    #[error("a message of {0} bytes on the pod's socket")]
    TooLong(usize),
    /// A message makes no sense.
    #[error("parse a message on the pod's socket")]
    Parse(#[source] serde_json::Error),
    /// There are more descriptors than any request has.
    #[error("more than {FDS_MAX} descriptors on the pod's socket")]
    Descriptors,
    /// The pod has ended.
    #[error("the pod ended before it answered")]
    Ended,
    /// The pod is there and does not answer.
    #[error("{command} {pod}: no answer from its machine within {} s", after.as_secs())]
    Silent {
        /// What was asked.
        command: &'static str,
        /// Whom.
        pod: String,
        /// How long it had.
        after: Duration,
    },
    /// The client does not read.
    #[error("a client of the pod's socket does not read its answers")]
    Stalled,
}

/// This module's result.
pub type Result<T, E = ControlError> = std::result::Result<T, E>;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// The start of a container that waits for it.
    Start {
        /// Which.
        container: String,
    },
    /// To be told when a container will not run again.
    Wait {
        /// Which.
        container: String,
    },
    /// A further process over the descriptors that come along: stdin, stdout, and without a terminal stderr.
    Exec(Box<ExecRequest>),
    /// A signal for the connection's process.
    Signal(i32),
    /// Another size for its terminal: rows and columns.
    Resize(u16, u16),
    /// A signal for a container's first process, or for all.
    Kill {
        /// Which; every one where it is empty.
        container: String,
        /// Number.
        signal: i32,
        /// All its processes.
        all: bool,
    },
    /// The pod's end: each container's stop signal, and SIGKILL after `grace` seconds.
    Stop {
        /// Seconds.
        grace: u64,
    },
    /// A further container.
    Add {
        /// What its paths are relative to, absolute.
        base: String,
        /// As in a podfile.
        container: serde_json::Value,
    },
    /// A container less.
    Remove {
        /// Which.
        container: String,
        /// Killed if it runs.
        force: bool,
    },
    /// What containers use.
    Stats,
    /// Their processes.
    Processes,
    /// They stop where they are, or go on.
    Pause {
        /// Which; every one where it is empty.
        container: String,
        /// They stop.
        paused: bool,
    },
    /// Other limits for a container in the guest.
    Update {
        /// Which.
        container: String,
        /// Files of its cgroup and what is written to them.
        files: BTreeMap<String, String>,
    },
}

impl Request {
    /// The command that asks it.
    pub fn command(&self) -> &'static str {
        match self {
            Request::Start { .. } => "start",
            Request::Wait { .. } => "wait for",
            Request::Exec(_) => "exec in",
            Request::Signal(_) | Request::Kill { .. } => "kill",
            Request::Resize(..) => "resize",
            Request::Stop { .. } => "stop",
            Request::Add { .. } => "add to",
            Request::Remove { .. } => "remove from",
            Request::Stats => "stats of",
            Request::Processes => "processes of",
            Request::Pause { paused: true, .. } => "pause",
            Request::Pause { .. } => "resume",
            Request::Update { .. } => "update",
        }
    }

    /// Whether it is answered, and in a time that the guest alone decides.
    pub fn is_answered(&self) -> bool {
        !matches!(self, Request::Wait { .. } | Request::Signal(_) | Request::Resize(..))
    }

    /// Whether it may change what the pod is.
    pub fn is_change(&self) -> bool {
        !matches!(
            self,
            Request::Wait { .. }
                | Request::Signal(_)
                | Request::Resize(..)
                | Request::Stats
                | Request::Processes
        )
    }

    /// How long its answer may take once it is accepted, where the guest has `patience` for what it is asked. A process that
    /// is started in a paused container waits for whoever lets that go on.
    fn answer_within(&self, patience: Duration) -> Option<Duration> {
        match self {
            Request::Exec(exec) if exec.ignore_paused => None,
            _ => Some(patience + deadlines::ANSWER),
        }
    }
}

/// An exec process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ExecRequest {
    /// In which container.
    pub container: String,
    /// What it has other than the container's init process.
    pub changes: ProcessChanges,
    /// User and group by name or number, which the guest looks up; those of `changes` if it is empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// It has a terminal.
    pub terminal: bool,
    /// The terminal's rows and columns.
    pub size: Option<(u16, u16)>,
    /// A whole process object as in config.json, in place of `changes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<serde_json::Value>,
    /// An engine asks: that the program cannot be executed is told in the words that engines know.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub for_engine: bool,
    /// A paused container is no reason to refuse it: it starts when the container goes on.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ignore_paused: bool,
    /// Its cgroup below the container's; the container's own where it is empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cgroup: String,
}

/// What a pod answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Reply {
    /// The guest was asked, or is about to be; the answer follows.
    Accepted,
    /// It was done.
    Done,
    /// The connection's process runs.
    Started,
    /// The connection's process, or the container that was waited for, has ended with this code.
    Exited(u8),
    /// What containers use.
    Stats(Vec<ContainerUsage>),
    /// Their processes.
    Processes(Vec<ContainerProcesses>),
    /// It was not done.
    Failed {
        /// The exit code that stands for it.
        code: u8,
        /// Why.
        message: String,
    },
}

/// One end of a connection.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    /// Who is at the other end, for a client.
    pod: String,
    /// How long its guest may take for what it is asked.
    patience: Duration,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Connection {
    /// Takes a connection, for a pod.
    pub fn new(socket: UnixStream) -> Result<Connection> {
        Connection::to("", deadlines::AGENT, socket)
    }

    /// Takes a client's connection to `pod`, whose guest may take `patience` for what it is asked.
    pub fn to(pod: &str, patience: Duration, socket: UnixStream) -> Result<Connection> {
        socket.set_nonblocking(true).map_err(failed("open"))?;
        Ok(Connection {
            socket,
            pod: pod.to_owned(),
            patience,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            fds: Vec::new(),
        })
    }

    /// The descriptor to wait for.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What it is to be polled for.
    pub fn interest(&self) -> i16 {
        if self.outgoing.is_empty() { libc::POLLIN } else { libc::POLLIN | libc::POLLOUT }
    }

    /// Takes what has come, one read of it. Returns false at the other side's end.
    pub fn receive(&mut self) -> Result<bool> {
        let mut buffer = [0; READ_SIZE];
        match sys::receive_with_fds(self.socket.as_fd(), &mut buffer, &mut self.fds) {
            Ok(0) => return Ok(false),
            Ok(count) => self.incoming.extend_from_slice(&buffer[..count]),
            Err(error) if is_passing(&error) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
            Err(source) => return Err(failed("read")(source)),
        }
        if self.fds.len() > FDS_MAX { Err(ControlError::Descriptors) } else { Ok(true) }
    }

    /// Takes the next whole message and the descriptors that have come.
    pub fn take<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Vec<OwnedFd>)>> {
        let Some(header) = self.incoming.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*header) as usize;
        if length > MESSAGE_MAX {
            return Err(ControlError::TooLong(length));
        }
        let Some(message) = self.incoming.get(4..4 + length) else { return Ok(None) };
        let parsed = serde_json::from_slice(message).map_err(ControlError::Parse);
        self.incoming.drain(..4 + length);
        Ok(Some((parsed?, std::mem::take(&mut self.fds))))
    }

    /// Queues a message; [`flush`](Self::flush) writes it.
    pub fn send(&mut self, message: &impl Serialize) -> Result<()> {
        let text = serde_json::to_vec(message).map_err(ControlError::Parse)?;
        if text.len() > MESSAGE_MAX {
            return Err(ControlError::TooLong(text.len()));
        }
        if self.outgoing.len() + text.len() > OUTGOING_MAX {
            return Err(ControlError::Stalled);
        }
        self.outgoing.extend_from_slice(&(text.len() as u32).to_be_bytes());
        self.outgoing.extend_from_slice(&text);
        Ok(())
    }

    /// Writes what is queued, as far as the socket takes it.
    pub fn flush(&mut self) -> Result<()> {
        self.flush_with(&[])
    }

    /// Whether anything is queued.
    pub fn is_flushed(&self) -> bool {
        self.outgoing.is_empty()
    }

    fn flush_with(&mut self, mut fds: &[BorrowedFd<'_>]) -> Result<()> {
        while !self.outgoing.is_empty() {
            match sys::send_with_fds(self.socket.as_fd(), &self.outgoing, fds) {
                Ok(count) => {
                    self.outgoing.drain(..count);
                    fds = &[];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(source) => return Err(failed("write")(source)),
            }
        }
        Ok(())
    }

    /// Whether a part of a message has come that is not whole.
    pub fn is_amid(&self) -> bool {
        !self.incoming.is_empty()
    }

    /// A client's whole question: sends `request` with `fds` and waits for the answer, no longer than it may take.
    pub fn ask(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Reply> {
        let answer = self.soon();
        self.send(request)?;
        match self.flush_within(request.command(), fds, answer) {
            // Whoever is turned away is told so before its request is read.
            Err(ControlError::Socket { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {}
            other => other?,
        }
        match self.wait(request.command(), Some(answer))? {
            Reply::Accepted => self.wait(request.command(), request.answer_within(self.patience)),
            reply => Ok(reply),
        }
    }

    /// Sends requests whose answers are looked at by and by.
    pub fn tell(&mut self, requests: &[Request]) -> Result<()> {
        requests.iter().try_for_each(|request| self.send(request))?;
        let command = requests.first().map_or("ask", Request::command);
        self.flush_within(command, &[], self.soon())
    }

    /// How long a pod that lives may take to say something.
    fn soon(&self) -> Duration {
        deadlines::ANSWER.min(self.patience)
    }

    fn flush_within(
        &mut self,
        command: &'static str,
        mut fds: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> Result<()> {
        let until = Instant::now() + patience;
        loop {
            let before = self.outgoing.len();
            self.flush_with(fds)?;
            if self.outgoing.is_empty() {
                return Ok(());
            }
            if self.outgoing.len() < before {
                // They went with the first byte.
                fds = &[];
            }
            if !self.poll(libc::POLLOUT, Some(until))? {
                return Err(self.silent(command, patience));
            }
        }
    }

    /// Waits for the next answer, no longer than `patience`.
    fn wait(&mut self, command: &'static str, patience: Option<Duration>) -> Result<Reply> {
        let until = patience.map(|patience| Instant::now() + patience);
        loop {
            if let Some((reply, _)) = self.take()? {
                return Ok(reply);
            }
            if !self.poll(libc::POLLIN, until)? {
                return Err(self.silent(command, patience.unwrap_or_default()));
            }
            if !self.receive()? {
                return Err(ControlError::Ended);
            }
        }
    }

    /// Waits until the pod has closed the connection, as it does with its end, no longer than `patience`.
    pub fn wait_for_end(&mut self, command: &'static str, patience: Duration) -> Result<()> {
        let until = Instant::now() + patience;
        while self.poll(libc::POLLIN, Some(until))? {
            if !self.receive()? {
                return Ok(());
            }
            while self.take::<serde_json::Value>()?.is_some() {}
        }
        Err(self.silent(command, patience))
    }

    /// Waits for the socket; returns false if it is not ready by `until`.
    fn poll(&self, events: i16, until: Option<Instant>) -> Result<bool> {
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let [ready] = sys::poll([(self.fd(), events)], left).map_err(failed("wait for"))?;
            // A signal that came first is no end of the wait.
            if ready || until.is_some_and(|until| until <= Instant::now()) {
                return Ok(ready);
            }
        }
    }

    fn silent(&self, command: &'static str, after: Duration) -> ControlError {
        ControlError::Silent { command, pod: self.pod.clone(), after }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

fn failed(step: &'static str) -> impl FnOnce(io::Error) -> ControlError {
    move |source| ControlError::Socket { step, source }
}

#[cfg(test)]
mod tests;
