//! The main thread's wait: one poll over the agent, the signals, the machine's end and the streams, until what it waits
//! for is there.

use std::io;
use std::time::{Duration, Instant};

use agent_proto::command::Code;
use agent_proto::payload::{Exit, KillCommand, WindowSize};
use vmm::VmEnd;

use crate::link::streams::Delivery;
use crate::link::{CommandId, LinkError, printable};
use crate::plan::{INIT_PROCESS, STDERR_STREAM, STDIO_STREAM};
use crate::sandbox::Sandbox;
use crate::signals::{Asked, Signals, asks_for_an_end};
use crate::{sys, terminal};

/// How many of the console's last lines an error shows.
const TAIL_LINES: usize = 20;

/// How long a machine may take to end after its guest has closed the control channel.
const END_GRACE: Duration = Duration::from_secs(2);

/// Why the wait was in vain.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The guest's kernel gave up.
    #[error("guest kernel panicked: {tail}")]
    Panicked {
        /// The panic and the lines after it.
        tail: String,
    },
    /// The machine ended before its work was done.
    #[error("{step}: the virtual machine ended: {reason}{tail}")]
    Ended {
        /// What was waited for.
        step: &'static str,
        /// How it ended.
        reason: String,
        /// The console's last lines.
        tail: String,
    },
    /// The agent made no progress.
    #[error("{step}: no answer from the guest's agent for {} s{tail}", after.as_secs())]
    Silent {
        /// What was waited for.
        step: &'static str,
        /// For how long.
        after: Duration,
        /// The console's last lines.
        tail: String,
    },
    /// A signal asked for an end before the container's process was there.
    #[error("ended by signal {0} before the container's process was started")]
    Interrupted(i32),
    /// The agent refused, or makes no sense.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The host refused something.
    #[error("{step}")]
    Host {
        /// What for.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// This module's result.
pub type Result<T, E = SessionError> = std::result::Result<T, E>;

/// A sandbox, and what happens around it meanwhile.
pub struct Session<'a> {
    /// The sandbox.
    pub sandbox: Sandbox,
    signals: &'a Signals,
    /// The container.
    container: String,
    /// It has a terminal.
    terminal: bool,
    /// How long the agent may make no progress.
    patience: Duration,
    /// Since when the agent has owed something and made no progress.
    owes_since: Option<Instant>,
    /// Its first process is there: signals go to it.
    started: bool,
    /// Signals that came before it.
    held: Vec<i32>,
}

