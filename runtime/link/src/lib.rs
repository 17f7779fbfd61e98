//! The control channel's host side: commands to the agent, their replies, and its events.
//!
//! An [`AgentLink`] belongs to the main thread and never waits: [`send`](AgentLink::send) queues a command,
//! [`receive`](AgentLink::receive) takes what has come. So commands for our own agent are written back to back without a
//! look at READY: EXTEND says that everything after it is in the extended form, and the replies are asked for in order.
//! Nothing is written to an agent of somebody else's before its READY, and to one of API 4244 alone ([`api4244`]) no more
//! than it asks for.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use agent_proto::FrameError;
use agent_proto::command::{API_VERSION, Code, EXTENSION_VERSION, Protocol, STREAM_WINDOW};
use agent_proto::control::{ControlCodec, ControlFrame};
use agent_proto::payload::{ErrorCode, ErrorReply, Extend, FileCommand, ProcessEvent, Ready};
use host::text::printable;
use serde::Serialize;

pub mod api4244;
pub mod streams;

use api4244::Pace;

/// Bytes taken from the channel at a time.
const READ_SIZE: usize = 16 << 10;
/// The most commands without a reply: several for each of a pod's containers.
const OUTSTANDING_MAX: usize = 1024;
/// The most events that wait to be looked at.
const EVENTS_MAX: usize = 1024;
/// The most frames between two that were due.
const UNDUE_MAX: u32 = 1024;
/// How often the channel is read before its owner looks at what has come.
const READS_MAX: usize = 64;

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
    #[error(
        "the agent offers {0}, not API {API_VERSION} with extension {EXTENSION_VERSION} (--agent api-4244 runs one \
         without, and what it cannot do is left out)"
    )]
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
    reader: Reader,
    /// How long the agent has owed the reply.
    waited: Duration,
    /// The agent cannot reply before we let something go on.
    excused: bool,
}

/// Who reads a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    /// Whoever sent the command.
    Sender,
    /// Nobody: a failure is logged.
    Log,
    /// The link itself: without the extension nothing that follows EXTEND means anything.
    Extend,
    /// The link itself: GETVERSION's data.
    Version,
}

/// The control channel.
pub struct AgentLink {
    socket: UnixStream,
    codec: ControlCodec,
    protocol: Protocol,
    /// The commands' pace in the base form.
    pace: Pace,
    /// What the socket has not taken.
    outgoing: Vec<u8>,
    next_id: u32,
    commands: VecDeque<Command>,
    events: VecDeque<ProcessEvent>,
    /// Frames since the last one that was due.
    undue: u32,
    ready: Option<Ready>,
}

impl AgentLink {
    /// Takes the channel to an agent that is spoken to in `protocol`; the first frame on it is EXTEND, or in the base form GETVERSION.
    pub fn new(socket: UnixStream, protocol: Protocol) -> Result<AgentLink> {
        socket.set_nonblocking(true).map_err(|source| LinkError::Channel { step: "open", source })?;
        let mut link = AgentLink {
            socket,
            codec: ControlCodec::new(),
            protocol,
            pace: Pace::default(),
            outgoing: Vec::new(),
            next_id: 1,
            commands: VecDeque::new(),
            events: VecDeque::new(),
            undue: 0,
            ready: None,
        };
        let (code, payload, reader) = if link.is_api4244() {
            (Code::GetVersion, Vec::new(), Reader::Version)
        } else {
            (Code::Extend, encode(&Extend { extension: EXTENSION_VERSION })?, Reader::Extend)
        };
        ControlFrame { code: code as u32, id: 0, payload }.encode(false, &mut link.outgoing);
        link.await_reply(CommandId(0), "agree on the protocol", reader)?;
        Ok(link)
    }

    /// How the agent is spoken to.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether API 4244 alone is spoken.
    pub fn is_api4244(&self) -> bool {
        self.protocol == Protocol::Api4244
    }

