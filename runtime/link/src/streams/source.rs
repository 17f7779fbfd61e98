//! The host's end of a stream to the guest: a client's descriptor, read only as far as the guest has room.

use std::io;

use agent_proto::command::{STREAM_FRAME_MAX, STREAM_HEADER};
use agent_proto::stream::encode_header;

use super::descriptor::Descriptor;

/// Where a source stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The process is not there yet.
    Idle,
    /// There may be something to read.
    Readable,
    /// Nothing there, until the descriptor is ready again.
    Waiting,
    /// At its end; the guest knows.
    Ended,
}

/// A stream's source.
#[derive(Debug)]
pub struct Source {
    seq: u64,
    descriptor: Descriptor,
    state: State,
    /// Bytes that the guest takes now.
    credit: u32,
    /// The most that `credit` may be.
    window: u32,
}

impl Source {
    /// Returns a source that reads nothing until it is started.
    pub fn new(seq: u64, descriptor: Descriptor) -> Source {
        Source { seq, descriptor, state: State::Idle, credit: 0, window: 0 }
    }

    /// The process is there: the guest takes `window` bytes. Returns whether it was not before.
    pub fn start(&mut self, window: u32) -> bool {
        let idle = self.state == State::Idle;
        if idle {
            (self.credit, self.window, self.state) = (window, window, State::Readable);
        }
        idle
    }

    /// The guest gives credit back; 0 says that it takes no more.
    pub fn give(&mut self, bytes: u32) {
        self.credit = self.credit.saturating_add(bytes).min(self.window);
        if bytes == 0 && self.state != State::Idle {
            self.state = State::Ended;
        }
    }

    /// The descriptor became readable.
    pub fn ready(&mut self) {
        if self.state == State::Waiting {
            self.state = State::Readable;
        }
    }

    /// What is read.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Whether [`frame`](Self::frame) may have something.
    pub fn has_more(&self) -> bool {
        self.state == State::Readable && self.credit > 0
    }

    /// Puts one frame into `buffer`, which holds more than a header; returns its length, 0 for none.
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
                // A terminal that was hung up is at its end, and so is whatever else cannot be read.
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