impl<'a> Session<'a> {
    /// Returns a session whose container is not started.
    pub fn new(
        sandbox: Sandbox,
        signals: &'a Signals,
        container: &str,
        terminal: bool,
        patience: Duration,
    ) -> Session<'a> {
        let container = container.to_owned();
        let (owes_since, started, held) = (None, false, Vec::new());
        Session { sandbox, signals, container, terminal, patience, owes_since, started, held }
    }

    /// Waits for READY.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.wait("wait for the agent", true, |sandbox| sandbox.link.ready().map(|_| Ok(())))
    }

    /// Waits for a command's reply.
    pub fn wait_reply(&mut self, step: &'static str, command: CommandId) -> Result<Vec<u8>> {
        self.wait(step, true, |sandbox| {
            sandbox.link.reply(command).map(|reply| reply.map_err(SessionError::Link))
        })
    }

    /// The container's first process is there: it gets its input, and the signals that have come for it.
    pub fn started(&mut self) -> Result<()> {
        self.started = true;
        let window = self.sandbox.link.ready().map_or(0, |ready| ready.window);
        self.sandbox.streams.start(STDIO_STREAM, window);
        for signal in std::mem::take(&mut self.held) {
            self.forward(signal)?;
        }
        Ok(())
    }

    /// Waits for the report that the container's first process has ended.
    pub fn wait_exit(&mut self) -> Result<Exit> {
        let container = self.container.clone();
        self.wait("run the container", false, |sandbox| {
            while let Some(event) = sandbox.link.event() {
                if event.container == container && event.process == INIT_PROCESS && event.event == "finished"
                {
                    let plain = Exit { code: Some(event.status), ..Exit::default() };
                    return Some(Ok(event.exit.unwrap_or(plain)));
                }
                log::debug!("agent: {event:?}");
            }
            None
        })
    }

    /// Waits until all output that the report counts is with the clients.
    pub fn wait_output(&mut self, exit: &Exit) -> Result<()> {
        for (stream, bytes) in [(STDIO_STREAM, exit.stdout_bytes), (STDERR_STREAM, exit.stderr_bytes)] {
            // A client may take its time; the guest has to have sent what it says it has.
            let mut owed = true;
            while owed {
                owed = self.wait("wait for the container's output", true, |sandbox| {
                    match sandbox.streams.delivery(stream, bytes) {
                        Delivery::Guest => None,
                        Delivery::Client => Some(Ok(true)),
                        Delivery::Done => Some(Ok(false)),
                    }
                })?;
                if owed {
                    owed = self.wait("write the container's output", false, |sandbox| {
                        (sandbox.streams.delivery(stream, bytes) == Delivery::Done).then_some(Ok(false))
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Waits until `ready` has something. `owed` says that it is the agent who has to bring it.
    fn wait<T>(
        &mut self,
        step: &'static str,
        owed: bool,
        mut ready: impl FnMut(&mut Sandbox) -> Option<Result<T>>,
    ) -> Result<T> {
        self.owes_since = None;
        loop {
            if let Some(result) = ready(&mut self.sandbox) {
                return result;
            }
            let timeout = self.timeout(step, owed)?;
            let link = &self.sandbox.link;
            let fds = [
                (link.fd(), link.interest()),
                (self.signals.fd(), libc::POLLIN),
                (self.sandbox.end_fd(), libc::POLLIN),
                (self.sandbox.streams.notify_fd(), libc::POLLIN),
            ];
            let [agent, signal, end, streams] = sys::poll(fds, timeout).map_err(host("poll"))?;
            if streams {
                self.sandbox.streams.acknowledge();
            }
            if signal {
                self.take_signals()?;
            }
            if agent || end {
                self.take_agent(step)?;
            }
            if end {
                // What the agent sent before the machine's end counts.
                return ready(&mut self.sandbox).unwrap_or_else(|| Err(self.ended(step)));
            }
        }
    }

    fn take_agent(&mut self, step: &'static str) -> Result<()> {
        match self.sandbox.link.receive() {
            Ok(true) => {
                self.owes_since = None;
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(error @ LinkError::Channel { .. }) => Err(self.lost(step, error)),
            Err(error) => Err(error.into()),
        }
    }

    /// Says why the channel is gone: as a rule the machine is ending, and its own reason says more.
    fn lost(&self, step: &'static str, error: LinkError) -> SessionError {
        match sys::poll([(self.sandbox.end_fd(), libc::POLLIN)], Some(END_GRACE)) {
            Ok([true]) => self.ended(step),
            _ => error.into(),
        }
    }

    /// How long to wait: for ever, unless the agent owes something.
    fn timeout(&mut self, step: &'static str, owed: bool) -> Result<Option<Duration>> {
        if !owed && !self.sandbox.link.is_waiting() {
            self.owes_since = None;
            return Ok(None);
        }
        let since = *self.owes_since.get_or_insert_with(Instant::now);
        match self.patience.checked_sub(since.elapsed()) {
            Some(left) if !left.is_zero() => Ok(Some(left)),
            _ => {
                let tail = indented(&self.sandbox.console_tail());
                Err(SessionError::Silent { step, after: self.patience, tail })
            }
        }
    }

    fn take_signals(&mut self) -> Result<()> {
        while let Some(asked) = self.signals.next().map_err(host("read a signal"))? {
            match asked {
                Asked::Resize if self.terminal && self.started => self.resize()?,
                Asked::Resize => {}
                Asked::Forward(signal) if self.started => self.forward(signal)?,
                Asked::Forward(signal) if asks_for_an_end(signal) => {
                    return Err(SessionError::Interrupted(signal));
                }
                Asked::Forward(signal) => self.held.push(signal),
            }
        }
        Ok(())
    }

    fn forward(&mut self, signal: i32) -> Result<()> {
        let command = KillCommand { container: self.container.clone(), signal, all_processes: false };
        self.sandbox.link.notify(Code::KillContainer, "forward a signal", &command)?;
        Ok(self.sandbox.link.flush()?)
    }

    fn resize(&mut self) -> Result<()> {
        let Some(size) = terminal::size() else { return Ok(()) };
        let command = WindowSize {
            container: self.container.clone(),
            process: INIT_PROCESS.to_owned(),
            row: size.height,
            column: size.width,
        };
        self.sandbox.link.notify(Code::WinSize, "resize the terminal", &command)?;
        Ok(self.sandbox.link.flush()?)
    }

    /// Says why the machine ended.
    fn ended(&self, step: &'static str) -> SessionError {
        let console = self.sandbox.console_tail();
        if let Some(tail) = panic_of(&console) {
            return SessionError::Panicked { tail };
        }
        let reason = match self.sandbox.end() {
            Some(VmEnd::Reset) => "the guest reset itself".to_owned(),
            Some(VmEnd::Shutdown) => "the guest switched itself off".to_owned(),
            Some(VmEnd::Failed(reason)) => reason,
            Some(VmEnd::Stopped) | None => "it was stopped".to_owned(),
        };
        SessionError::Ended { step, reason, tail: indented(&console) }
    }
}

/// Returns the kernel's panic message and what came after it.
fn panic_of(console: &str) -> Option<String> {
    let at = console.rfind("Kernel panic - not syncing")?;
    let panic = printable(&console[at..]);
    let mut lines = panic.lines();
    let first = lines.next()?.trim_start_matches("Kernel panic - not syncing").trim_start_matches([':', ' ']);
    // The cause stands in the lines before the panic as often as in those after it.
    Some(format!("{first}{}", indented(console)))
}

/// Returns the last lines of the console, each on a line of its own below an error's.
fn indented(console: &str) -> String {
    let console = printable(tail(console));
    if console.trim().is_empty() {
        return "; it said nothing on its console (--console serial:- shows it from its first instructions)"
            .to_owned();
    }
    console.lines().map(|line| format!("\n  guest: {line}")).collect()
}

fn tail(console: &str) -> &str {
    let console = console.trim_end();
    let start = console.rmatch_indices('\n').nth(TAIL_LINES - 1).map_or(0, |(at, _)| at + 1);
    &console[start..]
}

fn host(step: &'static str) -> impl FnOnce(io::Error) -> SessionError {
    move |source| SessionError::Host { step, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_found_in_the_console() {
        let console =
            "[0.1] a\r\n[0.2] Kernel panic - not syncing: Attempted to kill init!\r\n[0.3] CPU: 0\r\n";
        assert_eq!(
            panic_of(console).unwrap(),
            "Attempted to kill init!\n  guest: [0.1] a\n  guest: [0.2] Kernel panic - not syncing: Attempted to kill \
             init!\n  guest: [0.3] CPU: 0"
        );
        assert_eq!(panic_of("all is well"), None);
    }

    #[test]
    fn the_console_s_tail_is_short_and_harmless() {
        let console: String = (0..100).map(|n| format!("line {n}\x1b[2J\n")).collect();
        let shown = indented(&console);
        assert_eq!(shown.lines().count(), TAIL_LINES + 1);
        assert!(shown.ends_with("guest: line 99\u{fffd}[2J"));
        assert!(indented("\n\n").contains("it said nothing"));
    }
}