    /// Readable when [`receive`](Self::receive) has something to do.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What [`fd`](Self::fd) is to be polled for.
    pub fn interest(&self) -> i16 {
        if self.writable() == 0 { libc::POLLIN } else { libc::POLLIN | libc::POLLOUT }
    }

    /// How much of what is queued may be written now.
    fn writable(&self) -> usize {
        match self.protocol {
            Protocol::Extended => self.outgoing.len(),
            Protocol::Negotiated | Protocol::Api4244 if self.ready.is_none() => 0,
            Protocol::Negotiated => self.outgoing.len(),
            Protocol::Api4244 => self.outgoing.len().min(self.pace.room()),
        }
    }

    /// Queues a command; `step` is what messages call it. [`flush`](Self::flush) writes it.
    pub fn send(&mut self, code: Code, step: &'static str, payload: &impl Serialize) -> Result<CommandId> {
        self.queue(code, step, encode(payload)?, Reader::Sender)
    }

    /// Queues a command whose reply nobody asks for: that it failed is logged.
    pub fn notify(&mut self, code: Code, step: &'static str, payload: &impl Serialize) -> Result<()> {
        self.queue(code, step, encode(payload)?, Reader::Log).map(drop)
    }

    /// Queues WRITEFILE, whose data stand behind its JSON.
    pub fn send_file(&mut self, step: &'static str, command: &FileCommand, data: &[u8]) -> Result<CommandId> {
        let mut payload = encode(command)?;
        payload.extend_from_slice(data);
        self.queue(Code::WriteFile, step, payload, Reader::Sender)
    }

    /// Queues a command that has no payload.
    pub fn send_bare(&mut self, code: Code, step: &'static str) -> Result<CommandId> {
        self.queue(code, step, Vec::new(), Reader::Sender)
    }

    fn queue(
        &mut self,
        code: Code,
        step: &'static str,
        payload: Vec<u8>,
        reader: Reader,
    ) -> Result<CommandId> {
        let id = CommandId(self.next_id);
        // 0 is an event's.
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        self.await_reply(id, step, reader)?;
        let extended = !self.is_api4244();
        ControlFrame { code: code as u32, id: id.0, payload }.encode(extended, &mut self.outgoing);
        Ok(id)
    }

    fn await_reply(&mut self, id: CommandId, step: &'static str, reader: Reader) -> Result<()> {
        if self.commands.len() >= OUTSTANDING_MAX {
            return Err(LinkError::Protocol(format!("{OUTSTANDING_MAX} commands wait for their replies")));
        }
        self.commands.push_back(Command {
            id,
            step,
            reply: None,
            reader,
            waited: Duration::ZERO,
            excused: false,
        });
        Ok(())
    }

