//! The agent's record of a process: start, streams, exit.

pub mod child;
pub mod credentials;
pub mod limits;
pub mod program;
pub mod report;
pub mod user;

use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

use agent_proto::command::{Code, STREAM_WINDOW};
use agent_proto::payload::{self, Exit};
use agent_proto::stream::Credit;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitStatus};
use rustix::termios::Winsize;

use crate::error::{Error, Step};
use crate::process::child::Stdio;
use crate::pty;
use crate::streams::{Inbound, Output, Stdin};
use crate::sys;

/// The outstanding reply to a command that starts a process.
#[derive(Debug)]
pub struct Pending {
    /// Message id of the command.
    pub id: u32,
    /// Code of the command.
    pub command: u32,
    /// Socket on which the child reports its set-up. `None` after its last message.
    pub report: Option<OwnedFd>,
    /// Why the program does not run.
    pub error: Option<Error>,
}

/// A process and its streams.
#[derive(Debug)]
pub struct Process {
    /// The container's name.
    pub container: String,
    /// The process's name.
    pub id: String,
    /// PID in the agent's namespace.
    pub pid: Pid,
    /// The pidfd. `None` after the process has been reaped.
    pub pidfd: Option<OwnedFd>,
    /// Set until the program runs or could not be started.
    pub pending: Option<Pending>,
    /// Whether this is the container's init process.
    pub is_init: bool,
    /// The child has sent a report.
    pub reported: bool,
    /// The start was answered with an error, so no exit is reported.
    pub failed: bool,
    /// Exit status.
    pub status: Option<WaitStatus>,
    /// Standard input.
    pub stdin: Option<Stdin>,
    /// Standard output, or the terminal's output.
    pub stdout: Option<Output>,
    /// Standard error.
    pub stderr: Option<Output>,
    /// Sequence numbers of the process's streams.
    pub seqs: (u64, u64),
    /// Master of the terminal.
    terminal: Option<Rc<OwnedFd>>,
    /// Window size that was received before the terminal was open.
    size: Option<Winsize>,
    wants_terminal: bool,
    /// Input that was received before the terminal was open.
    early: Vec<u8>,
    early_end: bool,
    /// Position in the stream channel after which all output has been sent. Set when all output has been queued.
    pub drained_at: Option<u64>,
}

impl Process {
    /// Returns a process that has just been forked.
    pub fn new(
        container: &str,
        spec: &payload::Process,
        pid: Pid,
        pidfd: OwnedFd,
        pending: Pending,
    ) -> Process {
        Process {
            container: container.into(),
            id: spec.id.clone(),
            pid,
            pidfd: Some(pidfd),
            is_init: ![Code::ExecCmd, Code::Connect].map(|code| code as u32).contains(&pending.command),
            pending: Some(pending),
            reported: false,
            failed: false,
            status: None,
            stdin: None,
            stdout: None,
            stderr: None,
            seqs: (spec.stdio, spec.stderr),
            terminal: None,
            size: None,
            wants_terminal: spec.terminal,
            early: Vec::new(),
            early_end: false,
            drained_at: None,
        }
    }

    /// Sets the agent's ends of the process's pipes.
    pub fn set_pipes(&mut self, pipes: Pipes) {
        self.stdin = pipes.stdin.map(|fd| Stdin::new(self.seqs.0, Rc::new(fd), false));
        self.stdout = pipes.stdout.map(|fd| Output::new(self.seqs.0, Rc::new(fd)));
        self.stderr = pipes.stderr.map(|fd| Output::new(self.seqs.1, Rc::new(fd)));
    }

    /// Sets the terminal's master, which the child has opened.
    pub fn set_terminal(&mut self, master: OwnedFd) -> Result<Rc<OwnedFd>, Error> {
        set_nonblocking(&master)?;
        let master = Rc::new(master);
        if let Some(size) = self.size.take() {
            rustix::termios::tcsetwinsize(master.as_ref(), size).step("set size of", "terminal")?;
        }
        let mut stdin = Stdin::new(self.seqs.0, master.clone(), true);
        stdin.push(&core::mem::take(&mut self.early));
        if self.early_end {
            stdin.end();
        }
        self.stdin = Some(stdin);
        self.stdout = Some(Output::new(self.seqs.0, master.clone()));
        self.terminal = Some(master.clone());
        Ok(master)
    }

    /// Records why the program does not run.
    pub fn fail(&mut self, error: Error) {
        if let Some(pending) = &mut self.pending {
            pending.error = Some(error);
        }
    }

    /// Records that the child sends no more reports.
    pub fn close_report(&mut self) {
        if let Some(pending) = &mut self.pending {
            pending.report = None;
        }
    }

    /// Sets the size of the terminal.
    pub fn resize(&mut self, rows: u16, columns: u16) -> Result<(), Error> {
        let size = pty::winsize(rows, columns);
        match &self.terminal {
            Some(master) => {
                rustix::termios::tcsetwinsize(master.as_ref(), size).step("set size of", "terminal")
            }
            None if self.wants_terminal => {
                self.size = Some(size);
                Ok(())
            }
            None => Err(Error::bad_request("the process has no terminal")),
        }
    }

