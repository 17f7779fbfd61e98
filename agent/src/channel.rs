//! A port to the host, non-blocking, and the control channel above it.

use alloc::vec::Vec;

use agent_proto::command::{API_VERSION, Code, EXTENSION_VERSION, STREAM_WINDOW};
use agent_proto::control::{ControlCodec, ControlFrame};
use agent_proto::payload::{ErrorReply, Ready};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use serde::Serialize;

use crate::fault::{Fault, Step};
use crate::relay::Relay;
use crate::sys;

/// Bytes of the control channel that are read at a time.
const CONTROL_READ: usize = 8 << 10;
/// Bytes of unsent replies at which no further command is read: the host does not read its replies.
const CONTROL_OUT_MAX: usize = 64 << 10;
/// Bytes of output buffer that an idle port keeps.
const KEEP: usize = 64 << 10;

/// What API 4244 says of a KILLCONTAINER that failed.
const KILL_TEXTS: [&str; 5] =
    ["no such container", "invalid signal", "no permission", "no such process", "kill failed"];

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// So many bytes.
    Data(usize),
    /// None until the next event.
    Nothing,
    /// The host has closed its end.
    Closed,
}

/// One of the two ports. Events are edge-triggered: a port is readable and writable until it says otherwise.
#[derive(Debug)]
pub struct Port {
    fd: OwnedFd,
    readable: bool,
    writable: bool,
    /// A large frame, which goes before `out`.
    relay: Option<Relay>,
    out: Vec<u8>,
    sent: usize,
}

impl Port {
    /// Returns a port over a non-blocking descriptor.
    pub fn new(fd: OwnedFd) -> Port {
        Port { fd, readable: true, writable: true, relay: None, out: Vec::new(), sent: 0 }
    }

    /// Takes note of an event.
    pub fn woken(&mut self) {
        self.readable = true;
        self.writable = true;
    }

    /// Returns true while a read may bring something.
    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// Reads at most `max` bytes and appends them to `into`.
    pub fn read(&mut self, into: &mut Vec<u8>, max: usize) -> Result<Input, Fault> {
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

    /// Returns the buffer that [`flush`](Self::flush) sends; append to it.
    pub fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Returns the number of bytes that wait to be sent.
    pub fn unsent(&self) -> usize {
        self.out.len() - self.sent + self.relay.as_ref().map_or(0, Relay::left)
    }

    /// Queues a frame of at most `max` bytes that the pipe `from` has, without copying them; returns their number. Nothing
    /// may be queued before it.
    pub fn relay(&mut self, seq: u64, from: &OwnedFd, max: usize) -> rustix::io::Result<usize> {
        let relay = match &mut self.relay {
            Some(relay) => relay,
            none => none.insert(Relay::new()?),
        };
        relay.load(seq, from, max)
    }

    /// Sends what the host takes now; returns true if that was something.
    pub fn flush(&mut self) -> Result<bool, Fault> {
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
                // Nobody is there to read it: what happens next is the reading side's to say.
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

/// The control channel: frames, NEXT, and the form that both sides agreed on.
#[derive(Debug)]
pub struct Control {
    port: Port,
    codec: ControlCodec,
    scratch: Vec<u8>,
    /// Bytes taken that NEXT has not told the host of.
    owed: usize,
    /// A frame has been taken: from then on EXTEND comes too late.
    begun: bool,
}

impl Control {
    /// Returns the channel over `fd` and sends READY if the host takes it at once.
    pub fn new(fd: OwnedFd) -> Result<Control, Fault> {
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

    /// Returns the port below.
    pub fn port(&mut self) -> &mut Port {
        &mut self.port
    }

    /// Returns true once the extended form is in force.
    pub fn is_extended(&self) -> bool {
        self.codec.is_extended()
    }

    /// Begins the extended form if no frame but EXTEND was taken before.
    pub fn extend(&mut self, first: bool) {
        if first {
            self.codec.set_extended(true);
        }
    }

    /// Takes the host's next message; true with it says that it is the link's first.
    pub fn take(&mut self) -> Result<Option<(ControlFrame, bool)>, Fault> {
        if self.port.unsent() > CONTROL_OUT_MAX {
            return Ok(None);
        }
        let frame =
            self.codec.next().map_err(|error| Fault::failed(alloc::format!("control channel: {error}")))?;
        Ok(frame.map(|frame| (frame, !core::mem::replace(&mut self.begun, true))))
    }

    /// Reads what is there into the codec. Every frame must have been taken out before.
    pub fn fill(&mut self) -> Result<Input, Fault> {
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

    /// Tells an API 4244 host that its bytes were taken: it sends the next ones only then. A host that begins with
    /// EXTEND gets no NEXT at all, so nothing is said until the first frame's code is known.
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

    /// Queues the reply to message `id`. In the base form an error has no text, but for KILLCONTAINER's.
    pub fn reply(&mut self, id: u32, reply: Result<Vec<u8>, Fault>, command: u32) {
        match reply {
            Ok(data) => self.send(Code::Ack, id, data),
            Err(fault) if self.is_extended() => self.send(Code::Error, id, json(&ErrorReply::from(fault))),
            Err(fault) if command == Code::KillContainer as u32 => {
                // API 4244's texts have no operand, and there are no others.
                let text = fault.text.split(':').next().filter(|text| KILL_TEXTS.contains(text));
                let text = text.unwrap_or(KILL_TEXTS[4]);
                self.send(Code::Error, id, [text.as_bytes(), &[0]].concat());
            }
            Err(_) => self.send(Code::Error, id, Vec::new()),
        }
    }
}

/// Returns `value` as JSON; the wire's types have no maps with keys that are not strings, which alone could fail.
pub fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}
