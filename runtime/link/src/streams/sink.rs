//! The host's end of a stream from the guest: a client's descriptor and what it has not taken yet.

use std::io;
use std::sync::Arc;

use agent_proto::command::STREAM_WINDOW;

use super::StreamState;
use super::descriptor::Descriptor;

/// Bytes that have left before the guest is given credit: half of the window, so that a sender whose client keeps up
/// never waits, and a short output costs no credit at all.
const CREDIT_STEP: u32 = STREAM_WINDOW / 2;

/// What the guest has to be told about a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owed {
    /// Nothing.
    Nothing,
    /// This many bytes have left.
    Credit(u32),
    /// The client reads no more.
    Closed,
}

/// A stream's sink.
#[derive(Debug)]
pub struct Sink {
    descriptor: Descriptor,
    /// The client is gone: what comes is dropped, as on a closed pipe.
    dropping: bool,
    /// What the client has not taken; at most the window.
    waiting: Vec<u8>,
    /// How much of `waiting` is gone.
    taken: usize,
    /// Bytes that have left since the last credit.
    owed: u32,
    /// The client is gone and the guest has not been told.
    closing: bool,
    state: Arc<StreamState>,
}

impl Sink {
    /// Returns a sink that writes to `descriptor` and counts in `state`.
    pub fn new(descriptor: Descriptor, state: Arc<StreamState>) -> Sink {
        Sink { descriptor, dropping: false, waiting: Vec::new(), taken: 0, owed: 0, closing: false, state }
    }

    /// Takes what the guest sent: writes what the client takes now and keeps the rest.
    ///
    /// # Errors
    ///
    /// The guest has sent more than the window allows; what is over is dropped.
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
        // The part that has gone is dropped when it is the larger one, so that each byte moves once at the most.
        if self.taken > self.waiting.len() / 2 {
            self.waiting.drain(..self.taken);
            self.taken = 0;
        }
        self.waiting.extend_from_slice(rest);
        Ok(())
    }

    /// Writes what has waited, now that there is room.
    pub fn flush(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        self.taken += self.write(&waiting[self.taken..]);
        if self.taken < waiting.len() {
            self.waiting = waiting;
        } else {
            self.taken = 0;
        }
    }

    /// The descriptor to watch for room, if anything waits for it.
    pub fn blocked(&self) -> Option<&Descriptor> {
        (!self.waiting.is_empty()).then_some(&self.descriptor)
    }

    /// Takes what the guest has to be told.
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

    /// Writes until all is gone or the descriptor would block. Returns how much is gone, be it dropped.
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

    /// A client that went away closes the stream, as a pipe's reader would. Any other error (a full disk) drops the
    /// output, so that the container ends its work, and is reported at the end.
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

/// The guest sent more than it had credit for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than the window of {STREAM_WINDOW} bytes")]
pub struct Overrun;
