//! `vmm run`'s one process: what it waits for in a straight line, with the signals that come meanwhile handed on.

use agent_proto::command::Code;
use agent_proto::payload::{Exit, KillCommand, WindowSize};
use host::signals::{Asked, Signals, asks_for_an_end};
use host::terminal;
use link::api4244::InputPace;
use link::streams::Delivery;
use link::{CommandId, LinkError};
use plan::INIT_PROCESS;

use crate::sandbox::Sandbox;
use crate::session::{Result, Session, SessionError, host};

/// Stream of the init process's stdin and stdout.
pub const STDIO_STREAM: u64 = 1;
/// Stream of its stderr.
pub const STDERR_STREAM: u64 = 2;

/// A session with one container, whose first process stands in for `vmm` itself.
pub struct Foreground<'a> {
    /// The session.
    pub session: Session,
    signals: &'a Signals,
    /// The container.
    container: String,
    /// It has a terminal.
    terminal: bool,
    /// Its first process is there: signals go to it.
    started: bool,
    /// Signals that came before it.
    held: Vec<i32>,
    /// The pace of its input, where the agent gives no credit.
    pace: Option<InputPace>,
    /// It was told that nobody reads its output.
    hung_up: bool,
}

impl<'a> Foreground<'a> {
    /// Returns a session whose container is not started.
    pub fn new(session: Session, signals: &'a Signals, container: &str, terminal: bool) -> Foreground<'a> {
        let container = container.to_owned();
        Foreground {
            session,
            signals,
            container,
            terminal,
            started: false,
            held: Vec::new(),
            pace: None,
            hung_up: false,
        }
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
        let window = self.session.sandbox.link.ready().map_or(0, |ready| ready.window);
        self.session.sandbox.streams.start(STDIO_STREAM, window);
        if self.session.sandbox.link.is_api4244() {
            self.pace = Some(InputPace::new(STDIO_STREAM));
            if self.terminal {
                // API 4244's process comes without a size of its terminal.
                self.resize()?;
            }
        }
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
                if let Err(error) = sandbox.link.ignore(&event) {
                    return Some(Err(error.into()));
                }
            }
            None
        })
    }

    /// In the base form the report counts nothing: waits for the end of the process's output, which the agent sends on
    /// stdio's stream when all of both streams is sent, and counts what came before it.
    pub fn wait_end(&mut self, exit: Exit) -> Result<Exit> {
        // What is not read any more need not be paced.
        self.pace = None;
        if !self.session.sandbox.link.is_api4244() {
            return Ok(exit);
        }
        let step = "wait for the end of the container's output";
        loop {
            // While a client is slow nothing is taken of the guest, and it owes nothing.
            let behind = |sandbox: &Sandbox| {
                [STDIO_STREAM, STDERR_STREAM].into_iter().any(|stream| {
                    let streams = &sandbox.streams;
                    streams.delivery(stream, streams.received(stream)) != Delivery::Done
                })
            };
            let ended = self.wait(step, true, |sandbox| match sandbox.streams.is_ended(STDIO_STREAM) {
                true => Some(Ok(true)),
                false => behind(sandbox).then_some(Ok(false)),
            })?;
            if ended {
                let streams = &self.session.sandbox.streams;
                let (stdout_bytes, stderr_bytes) =
                    (streams.received(STDIO_STREAM), streams.received(STDERR_STREAM));
                return Ok(Exit { stdout_bytes, stderr_bytes, ..exit });
            }
            self.wait("write the container's output", false, |sandbox| (!behind(sandbox)).then_some(Ok(())))?;
        }
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
        self.session.begin();
        loop {
            if let Some(result) = ready(&mut self.session.sandbox) {
                return result;
            }
            if let Some(pace) = &mut self.pace {
                pace.turn(&mut self.session.sandbox.link, &self.session.sandbox.streams)?;
            }
            let gone = |stream| self.session.sandbox.streams.is_hung_up(stream);
            if self.started && !self.hung_up && [STDIO_STREAM, STDERR_STREAM].into_iter().any(gone) {
                // API 4244 has no other way to say what a pipe without a reader says.
                self.hung_up = true;
                self.forward(libc::SIGPIPE)?;
            }
            let signals = (self.signals.fd(), libc::POLLIN);
            if self.session.turn(step, owed.then_some(0), &[signals], None)?[0] {
                self.take_signals()?;
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
        self.tell(Code::KillContainer, "forward a signal", &command)
    }

    fn resize(&mut self) -> Result<()> {
        let Some(size) = terminal::size() else { return Ok(()) };
        let command = WindowSize {
            container: self.container.clone(),
            process: INIT_PROCESS.to_owned(),
            row: size.height,
            column: size.width,
        };
        self.tell(Code::WinSize, "resize the terminal", &command)
    }

    fn tell(&mut self, code: Code, step: &'static str, command: &impl serde::Serialize) -> Result<()> {
        let link = &mut self.session.sandbox.link;
        link.notify(code, step, command).and_then(|()| link.flush()).map_err(LinkError::into)
    }
}
