//! A process of a container, as the agent sees it: its start, its streams, its end.

pub mod child;
pub mod credentials;
pub mod limits;
pub mod program;
pub mod pty;
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

use crate::fault::{Fault, Step};
use crate::process::child::Stdio;
use crate::streams::{Inbound, Output, Stdin};
use crate::sys;

/// A started command's reply that is still owed.
#[derive(Debug)]
pub struct Pending {
    /// The command's message id.
    pub id: u32,
    /// The command's code.
    pub command: u32,
    /// Where the child reports on its set-up; none once it has said all.
    pub report: Option<OwnedFd>,
    /// Why its program does not run.
    pub fault: Option<Fault>,
}

/// A process and its streams.
#[derive(Debug)]
pub struct Process {
    /// The container's name.
    pub container: String,
    /// The process's name.
    pub id: String,
    /// The number it has here.
    pub pid: Pid,
    /// Its descriptor; none once it is reaped.
    pub pidfd: Option<OwnedFd>,
    /// There until its program runs or could not be started.
    pub pending: Option<Pending>,
    /// It is its container's first.
    pub is_first: bool,
    /// The child has something to say.
    pub reported: bool,
    /// Its start was answered with an error: nothing further is said of it.
    pub failed: bool,
    /// How it ended.
    pub status: Option<WaitStatus>,
    /// Its input.
    pub stdin: Option<Stdin>,
    /// Its output, or its terminal's.
    pub stdout: Option<Output>,
    /// Its errors.
    pub stderr: Option<Output>,
    /// The stream numbers that are its own.
    pub seqs: (u64, u64),
    /// The terminal's master.
    terminal: Option<Rc<OwnedFd>>,
    /// A window size that came before the terminal.
    size: Option<Winsize>,
    wants_terminal: bool,
    /// Input that came before the terminal.
    early: Vec<u8>,
    early_end: bool,
    /// All output is queued when the stream channel has sent this much.
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
            is_first: pending.command != Code::ExecCmd as u32,
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

    /// Takes the agent's ends of the process's pipes.
    pub fn set_pipes(&mut self, pipes: Pipes) {
        self.stdin = pipes.stdin.map(|fd| Stdin::new(self.seqs.0, Rc::new(fd), false));
        self.stdout = pipes.stdout.map(|fd| Output::new(self.seqs.0, Rc::new(fd)));
        self.stderr = pipes.stderr.map(|fd| Output::new(self.seqs.1, Rc::new(fd)));
    }

    /// Takes the terminal's master, which the child has opened.
    pub fn set_terminal(&mut self, master: OwnedFd) -> Result<Rc<OwnedFd>, Fault> {
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

    /// Takes note why the program does not run.
    pub fn fail(&mut self, fault: Fault) {
        if let Some(pending) = &mut self.pending {
            pending.fault = Some(fault);
        }
    }

    /// Takes note that the child has said all.
    pub fn close_report(&mut self) {
        if let Some(pending) = &mut self.pending {
            pending.report = None;
        }
    }

    /// Gives the terminal a size.
    pub fn resize(&mut self, rows: u16, columns: u16) -> Result<(), Fault> {
        let size = pty::winsize(rows, columns);
        match &self.terminal {
            Some(master) => {
                rustix::termios::tcsetwinsize(master.as_ref(), size).step("set size of", "terminal")
            }
            None if self.wants_terminal => {
                self.size = Some(size);
                Ok(())
            }
            None => Err(Fault::bad_request("the process has no terminal")),
        }
    }

    /// Takes input or its end.
    pub fn input(&mut self, inbound: Inbound<'_>) {
        match (&mut self.stdin, inbound) {
            (Some(stdin), Inbound::Data(_, data)) => stdin.push(data),
            (Some(stdin), Inbound::End(_)) => stdin.end(),
            (None, Inbound::Data(_, data)) => self.early.extend_from_slice(data),
            (None, Inbound::End(_)) => self.early_end = true,
            (_, Inbound::Credit(_)) => {}
        }
    }

    /// Returns true while no more input may be taken.
    pub fn is_full(&self) -> bool {
        self.early.len() > STREAM_WINDOW as usize || self.stdin.as_ref().is_some_and(Stdin::is_full)
    }

    /// Returns true for a stream number that is the process's own.
    pub fn has_seq(&self, seq: u64) -> bool {
        seq != 0 && (self.seqs.0 == seq || self.seqs.1 == seq)
    }

    /// Returns the output stream `seq`.
    pub fn output(&mut self, seq: u64) -> Option<&mut Output> {
        [&mut self.stdout, &mut self.stderr].into_iter().flatten().find(|output| output.seq == seq)
    }

    /// Takes credit for an output; none at all says that the host's client reads no more, and so does the agent: the
    /// process's next write fails, or its terminal hangs up.
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

    /// Returns true once no output can come any more.
    pub fn is_drained(&self) -> bool {
        [&self.stdout, &self.stderr].into_iter().flatten().all(|output| !output.is_open())
    }

    /// Sends the process a signal.
    pub fn signal(&self, signal: rustix::process::Signal) -> rustix::io::Result<()> {
        let pidfd = self.pidfd.as_ref().ok_or(Errno::SRCH)?;
        rustix::process::pidfd_send_signal(pidfd, signal)
    }

    /// Sends the process's group a signal; before it has a group of its own, the process alone.
    pub fn signal_group(&self, signal: rustix::process::Signal) -> rustix::io::Result<()> {
        if self.pidfd.is_none() {
            return Err(Errno::SRCH);
        }
        match rustix::process::kill_process_group(self.pid, signal) {
            Err(Errno::SRCH) => self.signal(signal),
            other => other,
        }
    }

    /// Returns the process's descriptor while it lives.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// Returns how the process ended, and API 4244's one number for it: a signal's is 0 there.
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
    /// Where its input is written.
    pub stdin: Option<OwnedFd>,
    /// Where its output is read.
    pub stdout: Option<OwnedFd>,
    /// Where its errors are read.
    pub stderr: Option<OwnedFd>,
}

/// Makes a process's pipes: with a terminal only stderr's, and only where that has a stream of its own.
pub fn pipes(spec: &payload::Process) -> Result<(Pipes, Stdio), Fault> {
    let (mut ours, mut theirs) = (Pipes::default(), Stdio::default());
    if !spec.terminal {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).step("make", "pipe")?;
        set_nonblocking(&write)?;
        (theirs.stdin, ours.stdin) = (Some(read), Some(write));
        (ours.stdout, theirs.stdout) = output_pipe()?;
    }
    if spec.stderr != 0 {
        (ours.stderr, theirs.stderr) = output_pipe()?;
    }
    Ok((ours, theirs))
}

fn output_pipe() -> Result<(Option<OwnedFd>, Option<OwnedFd>), Fault> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).step("make", "pipe")?;
    set_nonblocking(&read)?;
    Ok((Some(read), Some(write)))
}

fn set_nonblocking(fd: &OwnedFd) -> Result<(), Fault> {
    rustix::fs::fcntl_setfl(fd, OFlags::NONBLOCK).step("set up", "pipe")
}

/// Returns signal `number`, or what API 4244 says of one that there is not.
pub fn signal(number: i32) -> Result<rustix::process::Signal, Fault> {
    sys::signal(number).ok_or_else(|| Fault::bad_request("invalid signal"))
}
