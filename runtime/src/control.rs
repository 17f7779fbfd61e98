//! The pod's socket, on which other processes send requests to a living pod.
//!
//! A message is `u32 length` (big-endian, without itself) and JSON. A client's descriptors arrive with the first byte
//! of its request. Requests of one connection are answered in order. If the pod must ask its guest, it accepts the
//! request at once and answers later, so that a client can tell a slow guest from a stopped pod. A connection that
//! started an exec process then carries signals and window sizes for it, and ends with its exit code. The mode of the
//! pod's directory decides who can connect.

use host::HostError;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use agent_proto::payload::Container;
use agent_proto::payload::usage::{ContainerProcesses, ContainerUsage};
use host::sys;
use oci::exec::ProcessChanges;
use plan::ShareBind;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::deadlines;

/// Maximum size of a message, in both directions.
pub const MESSAGE_MAX: usize = 4 << 20;
/// Maximum number of descriptors that wait for their request.
const FDS_MAX: usize = sys::FDS_MAX;
/// Maximum number of bytes per read from a connection.
const READ_SIZE: usize = 16 << 10;
/// Maximum number of unsent bytes for a client that does not read.
const OUTGOING_MAX: usize = 2 * MESSAGE_MAX;

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("message of {0} bytes on the pod's socket is too large")]
    TooLong(usize),
    #[error("parse a message on the pod's socket")]
    Parse(#[source] serde_json::Error),
    #[error("more than {FDS_MAX} descriptors on the pod's socket")]
    Descriptors,
    #[error("the pod ended before it answered")]
    Ended,
    #[error("{command} {pod}: no answer from its machine within {} s", after.as_secs())]
    Silent { command: &'static str, pod: String, after: Duration },
    #[error("a client of the pod's socket does not read its answers")]
    Stalled,
}

pub type Result<T, E = ControlError> = std::result::Result<T, E>;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// Start a container that was created.
    Start {
        container: String,
    },
    /// Answer when a container has ended and will not be restarted.
    Wait {
        container: String,
    },
    /// Start an exec process with the descriptors of the message: stdin, stdout, and without a terminal stderr.
    Exec(Box<ExecRequest>),
    /// Send a signal to the connection's exec process.
    Signal(i32),
    /// Resize its terminal: rows and columns.
    Resize(u16, u16),
    /// Send a signal to a container's init process, or to all of its processes. An empty name means every container.
    Kill {
        container: String,
        signal: i32,
        all: bool,
    },
    /// Stop the pod: each container gets its stop signal, and SIGKILL after `grace` seconds.
    Stop {
        grace: u64,
    },
    /// Add a container as in a podfile. Its paths are relative to `base`, which is absolute.
    Add {
        base: String,
        container: serde_json::Value,
    },
    /// Add a container that the sender represents on the host, and that a client starts. The descriptors are its standard
    /// streams as for an exec, and then the files of its binds. The connection carries signals and window sizes for it,
    /// and ends with its exit code.
    Join(Box<JoinRequest>),
    /// Remove a container, with `force` even if it runs.
    Remove {
        container: String,
        force: bool,
    },
    Stats,
    Processes,
    /// Pause, or else resume. An empty name means every container.
    Pause {
        container: String,
        paused: bool,
    },
    /// Update a container's limits in the guest: the files of its cgroup, and the values to write.
    Update {
        container: String,
        files: BTreeMap<String, String>,
    },
    /// Save the machine of a container, and end the container unless `leave_running`. The descriptors are the files of memory
    /// and state, and /proc/PID/pagemap of the pod's process if the client can open it. `label` describes program and host.
    Checkpoint {
        container: String,
        label: String,
        leave_running: bool,
    },
    /// The checkpoint that the connection asked for is on the disk, so that the container can end.
    Confirm,
}

