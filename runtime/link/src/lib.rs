//! The host's side of the control channel: commands to the agent, their replies, and the agent's events.
//!
//! An [`AgentLink`] belongs to the main thread and never blocks: [`send`](AgentLink::send) queues a command, and
//! [`receive`](AgentLink::receive) reads replies and events. Commands for the agent of this project are written before
//! its READY arrives: EXTEND switches to the extended form for all following frames, and replies are matched by id. To
//! another agent nothing is written before its READY, and to an agent of API 4244 without the extension ([`api4244`])
//! never more than it acknowledges.

// A part of the command, not a library: only items whose names and types do not explain them have a comment.
#![allow(missing_docs)]

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use agent_proto::FrameError;
use agent_proto::command::{API_VERSION, Code, EXTENSION_VERSION, Protocol, STREAM_WINDOW};
use agent_proto::control::{ControlCodec, ControlFrame};
use agent_proto::payload::{ErrorCode, ErrorReply, Extend, ProcessEvent, Ready};
use agent_proto::revival::{ENTROPY_LEN, Revival};
use devices::StateError;
use host::HostError;
use host::text::printable;
use serde::Serialize;

pub mod api4244;
mod saved;
pub mod streams;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

use api4244::Pace;

/// Bytes read from the channel at a time.
const READ_SIZE: usize = 16 << 10;
/// Maximum number of commands without a reply. Each container of a pod needs several.
const OUTSTANDING_MAX: usize = 1024;
/// Maximum number of events that the owner has not taken.
const EVENTS_MAX: usize = 1024;
/// Maximum number of consecutive frames that nothing in the host waits for.
const UNDUE_MAX: u32 = 1024;
/// Maximum number of reads before the owner handles replies and events.
const READS_MAX: usize = 64;