    /// Writes what is queued, as far as the channel takes it; [`receive`](Self::receive) goes on with it.
    pub fn flush(&mut self) -> Result<()> {
        while let count @ 1.. = self.writable() {
            match self.socket.write(&self.outgoing[..count]) {
                Ok(count) => {
                    self.outgoing.drain(..count);
                    if self.is_api4244() {
                        self.pace.wrote(count);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(source) => return Err(LinkError::Channel { step: "write", source }),
            }
        }
        Ok(())
    }

    /// Takes what has come, or as much of it as is looked at in one go. Returns whether it was anything.
    pub fn receive(&mut self) -> Result<bool> {
        self.flush()?;
        let mut any = false;
        let mut buffer = [0; READ_SIZE];
        for _ in 0..READS_MAX {
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
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // READY or NEXT may have let more be written.
                    return self.flush().map(|()| any);
                }
                Err(source) => return Err(LinkError::Channel { step: "read", source }),
            }
        }
        self.flush().map(|()| any)
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

    /// Lets `time` pass for what the agent owes.
    pub fn pass(&mut self, time: Duration) {
        let owed = self.commands.iter_mut().filter(|command| command.reply.is_none() && !command.excused);
        owed.for_each(|command| command.waited += time);
    }

    /// Returns what the agent has owed longest, and for how long. Only frames that were due make that shorter: a reply gives
    /// the commands behind it, which the agent may have come to only now, their time anew, and READY all of them.
    pub fn owed(&self) -> Option<(&'static str, Duration)> {
        let owed = self.commands.iter().filter(|command| command.reply.is_none() && !command.excused);
        // Of several that have waited as long it is the first that holds up the others.
        let longest = owed.rev().max_by_key(|command| command.waited)?;
        let step = if self.ready.is_some() { longest.step } else { "wait for the agent" };
        Some((step, longest.waited))
    }

    /// Says whether the agent can reply to a command, or has to wait for us.
    pub fn excuse(&mut self, id: CommandId, excused: bool) {
        let found = self.commands.iter_mut().find(|command| command.id == id);
        found.into_iter().for_each(|command| command.excused = excused);
    }

    /// Takes note of an event that nobody waits for. An agent that sends nothing else is not listened to for ever.
    pub fn ignore(&mut self, event: &ProcessEvent) -> Result<()> {
        log::debug!("agent: {:?} of {:?} {:?}", event.process, event.container, event.event);
        self.count_undue("events of processes that do not run")
    }

    fn count_undue(&mut self, what: &str) -> Result<()> {
        self.undue += 1;
        match self.undue {
            ..=UNDUE_MAX => Ok(()),
            _ => Err(LinkError::Protocol(format!("more than {UNDUE_MAX} {what} in a row"))),
        }
    }

    /// A frame was due: what was asked for from `first` on has its time anew.
    fn renew(&mut self, first: usize) {
        self.undue = 0;
        self.commands.iter_mut().skip(first).for_each(|command| command.waited = Duration::ZERO);
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
            (Some(Code::Error), true) => {
                let refusal = if self.is_api4244() { api4244::refusal } else { refusal };
                self.take_reply(frame.id, |step| Err(refusal(step, &frame.payload)))
            }
            (Some(Code::Next), true) if self.is_api4244() => {
                if self.pace.next(&frame.payload)? {
                    self.renew(0);
                    return Ok(());
                }
                self.count_undue("NEXT of nothing")
            }
            (Some(Code::ProcessAsyncEvent), true) => self.take_event(&frame.payload),
            (_, true) => Err(LinkError::Protocol(format!("code {} is no reply and no event", frame.code))),
        }
    }

    fn take_ready(&mut self, payload: &[u8]) -> Result<()> {
        self.renew(0);
        if self.is_api4244() {
            // What it offers above API 4244 is not asked for.
            self.ready = Some(Ready { api: API_VERSION, extension: 0, window: api4244::INPUT_WINDOW });
            return Ok(());
        }
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
        // API 4244 has no ids: its replies come in the order of the commands.
        let base = self.is_api4244();
        let waiting = |command: &Command| command.reply.is_none() && (base || command.id.0 == id);
        let Some(index) = self.commands.iter().position(waiting) else {
            return Err(LinkError::Protocol(format!("a reply to command {id}, which waits for none")));
        };
        self.renew(index + 1);
        let command = &mut self.commands[index];
        let reply = reply(command.step);
        let reader = command.reader;
        if reader == Reader::Sender {
            command.reply = Some(reply);
            return Ok(());
        }
        self.commands.remove(index);
        match (reader, reply) {
            (Reader::Version, Ok(data)) if data != API_VERSION.to_be_bytes() => {
                let version = data.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
                Err(LinkError::Protocol(format!("it speaks API {version}, not {API_VERSION}")))
            }
            (Reader::Version | Reader::Extend, Err(error)) => Err(error),
            (_, Err(error)) => {
                log::warn!("{error}");
                Ok(())
            }
            (_, Ok(_)) => Ok(()),
        }
    }

    fn take_event(&mut self, payload: &[u8]) -> Result<()> {
        let event = serde_json::from_slice(payload)
            .map_err(|error| printable(&error.to_string()))
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

#[cfg(test)]
mod tests;

#[cfg(test)]
mod pair_tests;