impl Request {
    /// Returns the command's name for error messages.
    pub fn command(&self) -> &'static str {
        match self {
            Request::Start { .. } => "start",
            Request::Wait { .. } => "wait for",
            Request::Exec(_) => "exec in",
            Request::Signal(_) | Request::Kill { .. } => "kill",
            Request::Resize(..) => "resize",
            Request::Stop { .. } => "stop",
            Request::Add { .. } => "add to",
            Request::Join(_) => "join",
            Request::Remove { .. } => "remove from",
            Request::Stats => "stats of",
            Request::Processes => "processes of",
            Request::Pause { paused: true, .. } => "pause",
            Request::Pause { .. } => "resume",
            Request::Update { .. } => "update",
            Request::Checkpoint { .. } | Request::Confirm => "checkpoint",
        }
    }

    /// The container that the request names.
    pub fn container_mut(&mut self) -> Option<&mut String> {
        match self {
            Request::Start { container }
            | Request::Wait { container }
            | Request::Kill { container, .. }
            | Request::Remove { container, .. }
            | Request::Pause { container, .. }
            | Request::Update { container, .. }
            | Request::Checkpoint { container, .. } => Some(container),
            Request::Exec(exec) => Some(&mut exec.container),
            _ => None,
        }
    }

    /// Whether the request gets an answer, and only the guest decides when.
    pub fn is_answered(&self) -> bool {
        !matches!(self, Request::Wait { .. } | Request::Signal(_) | Request::Resize(..) | Request::Confirm)
    }

    /// Whether the request may change the pod's state.
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

    /// Returns the maximum time for the answer after the request was accepted. `patience` is the guest's time limit, which is
    /// longer if the host is busy.
    /// There is none for an exec process in a paused container, which starts when the container is resumed.
    fn answer_within(&self, patience: Duration) -> Option<Duration> {
        match self {
            Request::Exec(exec) if exec.ignore_paused => None,
            // The memory may be large, and the disk slow.
            Request::Checkpoint { .. } => None,
            _ => Some(patience * deadlines::STARVED + deadlines::ANSWER),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ExecRequest {
    pub container: String,
    /// Changes to the process of the container's init process.
    pub changes: ProcessChanges,
    /// User and group by name or number, which the guest looks up. If empty, those of `changes` apply.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    pub terminal: bool,
    /// The terminal's rows and columns.
    pub size: Option<(u16, u16)>,
    /// A whole process object as in config.json, instead of `changes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<serde_json::Value>,
    /// The client is an engine: errors of execution have runc's texts.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub for_engine: bool,
    /// Accept the request although the container is paused. The process starts when the container is resumed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ignore_paused: bool,
    /// Path of its cgroup relative to the container's; empty for the container's own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cgroup: String,
}

/// A container that joins the machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JoinRequest {
    pub container: Container,
    pub binds: Vec<ShareBind>,
    /// The init process as in config.json, the base of exec processes.
    pub process: serde_json::Value,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Reply {
    /// The request was accepted and the guest will be asked; another answer follows.
    Accepted,
    Done,
    /// The connection's exec process runs.
    Started,
    /// The connection's exec process or container, or the awaited container, has ended with this code.
    Exited(u8),
    /// The guest's kernel has killed a process of the connection's container for its memory limit.
    OomKill,
    Stats(Vec<ContainerUsage>),
    Processes(Vec<ContainerProcesses>),
    /// The request was refused or failed. `code` is the exit code for the command.
    Failed {
        code: u8,
        message: String,
    },
}

#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    /// Name of the pod at the other end, for a client.
    pod: String,
    /// Maximum time for the guest to answer.
    patience: Duration,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Connection {
    /// Wraps a pod's end of a connection.
    pub fn new(socket: UnixStream) -> Result<Connection> {
        Connection::to("", deadlines::AGENT, socket)
    }

    /// Wraps a client's connection to `pod`. `patience` is the maximum time for its guest to answer.
    pub fn to(pod: &str, patience: Duration, socket: UnixStream) -> Result<Connection> {
        socket.set_nonblocking(true).map_err(HostError::step("open the pod's socket"))?;
        Ok(Connection {
            socket,
            pod: pod.to_owned(),
            patience,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            fds: Vec::new(),
        })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Returns the poll events to wait for.
    pub fn interest(&self) -> i16 {
        if self.outgoing.is_empty() { libc::POLLIN } else { libc::POLLIN | libc::POLLOUT }
    }

    /// Reads once from the socket. Returns false at end of file.
    pub fn receive(&mut self) -> Result<bool> {
        let mut buffer = [0; READ_SIZE];
        match sys::receive_with_fds(self.socket.as_fd(), &mut buffer, &mut self.fds) {
            Ok(0) => return Ok(false),
            Ok(count) => self.incoming.extend_from_slice(&buffer[..count]),
            Err(error) if is_passing(&error) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
            Err(error) => return Err(HostError::step("read the pod's socket")(error).into()),
        }
        if self.fds.len() > FDS_MAX { Err(ControlError::Descriptors) } else { Ok(true) }
    }

    /// Returns the next complete message with the descriptors that have arrived.
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

    /// Queues a message, which [`flush`](Self::flush) writes.
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

    /// Writes queued bytes, as far as the socket accepts them.
    pub fn flush(&mut self) -> Result<()> {
        self.flush_with(&[])
    }

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
                Err(error) => return Err(HostError::step("write the pod's socket")(error).into()),
            }
        }
        Ok(())
    }

    /// Whether a part of an incomplete message has arrived.
    pub fn is_amid(&self) -> bool {
        !self.incoming.is_empty()
    }

    /// Sends `request` with `fds` and waits for the answer, for a limited time.
    pub fn ask(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Reply> {
        let answer = self.soon();
        self.send(request)?;
        match self.flush_within(request.command(), fds, answer) {
            // A pod that refuses a client answers before it reads the request.
            Err(ControlError::Host(error)) if error.source.kind() == io::ErrorKind::BrokenPipe => {}
            other => other?,
        }
        match self.wait(request.command(), Some(answer))? {
            Reply::Accepted => self.wait(request.command(), request.answer_within(self.patience)),
            reply => Ok(reply),
        }
    }

    /// Sends requests whose answers are read later.
    pub fn tell(&mut self, requests: &[Request]) -> Result<()> {
        requests.iter().try_for_each(|request| self.send(request))?;
        let command = requests.first().map_or("ask", Request::command);
        self.flush_within(command, &[], self.soon())
    }

    /// Maximum time for a living pod to accept a request.
    fn soon(&self) -> Duration {
        deadlines::ANSWER.min(self.patience)
    }

    fn flush_within(
        &mut self,
        command: &'static str,
        mut fds: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> Result<()> {
        self.repeat(command, libc::POLLOUT, Some(patience), |it| {
            let before = it.outgoing.len();
            it.flush_with(fds)?;
            if it.outgoing.len() < before {
                // The descriptors were sent with the first byte.
                fds = &[];
            }
            Ok(it.outgoing.is_empty().then_some(()))
        })
    }

    /// Waits for the next answer, at most for `patience`.
    fn wait(&mut self, command: &'static str, patience: Option<Duration>) -> Result<Reply> {
        self.repeat(command, libc::POLLIN, patience, |it| {
            if let Some((reply, _)) = it.take()? {
                return Ok(Some(reply));
            }
            let open = it.receive()?;
            let reply = it.take()?.map(|(reply, _)| reply);
            if open || reply.is_some() { Ok(reply) } else { Err(ControlError::Ended) }
        })
    }

    /// Waits at most for `patience` until the pod has closed the connection, which it does at its end.
    pub fn wait_for_end(&mut self, command: &'static str, patience: Duration) -> Result<()> {
        self.repeat(command, libc::POLLIN, Some(patience), |it| {
            let open = it.receive()?;
            while it.take::<serde_json::Value>()?.is_some() {}
            Ok((!open).then_some(()))
        })
    }

    /// Calls `attempt` until it succeeds, and waits for `events` of the socket in between, at most for `patience`.
    fn repeat<T>(
        &mut self,
        command: &'static str,
        events: i16,
        patience: Option<Duration>,
        mut attempt: impl FnMut(&mut Connection) -> Result<Option<T>>,
    ) -> Result<T> {
        let until = patience.map(|patience| Instant::now() + patience);
        loop {
            if let Some(result) = attempt(self)? {
                return Ok(result);
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let waited = sys::poll([(self.fd(), events)], left);
            let [ready] = waited.map_err(HostError::step("wait for the pod's socket"))?;
            // A signal does not end the wait.
            if !ready && until.is_some_and(|until| until <= Instant::now()) {
                let (pod, after) = (self.pod.clone(), patience.unwrap_or_default());
                return Err(ControlError::Silent { command, pod, after });
            }
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests;
