//! The control channel's host side: commands to the agent, their replies, and its events.
//!
//! An [`AgentLink`] belongs to the main thread and never waits: [`send`](AgentLink::send) queues a command,
//! [`receive`](AgentLink::receive) takes what has come. So commands are written back to back without a look at READY:
//! EXTEND says that everything after it is in the extended form, and the replies are asked for in order.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use agent_proto::FrameError;
use agent_proto::command::{API_VERSION, Code, EXTENSION_VERSION, STREAM_WINDOW};
use agent_proto::control::{ControlCodec, ControlFrame};
use agent_proto::payload::{ErrorCode, ErrorReply, Extend, ProcessEvent, Ready};
use serde::Serialize;

pub mod streams;

/// Bytes taken from the channel at a time.
const READ_SIZE: usize = 16 << 10;
/// The most commands without a reply: several for each of a pod's containers.
const OUTSTANDING_MAX: usize = 1024;
/// The most events that wait to be looked at.
const EVENTS_MAX: usize = 1024;
/// The most of an error's text that is shown.
const MESSAGE_MAX: usize = 4096;

/// What went wrong between us and the agent.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The channel cannot be used.
    #[error("{step} the agent's control channel")]
    Channel {
        /// Read or write.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The agent's bytes are no frames.
    #[error("read the agent's control channel")]
    Frame(#[source] FrameError),
    /// The agent's bytes are no frames there either.
    #[error("read the agent's stream channel")]
    Streams(#[source] FrameError),
    /// The agent's frames make no sense.
    #[error("the agent's control channel: {0}")]
    Protocol(String),
    /// The agent is not one that this program can use.
    #[error("the agent offers {0}, not API {API_VERSION} with extension {EXTENSION_VERSION}")]
    Version(String),
    /// The agent did not do what it was told.
    #[error("{step}: {message}")]
    Refused {
        /// What it was told.
        step: &'static str,
        /// The kind of failure.
        code: ErrorCode,
        /// Its text.
        message: String,
    },
    /// A command cannot be written down.
    #[error("encode a command")]
    Encode(#[source] serde_json::Error),
}

/// This module's result.
pub type Result<T, E = LinkError> = std::result::Result<T, E>;

/// A command that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandId(u32);

struct Command {
    id: CommandId,
    step: &'static str,
    /// None until it has come.
    reply: Option<Result<Vec<u8>>>,
    /// Nobody asks for the reply: a failure is logged.
    unattended: bool,
}

/// The control channel.
pub struct AgentLink {
    socket: UnixStream,
    codec: ControlCodec,
    /// What the socket has not taken.
    outgoing: Vec<u8>,
    next_id: u32,
    commands: VecDeque<Command>,
    events: VecDeque<ProcessEvent>,
    ready: Option<Ready>,
}

impl AgentLink {
    /// Takes the channel; the first frame on it is EXTEND.
    pub fn new(socket: UnixStream) -> Result<AgentLink> {
        socket.set_nonblocking(true).map_err(|source| LinkError::Channel { step: "open", source })?;
        let mut link = AgentLink {
            socket,
            codec: ControlCodec::new(),
            outgoing: Vec::new(),
            next_id: 1,
            commands: VecDeque::new(),
            events: VecDeque::new(),
            ready: None,
        };
        let payload = encode(&Extend { extension: EXTENSION_VERSION })?;
        ControlFrame { code: Code::Extend as u32, id: 0, payload }.encode(false, &mut link.outgoing);
        link.await_reply(CommandId(0), "EXTEND", true)?;
        Ok(link)
    }

    /// Readable when [`receive`](Self::receive) has something to do.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What [`fd`](Self::fd) is to be polled for.
    pub fn interest(&self) -> i16 {
        if self.outgoing.is_empty() { libc::POLLIN } else { libc::POLLIN | libc::POLLOUT }
    }

    /// Queues a command; `step` is what messages call it. [`flush`](Self::flush) writes it.
    pub fn send(&mut self, code: Code, step: &'static str, payload: &impl Serialize) -> Result<CommandId> {
        self.queue(code, step, encode(payload)?, false)
    }

    /// Queues a command whose reply nobody asks for: that it failed is logged.
    pub fn notify(&mut self, code: Code, step: &'static str, payload: &impl Serialize) -> Result<()> {
        self.queue(code, step, encode(payload)?, true).map(drop)
    }

    /// Queues a command that has no payload.
    pub fn send_bare(&mut self, code: Code, step: &'static str) -> Result<CommandId> {
        self.queue(code, step, Vec::new(), false)
    }

    fn queue(
        &mut self,
        code: Code,
        step: &'static str,
        payload: Vec<u8>,
        unattended: bool,
    ) -> Result<CommandId> {
        let id = CommandId(self.next_id);
        // 0 is an event's.
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        self.await_reply(id, step, unattended)?;
        ControlFrame { code: code as u32, id: id.0, payload }.encode(true, &mut self.outgoing);
        Ok(id)
    }

    fn await_reply(&mut self, id: CommandId, step: &'static str, unattended: bool) -> Result<()> {
        if self.commands.len() >= OUTSTANDING_MAX {
            return Err(LinkError::Protocol(format!("{OUTSTANDING_MAX} commands wait for their replies")));
        }
        self.commands.push_back(Command { id, step, reply: None, unattended });
        Ok(())
    }

    /// Writes what is queued, as far as the channel takes it; [`receive`](Self::receive) goes on with it.
    pub fn flush(&mut self) -> Result<()> {
        while !self.outgoing.is_empty() {
            match self.socket.write(&self.outgoing) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(source) => return Err(LinkError::Channel { step: "write", source }),
            }
        }
        Ok(())
    }

    /// Takes what has come. Returns whether it was anything.
    pub fn receive(&mut self) -> Result<bool> {
        self.flush()?;
        let mut any = false;
        let mut buffer = [0; READ_SIZE];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => {
                    let source = io::ErrorKind::UnexpectedEof.into();
                    return Err(LinkError::Channel { step: "read", source });
                }
                Ok(count) => {
                    any = true;
                    self.codec.push(&buffer[..count]);
                    while let Some(frame) = self.codec.next().map_err(LinkError::Frame)? {
                        self.take(frame)?;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(any),
                Err(source) => return Err(LinkError::Channel { step: "read", source }),
            }
        }
    }

    /// The agent's offer, once READY has come.
    pub fn ready(&self) -> Option<&Ready> {
        self.ready.as_ref()
    }

    /// Takes a command's reply, if it has come. Each reply is taken once.
    pub fn reply(&mut self, id: CommandId) -> Option<Result<Vec<u8>>> {
        let index = self.commands.iter().position(|command| command.id == id && command.reply.is_some())?;
        self.commands.remove(index)?.reply
    }

    /// Whether a reply is missing.
    pub fn is_waiting(&self) -> bool {
        self.commands.iter().any(|command| command.reply.is_none())
    }

    /// How many commands have no reply yet, or one that nobody has taken.
    pub fn outstanding(&self) -> usize {
        self.commands.len()
    }

    /// Takes the next event.
    pub fn event(&mut self) -> Option<ProcessEvent> {
        self.events.pop_front()
    }

    fn take(&mut self, frame: ControlFrame) -> Result<()> {
        let code = Code::from_u32(frame.code);
        match (code, self.ready.is_some()) {
            (Some(Code::Ready), false) => self.take_ready(&frame.payload),
            (_, false) => Err(LinkError::Protocol(format!("code {} before READY", frame.code))),
            (Some(Code::Ack), true) => self.take_reply(frame.id, |_| Ok(frame.payload)),
            (Some(Code::Error), true) => self.take_reply(frame.id, |step| Err(refusal(step, &frame.payload))),
            (Some(Code::ProcessAsyncEvent), true) => self.take_event(&frame.payload),
            (_, true) => Err(LinkError::Protocol(format!("code {} is no reply and no event", frame.code))),
        }
    }

    fn take_ready(&mut self, payload: &[u8]) -> Result<()> {
        let Ok(ready) = serde_json::from_slice::<Ready>(payload) else {
            return Err(LinkError::Version(match payload {
                [] => format!("API {API_VERSION} alone"),
                other => printable(&String::from_utf8_lossy(other)),
            }));
        };
        if ready.api != API_VERSION || ready.extension < EXTENSION_VERSION {
            return Err(LinkError::Version(format!("API {} with extension {}", ready.api, ready.extension)));
        }
        // The host keeps as much as its own window of a stream whose client is slow, and the agent must not send more.
        if ready.window == 0 || ready.window > STREAM_WINDOW {
            return Err(LinkError::Protocol(format!("READY: a window of {} bytes", ready.window)));
        }
        self.ready = Some(ready);
        self.codec.set_extended(true);
        Ok(())
    }

    fn take_reply(&mut self, id: u32, reply: impl FnOnce(&'static str) -> Result<Vec<u8>>) -> Result<()> {
        let waiting =
            self.commands.iter_mut().position(|command| command.id.0 == id && command.reply.is_none());
        let Some(index) = waiting else {
            return Err(LinkError::Protocol(format!("a reply to command {id}, which waits for none")));
        };
        let command = &mut self.commands[index];
        let reply = reply(command.step);
        if !command.unattended {
            command.reply = Some(reply);
            return Ok(());
        }
        let extend = id == 0;
        self.commands.remove(index);
        match reply {
            // Without the extension nothing that follows means anything.
            Err(error) if extend => Err(error),
            Err(error) => {
                log::warn!("{error}");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    fn take_event(&mut self, payload: &[u8]) -> Result<()> {
        let event = serde_json::from_slice(payload)
            .map_err(|error| LinkError::Protocol(format!("an event that cannot be read: {error}")))?;
        if self.events.len() >= EVENTS_MAX {
            return Err(LinkError::Protocol(format!("{EVENTS_MAX} events in a row")));
        }
        self.events.push_back(event);
        Ok(())
    }
}

fn encode(payload: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(payload).map_err(LinkError::Encode)
}

fn refusal(step: &'static str, payload: &[u8]) -> LinkError {
    match serde_json::from_slice::<ErrorReply>(payload) {
        Ok(ErrorReply { code, message }) => LinkError::Refused { step, code, message: printable(&message) },
        Err(_) => {
            let message = printable(&String::from_utf8_lossy(payload));
            LinkError::Refused { step, code: ErrorCode::Failed, message }
        }
    }
}

/// Makes the guest's text fit to be shown: bounded, and without the characters by which a terminal takes orders.
pub fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
    text.chars().filter(|c| *c != '\r').take(MESSAGE_MAX).map(shown).collect()
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod pair_tests;
