//! The host's end of a stream to the guest: a client's descriptor, which is read only as far as the guest has granted
//! credit.

use std::io;

use agent_proto::command::{STREAM_FRAME_MAX, STREAM_HEADER, STREAM_WINDOW};
use agent_proto::stream::encode_header;
use devices::{Decoder, Encoder, StateError};

use super::descriptor::Descriptor;

/// State of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The process does not exist yet.
    Idle,
    /// The descriptor may be readable.
    Readable,
    /// The descriptor is empty, until it becomes ready again.
    Waiting,
    /// The source has ended, and the guest is informed.
    Ended,
}

/// The host's end of a stream to the guest.
#[derive(Debug)]
pub struct Source {
    seq: u64,
    descriptor: Descriptor,
    state: State,
    /// Bytes that the guest accepts now.
    credit: u32,
    /// Maximum of `credit`.
    window: u32,
}

impl Source {
    /// Returns a source that reads nothing before [`start`](Self::start).
    pub fn new(seq: u64, descriptor: Descriptor) -> Source {
        Source { seq, descriptor, state: State::Idle, credit: 0, window: 0 }
    }

    /// Writes the source's state. Whether there is input is found out again.
    pub fn save(&self, state: &mut Encoder) {
        let phase = match self.state {
            State::Idle => 0,
            State::Readable | State::Waiting => 1,
            State::Ended => 2,
        };
        state.u8(phase).u32(self.credit).u32(self.window);
    }

    /// Takes over what [`save`](Self::save) wrote.
    pub fn restore(&mut self, state: &mut Decoder) -> Result<(), StateError> {
        self.state = match state.u8()? {
            0 => State::Idle,
            1 => State::Readable,
            2 => State::Ended,
            _ => return Err(StateError::Damaged("the input of a stream")),
        };
        (self.credit, self.window) = (state.u32()?, state.u32()?);
        if self.credit > self.window || self.window > STREAM_WINDOW {
            return Err(StateError::Damaged("the credit of a stream"));
        }
        Ok(())
    }

    /// Whether the descriptor is to be watched.
    pub fn is_started(&self) -> bool {
        self.state != State::Idle
    }

    /// Starts reading: the process exists and accepts `window` bytes. Returns false if it was started before.
    pub fn start(&mut self, window: u32) -> bool {
        let idle = self.state == State::Idle;
        if idle {
            (self.credit, self.window, self.state) = (window, window, State::Readable);
        }
        idle
    }

    /// Adds credit from the guest. 0 means that the process reads no more.
    pub fn give(&mut self, bytes: u32) {
        self.credit = self.credit.saturating_add(bytes).min(self.window);
        if bytes == 0 && self.state != State::Idle {
            self.state = State::Ended;
        }
    }

    /// Records that the descriptor became readable.
    pub fn ready(&mut self) {
        if self.state == State::Waiting {
            self.state = State::Readable;
        }
    }

    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Whether [`frame`](Self::frame) may return a frame.
    pub fn has_more(&self) -> bool {
        self.state == State::Readable && self.credit > 0
    }

    /// Writes one frame to `buffer`, which must be longer than a header. Returns its length, 0 for no frame.
    pub fn frame(&mut self, buffer: &mut [u8]) -> usize {
        if !self.has_more() {
            return 0;
        }
        let room = buffer.len().min(STREAM_FRAME_MAX).min(STREAM_HEADER + self.credit as usize);
        let read = match self.descriptor.read(&mut buffer[STREAM_HEADER..room]) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.state = State::Waiting;
                return 0;
            }
            Err(error) => {
                // A terminal that was hung up has ended, and other read errors are handled the same way.
                log::debug!("read stdin: {error}");
                0
            }
        };
        if read == 0 {
            self.state = State::Ended;
        }
        self.credit -= read as u32;
        buffer[..STREAM_HEADER].copy_from_slice(&encode_header(self.seq, read));
        STREAM_HEADER + read
    }
}
