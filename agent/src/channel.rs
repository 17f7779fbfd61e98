//! A non-blocking port to the host, and the control channel on top of it.

use alloc::vec::Vec;

use agent_proto::command::{API_VERSION, Code, EXTENSION_VERSION, STREAM_WINDOW};
use agent_proto::control::{ControlCodec, ControlFrame};
use agent_proto::payload::{ErrorReply, Ready};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use serde::Serialize;

use crate::error::{Error, Step};
use crate::relay::Relay;
use crate::sys;

/// Limit of bytes of the control channel that are read at a time.
const CONTROL_READ: usize = 8 << 10;
/// Limit of unsent replies in bytes. Above it no further command is read, because the host does not read its replies.
const CONTROL_OUT_MAX: usize = 64 << 10;
/// Size of the output buffer that an idle port keeps, in bytes.
const KEEP: usize = 64 << 10;

/// API 4244's error texts of KILLCONTAINER.
const KILL_TEXTS: [&str; 5] =
    ["no such container", "invalid signal", "no permission", "no such process", "kill failed"];

/// Result of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Number of bytes read.
    Data(usize),
    /// There is no input until the next event.
    Nothing,
    /// The host has closed its end.
    Closed,
}

/// One of the two ports. Events are edge-triggered: a port counts as readable and writable until a call would block.
#[derive(Debug)]
pub struct Port {
    fd: OwnedFd,
    readable: bool,
    writable: bool,
    /// A large frame, which is sent before `out`.
    relay: Option<Relay>,
    out: Vec<u8>,
    sent: usize,
}

impl Port {
    /// Returns a port for a non-blocking file descriptor.
    pub fn new(fd: OwnedFd) -> Port {
        Port { fd, readable: true, writable: true, relay: None, out: Vec::new(), sent: 0 }
    }

    /// Marks the port as readable and writable after an event.
    pub fn woken(&mut self) {
        self.readable = true;
        self.writable = true;
    }

    /// Whether a read may return input.
    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// Reads at most `max` bytes and appends them to `into`.
    pub fn read(&mut self, into: &mut Vec<u8>, max: usize) -> Result<Input, Error> {
        match sys::read_append(self.fd.as_fd(), into, max) {
            Ok(0) | Err(Errno::CONNRESET | Errno::PIPE) => {
                self.readable = false;
                Ok(Input::Closed)
            }
            Ok(count) => Ok(Input::Data(count)),
            Err(Errno::AGAIN) => {
                self.readable = false;
                Ok(Input::Nothing)
            }
            Err(Errno::INTR) => Ok(Input::Nothing),
            Err(errno) => Err(errno).step("read", "port"),
        }
    }

    /// Returns the buffer that [`flush`](Self::flush) sends, for appending.
    pub fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Returns the number of unsent bytes.
    pub fn unsent(&self) -> usize {
        self.out.len() - self.sent + self.relay.as_ref().map_or(0, Relay::left)
    }

    /// Queues a frame of at most `max` bytes from the pipe `from` without copying them. Returns their number. The queue
    /// must be empty.
    pub fn relay(&mut self, seq: u64, from: &OwnedFd, max: usize) -> rustix::io::Result<usize> {
        let relay = match &mut self.relay {
            Some(relay) => relay,
            none => none.insert(Relay::new()?),
        };
        relay.load(seq, from, max)
    }