const READ: &str = "read the agent's control channel";

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error(transparent)]
    Channel(#[from] HostError),
    #[error("read the agent's control channel")]
    Frame(#[source] FrameError),
    #[error("read the agent's stream channel")]
    Streams(#[source] FrameError),
    /// A frame violates the protocol: an unknown code, an unexpected reply, or too many frames.
    #[error("the agent's control channel: {0}")]
    Protocol(String),
    /// The agent's version or extension is not supported.
    #[error(
        "the agent offers {0}, not API {API_VERSION} with extension {EXTENSION_VERSION} (with --agent api-4244 vmm \
         runs an agent without the extension, and omits features that need it)"
    )]
    Version(String),
    #[error("{step}: {message}")]
    Refused {
        /// What the command was to do, such as `start the pod`.
        step: &'static str,
        code: ErrorCode,
        /// The agent's text, made printable.
        message: String,
    },
    #[error("encode a command")]
    Encode(#[source] serde_json::Error),
    /// The channel cannot be saved now, or cannot continue from a state.
    #[error("the agent's channels: {0}")]
    State(#[from] StateError),
}

pub type Result<T, E = LinkError> = std::result::Result<T, E>;

/// Handle of a command that was sent, for [`AgentLink::reply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandId(u32);

struct Command {
    id: CommandId,
    step: &'static str,
    /// `None` until the reply has arrived.
    reply: Option<Result<Vec<u8>>>,
    reader: Reader,
    /// Time for which the reply has been outstanding, without time in which the command was excused.
    waited: Duration,
    /// Whether the agent cannot reply before the host does something else.
    excused: bool,
}

/// The consumer of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    /// The sender of the command, by [`AgentLink::reply`].
    Sender,
    /// None: only a failure is logged.
    Log,
    /// The link: after a refused EXTEND the agent does not understand any of the following frames.
    Extend,
    /// The link: a machine that has the random numbers of others must run nothing.
    Revive,
    /// The link: the reply has the data of GETVERSION.
    Version,
}

/// The host's side of the control channel.
pub struct AgentLink {
    socket: UnixStream,
    codec: ControlCodec,
    protocol: Protocol,
    /// Pacing of commands in the base form.
    pace: Pace,
    /// Bytes that the socket has not accepted yet.
    outgoing: Vec<u8>,
    next_id: u32,
    commands: VecDeque<Command>,
    events: VecDeque<ProcessEvent>,
    /// Consecutive frames that nothing in the host waits for.
    undue: u32,
    ready: Option<Ready>,
    /// What is written after EXTEND, at the time when that is written.
    opening: Option<Opening>,
}

/// A command that is made when it is written, because it contains the time.
struct Opening {
    /// Its place in the outgoing bytes.
    at: usize,
    id: CommandId,
    entropy: [u8; ENTROPY_LEN],
    clock: fn() -> u64,
}

impl AgentLink {
    /// Opens the channel to an agent with `protocol`. The first frame is EXTEND, or GETVERSION in the base form.
    pub fn new(socket: UnixStream, protocol: Protocol) -> Result<AgentLink> {
        socket.set_nonblocking(true).map_err(HostError::step("open the agent's control channel"))?;
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
            opening: None,
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

    /// Opens the channel to an agent to which nothing is written: the machine is to be saved once READY has arrived.
    pub fn silent(socket: UnixStream) -> Result<AgentLink> {
        let mut link = AgentLink::new(socket, Protocol::Extended)?;
        link.outgoing.clear();
        link.commands.clear();
        Ok(link)
    }

    /// Opens the channel to this project's agent in a machine that continues from a saved one, whose agent had said READY and
    /// nobody had answered. The second frame is REVIVE, before all other commands, with `entropy` and the time that `clock`
    /// returns when it is written.
    pub fn revived(socket: UnixStream, entropy: [u8; ENTROPY_LEN], clock: fn() -> u64) -> Result<AgentLink> {
        let mut link = AgentLink::new(socket, Protocol::Extended)?;
        link.ready = Some(Ready { api: API_VERSION, extension: EXTENSION_VERSION, window: STREAM_WINDOW });
        link.codec.set_extended(true);
        let id = CommandId(link.next_id);
        link.next_id += 1;
        link.await_reply(id, "make the machine one of its own", Reader::Revive)?;
        link.opening = Some(Opening { at: link.outgoing.len(), id, entropy, clock });
        Ok(link)
    }

    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether the agent uses API 4244 without the extension.
    pub fn is_api4244(&self) -> bool {
        self.protocol == Protocol::Api4244
    }

    /// Returns the descriptor to poll for [`receive`](Self::receive).
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Returns the poll events for [`fd`](Self::fd).
    pub fn interest(&self) -> i16 {
        if self.writable() == 0 { libc::POLLIN } else { libc::POLLIN | libc::POLLOUT }
    }

    /// Returns how many queued bytes may be written now.
    fn writable(&self) -> usize {
        match self.protocol {
            Protocol::Extended => self.outgoing.len(),
            Protocol::Negotiated | Protocol::Api4244 if self.ready.is_none() => 0,
            Protocol::Negotiated => self.outgoing.len(),
            Protocol::Api4244 => self.outgoing.len().min(self.pace.room()),
        }
    }

    /// Queues a command. `step` names it in errors. [`flush`](Self::flush) writes it.
    pub fn send(&mut self, code: Code, step: &'static str, payload: &impl Serialize) -> Result<CommandId> {
        self.queue(code, step, encode(payload)?, Reader::Sender)
    }

    /// Queues a command without a consumer for its reply. A failure is logged.
    pub fn notify(&mut self, code: Code, step: &'static str, payload: &impl Serialize) -> Result<()> {
        self.queue(code, step, encode(payload)?, Reader::Log).map(drop)
    }

    /// Queues a command without payload.
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
        // Events have id 0.
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        self.await_reply(id, step, reader)?;
        let extended = !self.is_api4244();
        ControlFrame { code: code as u32, id: id.0, payload }.encode(extended, &mut self.outgoing);
        Ok(id)
    }

    fn await_reply(&mut self, id: CommandId, step: &'static str, reader: Reader) -> Result<()> {
        if self.commands.len() >= OUTSTANDING_MAX {
            return Err(LinkError::Protocol(format!(
                "limit of {OUTSTANDING_MAX} commands without a reply reached"
            )));
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

    /// Writes queued bytes until the socket would block. [`receive`](Self::receive) writes the rest.
    pub fn flush(&mut self) -> Result<()> {
        if let Some(Opening { at, id, entropy, clock }) = self.opening.take() {
            let mut frame = Vec::new();
            let payload = Revival { realtime: clock(), entropy }.encode();
            ControlFrame { code: Code::Revive as u32, id: id.0, payload }.encode(true, &mut frame);
            self.outgoing.splice(at..at, frame);
        }
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
                Err(error) => return Err(HostError::step("write the agent's control channel")(error).into()),
            }
        }
        Ok(())
    }

    /// Reads and handles frames, up to a limit per call. Returns whether it read anything.
    pub fn receive(&mut self) -> Result<bool> {
        self.flush()?;
        let mut any = false;
        let mut buffer = [0; READ_SIZE];
        for _ in 0..READS_MAX {
            match self.socket.read(&mut buffer) {
                Ok(0) => return Err(HostError::step(READ)(io::ErrorKind::UnexpectedEof).into()),
                Ok(count) => {
                    any = true;
                    self.codec.push(&buffer[..count]);
                    while let Some(frame) = self.codec.next().map_err(LinkError::Frame)? {
                        self.take(frame)?;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // READY or NEXT may permit further writes.
                    return self.flush().map(|()| any);
                }
                Err(error) => return Err(HostError::step(READ)(error).into()),
            }
        }
        self.flush().map(|()| any)
    }

    /// Returns the agent's READY, once it has arrived.
    pub fn ready(&self) -> Option<&Ready> {
        self.ready.as_ref()
    }

    /// Takes the reply to a command if it has arrived. Each reply can be taken once.
    pub fn reply(&mut self, id: CommandId) -> Option<Result<Vec<u8>>> {
        let index = self.commands.iter().position(|command| command.id == id && command.reply.is_some())?;
        self.commands.remove(index)?.reply
    }

    /// Adds `time` to the waiting time of all outstanding replies.
    pub fn pass(&mut self, time: Duration) {
        let owed = self.commands.iter_mut().filter(|command| command.reply.is_none() && !command.excused);
        owed.for_each(|command| command.waited += time);
    }

    /// Returns the step of the command whose reply has been outstanding for longest, and the time. Only expected frames
    /// reset the time: a reply resets that of all later commands, because the agent may have started with them only
    /// now, and READY that of all commands.
    pub fn owed(&self) -> Option<(&'static str, Duration)> {
        let owed = self.commands.iter().filter(|command| command.reply.is_none() && !command.excused);
        // Of several commands with the same time, the first one blocks the others.
        let longest = owed.rev().max_by_key(|command| command.waited)?;
        let step = if self.ready.is_some() { longest.step } else { "wait for the agent" };
        Some((step, longest.waited))
    }

    /// Sets whether a command is excused: the agent cannot reply before the host does something else.
    pub fn excuse(&mut self, id: CommandId, excused: bool) {
        let found = self.commands.iter_mut().find(|command| command.id == id);
        found.into_iter().for_each(|command| command.excused = excused);
    }

    /// Counts an event of an unknown process. An agent that sends only such events is refused after a limit.
    pub fn ignore(&mut self, event: &ProcessEvent) -> Result<()> {
        log::debug!("agent: {:?} of {:?} {:?}", event.process, event.container, event.event);
        self.count_undue("events of processes that are not running")
    }

    fn count_undue(&mut self, what: &str) -> Result<()> {
        self.undue += 1;
        match self.undue {
            ..=UNDUE_MAX => Ok(()),
            _ => Err(LinkError::Protocol(format!("more than {UNDUE_MAX} {what} in a row"))),
        }
    }

    /// Records an expected frame: resets the waiting time of the commands from index `first` on.
    fn renew(&mut self, first: usize) {
        self.undue = 0;
        self.commands.iter_mut().skip(first).for_each(|command| command.waited = Duration::ZERO);
    }

    /// Returns the number of commands without a reply or with a reply that was not taken.
    pub fn outstanding(&self) -> usize {
        self.commands.len()
    }

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
                self.count_undue("NEXT frames that acknowledge nothing")
            }
            (Some(Code::ProcessAsyncEvent), true) => self.take_event(&frame.payload),
            (_, true) => {
                Err(LinkError::Protocol(format!("code {} is neither a reply nor an event", frame.code)))
            }
        }
    }

    fn take_ready(&mut self, payload: &[u8]) -> Result<()> {
        self.renew(0);
        if self.is_api4244() {
            // The link does not use what the agent offers above API 4244.
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
        // The host buffers at most its own window for a slow client, so that the agent must not send more.
        if ready.window == 0 || ready.window > STREAM_WINDOW {
            return Err(LinkError::Protocol(format!(
                "READY: window of {} bytes, not 1 to {STREAM_WINDOW}",
                ready.window
            )));
        }
        self.ready = Some(ready);
        self.codec.set_extended(true);
        Ok(())
    }

    fn take_reply(&mut self, id: u32, reply: impl FnOnce(&'static str) -> Result<Vec<u8>>) -> Result<()> {
        // API 4244 has no ids: replies arrive in the order of the commands.
        let base = self.is_api4244();
        let waiting = |command: &Command| command.reply.is_none() && (base || command.id.0 == id);
        let Some(index) = self.commands.iter().position(waiting) else {
            return Err(LinkError::Protocol(format!("unexpected reply to command {id}")));
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
                Err(LinkError::Protocol(format!("GETVERSION: API {version}, not {API_VERSION}")))
            }
            (Reader::Version | Reader::Extend | Reader::Revive, Err(error)) => Err(error),
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
            .map_err(|error| LinkError::Protocol(format!("malformed event: {error}")))?;
        if self.events.len() >= EVENTS_MAX {
            return Err(LinkError::Protocol(format!("limit of {EVENTS_MAX} unread events reached")));
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
