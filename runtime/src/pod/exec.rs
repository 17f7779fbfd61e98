//! A further process of a container, on behalf of a client that waits for it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use agent_proto::command::Code;
use agent_proto::payload::{Container, ExecCommand, Exit, Process, SignalCommand, WindowSize};
use link::streams::{Delivery, StreamSpec};
use link::{CommandId, LinkError};

use super::member::StartError;
use super::plan::{further_process, whole_process};
use super::{Asker, Guest};
use crate::control::ExecRequest;

/// Where a process stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The agent was asked to start it.
    Starting,
    /// It runs.
    Running,
    /// It has ended; its output is on the way.
    Draining(Exit),
}

/// A process.
#[derive(Debug)]
pub struct Exec {
    /// Who waits for it; nobody any more where the client is gone.
    pub client: Option<Asker>,
    /// Its container.
    pub container: String,
    /// Its name.
    pub process: String,
    /// Where it stands.
    pub phase: Phase,
    /// Its program, where whoever asked for it is to hear of it in an engine's words.
    pub program: Option<String>,
    /// Signals that came before it ran.
    held: Vec<i32>,
    streams: Vec<u64>,
}

impl Exec {
    /// Asks the agent to start `process` of `container`, with streams from number `seq` on over the client's descriptors.
    pub fn start(
        guest: &mut Guest<'_>,
        client: Asker,
        container: &str,
        mut process: Process,
        (seq, fds): (u64, &[OwnedFd]),
    ) -> Result<(Exec, CommandId), StartError> {
        let number = |index: usize| fds.get(index).map(AsRawFd::as_raw_fd);
        let mut specs = vec![StreamSpec { seq, source: number(0), sink: number(1) }];
        (process.stdio, process.stderr) = (seq, 0);
        if !process.terminal {
            process.stderr = seq + 1;
            specs.push(StreamSpec { seq: seq + 1, source: None, sink: number(2) });
        }
        let (name, container) = (process.id.clone(), container.to_owned());
        let mut exec = Exec {
            client: Some(client),
            container: container.clone(),
            process: name,
            phase: Phase::Starting,
            program: None,
            held: Vec::new(),
            streams: Vec::new(),
        };
        for spec in &specs {
            if let Err(error) = guest.streams.open(spec) {
                exec.close(guest);
                return Err(error.into());
            }
            exec.streams.push(spec.seq);
        }
        let command = guest.link.send(Code::ExecCmd, "exec", &ExecCommand { container, process })?;
        Ok((exec, command))
    }

    /// It runs: it gets its input, and the signals that have come for it.
    pub fn began(&mut self, guest: &mut Guest<'_>) -> Result<(), LinkError> {
        self.phase = Phase::Running;
        if let Some(seq) = self.streams.first() {
            guest.streams.start(*seq, guest.window());
        }
        std::mem::take(&mut self.held).into_iter().try_for_each(|signal| self.signal(guest, signal))
    }

    /// Sends it a signal.
    pub fn signal(&mut self, guest: &mut Guest<'_>, signal: i32) -> Result<(), LinkError> {
        match self.phase {
            Phase::Starting => self.held.push(signal),
            Phase::Running => {
                let (container, process) = (self.container.clone(), self.process.clone());
                let command = SignalCommand { container, process, signal };
                guest.link.notify(Code::SignalProcess, "signal the process", &command)?;
            }
            Phase::Draining(_) => {}
        }
        Ok(())
    }

    /// Gives its terminal another size.
    pub fn resize(&self, guest: &mut Guest<'_>, row: u16, column: u16) -> Result<(), LinkError> {
        let (container, process) = (self.container.clone(), self.process.clone());
        let command = WindowSize { container, process, row, column };
        guest.link.notify(Code::WinSize, "resize the terminal", &command)
    }

    /// Whoever waited for it is gone: so is what it was for.
    pub fn abandon(&mut self, guest: &mut Guest<'_>) -> Result<(), LinkError> {
        self.client = None;
        self.signal(guest, libc::SIGKILL)
    }

    /// Whether its output is with the client, or wanted by nobody.
    pub fn is_delivered(&self, guest: &Guest<'_>) -> bool {
        let Phase::Draining(exit) = &self.phase else { return false };
        let mut open = self.streams.iter().zip([exit.stdout_bytes, exit.stderr_bytes]);
        self.client.is_none()
            || open.all(|(seq, bytes)| guest.streams.delivery(*seq, bytes) == Delivery::Done)
    }

    /// Returns the stream of which the guest owes output that it says it has sent.
    pub fn owed(&self, guest: &Guest<'_>) -> Option<u64> {
        let Phase::Draining(exit) = &self.phase else { return None };
        let mut open = self.streams.iter().zip([exit.stdout_bytes, exit.stderr_bytes]);
        open.find(|(seq, bytes)| guest.streams.delivery(**seq, *bytes) == Delivery::Guest)
            .map(|(seq, _)| *seq)
    }

    /// Whether it keeps `container` there, whose first process may have ended.
    pub fn keeps(&self, container: &str) -> bool {
        self.container == container && !matches!(self.phase, Phase::Draining(_))
    }

    /// Lets go of its streams; returns what kept output from the client.
    pub fn close(&mut self, guest: &mut Guest<'_>) -> Option<(&'static str, io::Error)> {
        let mut failed = None;
        for (seq, name) in self.streams.drain(..).zip(["stdout", "stderr"]) {
            failed = failed.or(guest.streams.error(seq).map(|error| (name, error)));
            guest.streams.close(seq);
        }
        failed
    }
}

/// Returns what an exec asks for, in its container's environment.
pub fn wanted(container: &Container, name: &str, request: &ExecRequest) -> Result<Process, String> {
    let mut process = match &request.process {
        Some(whole) => whole_process(container, name, whole)?,
        None => further_process(container, name, request.args.clone(), &request.envs),
    };
    process.terminal = request.terminal;
    if let Some((rows, columns)) = request.size {
        (process.rows, process.columns) = (rows, columns);
    }
    if !request.workdir.is_empty() {
        process.workdir.clone_from(&request.workdir);
    }
    if !request.cgroup.is_empty() {
        process.oci.get_or_insert_default().cgroup.clone_from(&request.cgroup);
    }
    if let Some((user, group)) = split_user(&request.user) {
        (process.user, process.group) = (user.to_owned(), group.to_owned());
        process.additional_groups.clear();
    }
    Ok(process)
}

/// `user` or `user:group`.
fn split_user(text: &str) -> Option<(&str, &str)> {
    (!text.is_empty()).then(|| text.split_once(':').unwrap_or((text, "")))
}