    /// Sends as much as the host accepts now. Returns whether anything was sent.
    pub fn flush(&mut self) -> Result<bool, Error> {
        let mut progress = false;
        while self.writable && self.unsent() > 0 {
            let relay = self.relay.as_mut().filter(|relay| relay.left() > 0);
            let relayed = relay.is_some();
            let sent = match relay {
                Some(relay) => relay.send(&self.fd),
                None => rustix::io::write(&self.fd, &self.out[self.sent..]),
            };
            match sent {
                Ok(count) => {
                    progress = true;
                    self.sent += if relayed { 0 } else { count };
                }
                Err(Errno::AGAIN) => self.writable = false,
                Err(Errno::INTR) => {}
                // There is no reader. The next read reports the closed port.
                Err(Errno::PIPE | Errno::CONNRESET) => {
                    self.relay = None;
                    self.sent = self.out.len();
                }
                Err(errno) => return Err(errno).step("write", "port"),
            }
        }
        if self.sent == self.out.len() {
            self.sent = 0;
            self.out.clear();
            self.out.shrink_to(KEEP);
        }
        Ok(progress)
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The control channel: frames, NEXT, and the negotiated form.
#[derive(Debug)]
pub struct Control {
    port: Port,
    codec: ControlCodec,
    scratch: Vec<u8>,
    /// Number of bytes read that NEXT has not confirmed yet.
    owed: usize,
    /// A frame has been taken, so EXTEND is no longer possible.
    begun: bool,
}

impl Control {
    /// Returns the channel for `fd`, and sends READY if the host accepts it at once.
    pub fn new(fd: OwnedFd) -> Result<Control, Error> {
        let mut control = Control {
            port: Port::new(fd),
            codec: ControlCodec::new(),
            scratch: Vec::new(),
            owed: 0,
            begun: false,
        };
        let offer = Ready { api: API_VERSION, extension: EXTENSION_VERSION, window: STREAM_WINDOW };
        control.send(Code::Ready, 0, json(&offer));
        control.port.flush()?;
        Ok(control)
    }

    /// Returns the underlying port.
    pub fn port(&mut self) -> &mut Port {
        &mut self.port
    }

    /// Whether the extended form is in use.
    pub fn is_extended(&self) -> bool {
        self.codec.is_extended()
    }

    /// Starts the extended form if EXTEND is the first frame.
    pub fn extend(&mut self, first: bool) {
        if first {
            self.codec.set_extended(true);
        }
    }

    /// Takes the host's next message, with a flag that is true for the first message of the link.
    pub fn take(&mut self) -> Result<Option<(ControlFrame, bool)>, Error> {
        if self.port.unsent() > CONTROL_OUT_MAX {
            return Ok(None);
        }
        let frame =
            self.codec.next().map_err(|error| Error::failed(alloc::format!("control channel: {error}")))?;
        Ok(frame.map(|frame| (frame, !core::mem::replace(&mut self.begun, true))))
    }

    /// Reads the available input into the codec. All frames must have been taken out before.
    pub fn fill(&mut self) -> Result<Input, Error> {
        if !self.port.is_readable() || self.port.unsent() > CONTROL_OUT_MAX {
            return Ok(Input::Nothing);
        }
        self.scratch.clear();
        let input = self.port.read(&mut self.scratch, CONTROL_READ)?;
        if let Input::Data(count) = input {
            self.codec.push(&self.scratch);
            self.owed += count;
            self.send_next();
        }
        Ok(input)
    }

    /// Confirms the bytes read to an API 4244 host, which sends more only after that. A host that starts with EXTEND
    /// gets no NEXT at all, so nothing is sent until the code of the first frame is known.
    fn send_next(&mut self) {
        if self.is_extended() {
            self.owed = 0;
        }
        let extends = match self.codec.peek_code() {
            _ if self.begun => false,
            None => return,
            Some(code) => code == Code::Extend as u32,
        };
        if extends || self.owed == 0 {
            return;
        }
        let owed = u32::try_from(core::mem::take(&mut self.owed)).unwrap_or(u32::MAX);
        self.send(Code::Next, 0, owed.to_be_bytes().into());
    }

    /// Queues a message.
    pub fn send(&mut self, code: Code, id: u32, payload: Vec<u8>) {
        let extended = self.is_extended();
        ControlFrame { code: code as u32, id, payload }.encode(extended, self.port.out());
    }

    /// Queues the reply to message `id`. In the base form only errors of KILLCONTAINER have a text.
    pub fn reply(&mut self, id: u32, reply: Result<Vec<u8>, Error>, command: u32) {
        match reply {
            Ok(data) => self.send(Code::Ack, id, data),
            Err(error) if self.is_extended() => self.send(Code::Error, id, json(&ErrorReply::from(error))),
            Err(error) if command == Code::KillContainer as u32 => {
                // API 4244 knows only these texts, without an operand.
                let text = error.text.split(':').next().filter(|text| KILL_TEXTS.contains(text));
                let text = text.unwrap_or(KILL_TEXTS[4]);
                self.send(Code::Error, id, [text.as_bytes(), &[0]].concat());
            }
            Err(_) => self.send(Code::Error, id, Vec::new()),
        }
    }
}

/// Returns `value` as JSON. This cannot fail, because the wire types have no maps with other keys than strings.
pub fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}