    /// Accepts input or its end.
    pub fn input(&mut self, inbound: Inbound<'_>) {
        match (&mut self.stdin, inbound) {
            (Some(stdin), Inbound::Data(_, data)) => stdin.push(data),
            (Some(stdin), Inbound::End(_)) => stdin.end(),
            (None, Inbound::Data(_, data)) => self.early.extend_from_slice(data),
            (None, Inbound::End(_)) => self.early_end = true,
            (_, Inbound::Credit(_)) => {}
        }
    }

    /// Whether no more input may be accepted now.
    pub fn is_full(&self) -> bool {
        self.early.len() > STREAM_WINDOW as usize || self.stdin.as_ref().is_some_and(Stdin::is_full)
    }

    /// Whether `seq` is one of the process's streams.
    pub fn has_seq(&self, seq: u64) -> bool {
        seq != 0 && (self.seqs.0 == seq || self.seqs.1 == seq)
    }

    /// Returns the output stream `seq`.
    pub fn output(&mut self, seq: u64) -> Option<&mut Output> {
        [&mut self.stdout, &mut self.stderr].into_iter().flatten().find(|output| output.seq == seq)
    }

    /// Accepts credit for an output. Credit of 0 bytes means that the host's client has stopped reading. The agent then
    /// closes the output: the process's next write fails, or its terminal hangs up.
    pub fn credit(&mut self, credit: Credit) {
        let Some(output) = self.output(credit.seq) else { return };
        if credit.bytes > 0 {
            output.add_credit(credit.bytes);
            return;
        }
        output.close();
        if self.terminal.take().is_some() {
            self.stdin = None;
        }
    }

    /// Whether all output has been read.
    pub fn is_drained(&self) -> bool {
        [&self.stdout, &self.stderr].into_iter().flatten().all(|output| !output.is_open())
    }

    /// Sends the process a signal.
    pub fn signal(&self, signal: rustix::process::Signal) -> rustix::io::Result<()> {
        let pidfd = self.pidfd.as_ref().ok_or(Errno::SRCH)?;
        rustix::process::pidfd_send_signal(pidfd, signal)
    }

    /// Sends a signal to the process's group, or only to the process if it does not have its own group yet.
    pub fn signal_group(&self, signal: rustix::process::Signal) -> rustix::io::Result<()> {
        if self.pidfd.is_none() {
            return Err(Errno::SRCH);
        }
        match rustix::process::kill_process_group(self.pid, signal) {
            Err(Errno::SRCH) => self.signal(signal),
            other => other,
        }
    }

    /// Returns the pidfd. `None` after the process has been reaped.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// Returns how the process exited, and API 4244's exit code, which is 0 after a signal.
    pub fn exit(&self) -> (Exit, i32) {
        let bytes = |output: &Option<Output>| output.as_ref().map_or(0, |output| output.bytes);
        let status = self.status.as_ref();
        let code = status.and_then(|status| status.exit_status());
        let exit = Exit {
            code,
            signal: status.and_then(|status| status.terminating_signal()),
            stdout_bytes: bytes(&self.stdout),
            stderr_bytes: bytes(&self.stderr),
        };
        (exit, code.unwrap_or(0))
    }
}

/// The agent's ends of a process's pipes.
#[derive(Debug, Default)]
pub struct Pipes {
    /// Write end of stdin.
    pub stdin: Option<OwnedFd>,
    /// Read end of stdout.
    pub stdout: Option<OwnedFd>,
    /// Read end of stderr.
    pub stderr: Option<OwnedFd>,
}

/// Creates a process's pipes. With a terminal there is only that of stderr, and only if stderr has its own stream.
pub fn pipes(spec: &payload::Process) -> Result<(Pipes, Stdio), Error> {
    let (mut pipes, mut stdio) = (Pipes::default(), Stdio::default());
    if !spec.terminal {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).step("create", "pipe")?;
        set_nonblocking(&write)?;
        (stdio.stdin, pipes.stdin) = (Some(read), Some(write));
        (pipes.stdout, stdio.stdout) = output_pipe()?;
    }
    if spec.stderr != 0 {
        (pipes.stderr, stdio.stderr) = output_pipe()?;
    }
    Ok((pipes, stdio))
}

fn output_pipe() -> Result<(Option<OwnedFd>, Option<OwnedFd>), Error> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).step("create", "pipe")?;
    set_nonblocking(&read)?;
    Ok((Some(read), Some(write)))
}

fn set_nonblocking(fd: &OwnedFd) -> Result<(), Error> {
    rustix::fs::fcntl_setfl(fd, OFlags::NONBLOCK).step("set O_NONBLOCK of", "stream")
}

/// Returns signal `number`, or API 4244's error for an invalid number.
pub fn signal(number: i32) -> Result<rustix::process::Signal, Error> {
    sys::signal(number).ok_or_else(|| Error::bad_request("invalid signal"))
}
