//! The host's end of a stream from the guest: a client's descriptor and the bytes that it has not accepted yet.

use std::io;
use std::sync::Arc;

use agent_proto::command::STREAM_WINDOW;
use devices::{Decoder, Encoder, StateError};
use host::sys;

use super::StreamState;
use super::descriptor::Descriptor;

/// Bytes that are delivered before the guest gets credit: half of the window, so that a sender with a fast client never
/// waits, and a short output needs no credit message.
const CREDIT_STEP: u32 = STREAM_WINDOW / 2;

/// Information that the guest must get about a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owed {
    Nothing,
    /// Credit for this many delivered bytes.
    Credit(u32),
    /// The client has disconnected.
    Closed,
}

/// What happens to a client's descriptor at the end of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Nothing: it is closed with the process.
    Nothing,
    /// It is a connection in both directions: its client is told that no data follows.
    Shutdown,
    /// The same, once all output was written.
    Due,
}

/// The host's end of a stream from the guest.
#[derive(Debug)]
pub struct Sink {
    descriptor: Descriptor,
    /// The client has disconnected or failed: output is dropped.
    dropping: bool,
    /// Output that the client has not accepted; at most the window, except for its delivered part.
    waiting: Vec<u8>,
    /// Length of the delivered part of `waiting`.
    taken: usize,
    /// Bytes delivered since the last credit.
    owed: u32,
    /// The client has disconnected and the guest was not informed.
    closing: bool,
    /// What happens to the descriptor at the end of the stream.
    end: End,
    state: Arc<StreamState>,
}

impl Sink {
    /// Returns a sink that writes to `descriptor` and counts in `state`.
    pub fn new(descriptor: Descriptor, state: Arc<StreamState>) -> Sink {
        Sink {
            descriptor,
            dropping: false,
            waiting: Vec::new(),
            taken: 0,
            owed: 0,
            closing: false,
            end: End::Nothing,
            state,
        }
    }

    /// Like [`new`](Self::new), for a connection whose client is told when no data follows.
    pub fn of_connection(descriptor: Descriptor, state: Arc<StreamState>) -> Sink {
        Sink { end: End::Shutdown, ..Sink::new(descriptor, state) }
    }

    /// Handles the end of the stream.
    pub fn end(&mut self) {
        if self.end == End::Shutdown {
            self.end = End::Due;
            self.shut_if_due();
        }
    }

    fn shut_if_due(&mut self) {
        if self.end == End::Due && self.waiting.is_empty() {
            self.end = End::Nothing;
            // A client that has disconnected needs no information.
            sys::shut_output(self.descriptor.as_fd())
                .unwrap_or_else(|error| log::debug!("shut down: {error}"));
        }
    }

    /// Writes the sink's state.
    pub fn save(&self, state: &mut Encoder) {
        state.bytes(&self.waiting[self.taken..]).u32(self.owed);
        state.u8(self.dropping.into()).u8(self.closing.into());
    }

    /// Takes over what [`save`](Self::save) wrote.
    pub fn restore(&mut self, state: &mut Decoder) -> Result<(), StateError> {
        let waiting = state.bytes()?;
        if waiting.len() > STREAM_WINDOW as usize {
            return Err(StateError::Damaged("output that waits"));
        }
        (self.waiting, self.taken, self.owed) = (waiting.to_vec(), 0, state.u32()?);
        (self.dropping, self.closing) = (state.u8()? != 0, state.u8()? != 0);
        Ok(())
    }

    /// Handles output of the guest: writes what the client accepts now and keeps the rest.
    ///
    /// # Errors
    ///
    /// The guest has sent more than the window permits. The excess is dropped.
    pub fn take(&mut self, data: &[u8]) -> Result<(), Overrun> {
        self.state.received(data.len());
        let written = if self.waiting.is_empty() { self.write(data) } else { 0 };
        let rest = &data[written..];
        if rest.is_empty() {
            return Ok(());
        }
        if self.waiting.len() - self.taken + rest.len() > STREAM_WINDOW as usize {
            self.left(rest.len());
            return Err(Overrun);
        }
        // The delivered part is removed once it is the larger one, so that each byte is moved at most once.
        if self.taken > self.waiting.len() / 2 {
            self.waiting.drain(..self.taken);
            self.taken = 0;
        }
        self.waiting.extend_from_slice(rest);
        Ok(())
    }

    /// Writes waiting output after the descriptor became writable.
    pub fn flush(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        self.taken += self.write(&waiting[self.taken..]);
        if self.taken < waiting.len() {
            self.waiting = waiting;
        } else {
            self.taken = 0;
            self.shut_if_due();
        }
    }

    /// Returns the descriptor to watch, if output waits for it.
    pub fn blocked(&self) -> Option<&Descriptor> {
        (!self.waiting.is_empty()).then_some(&self.descriptor)
    }

    /// Takes the information that the guest must get.
    pub fn take_owed(&mut self) -> Owed {
        if std::mem::take(&mut self.closing) {
            self.owed = 0;
            Owed::Closed
        } else if self.owed >= CREDIT_STEP {
            Owed::Credit(std::mem::take(&mut self.owed))
        } else {
            Owed::Nothing
        }
    }

    /// Writes until the descriptor would block. Returns the number of bytes written or dropped.
    fn write(&mut self, data: &[u8]) -> usize {
        let mut written = 0;
        while written < data.len() {
            if self.dropping {
                written = data.len();
                break;
            }
            match self.descriptor.write(&data[written..]) {
                Ok(0) => self.give_up(&io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => self.give_up(&error),
            }
        }
        self.left(written);
        written
    }

    /// Drops all further output. A disconnected client closes the stream, like the reader of a pipe. After another
    /// error (a full disk) the container continues, and the error is reported at the end.
    pub fn give_up(&mut self, error: &io::Error) {
        self.dropping = true;
        match error.raw_os_error() {
            Some(libc::EPIPE | libc::ECONNRESET | libc::EIO) => self.closing = true,
            number => self.state.failed(number.unwrap_or(libc::EIO)),
        }
    }

    fn left(&mut self, bytes: usize) {
        self.owed = self.owed.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        self.state.delivered(bytes);
    }
}

/// The guest has sent more bytes than it had credit for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("output exceeds the window of {STREAM_WINDOW} bytes")]
pub struct Overrun;
