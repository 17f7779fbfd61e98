//! The stream channel's codec: `u64 seq, u32 length, data`, big-endian, length with its header.
//!
//! [`StreamSplitter`] hands data on in the pieces it arrives in, [`StreamCodec`] gathers whole frames. An empty frame
//! ends its stream. Frames of [`CREDIT_SEQ`](crate::command::CREDIT_SEQ) carry [`Credit`] records in the extended form.

use alloc::vec::Vec;

use crate::FrameError;
use crate::command::{CREDIT_SEQ, STREAM_FRAME_MAX, STREAM_HEADER};

/// Returns the header of a frame of `len` bytes of data.
///
/// `len` is at most [`STREAM_FRAME_MAX`]` - `[`STREAM_HEADER`], else the peer refuses the frame.
pub fn encode_header(seq: u64, len: usize) -> [u8; STREAM_HEADER] {
    let length = u32::try_from(STREAM_HEADER + len).unwrap_or(u32::MAX);
    let mut header = [0; STREAM_HEADER];
    header[..8].copy_from_slice(&seq.to_be_bytes());
    header[8..].copy_from_slice(&length.to_be_bytes());
    header
}

/// A part of a frame's data, in the bytes that were handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The stream.
    pub seq: u64,
    /// Its data; empty only for a frame that has none, which ends the stream.
    pub data: &'a [u8],
    /// The frame's last piece.
    pub end: bool,
}

/// Splits the channel's bytes into pieces of frames; copies and keeps no data.
#[derive(Debug, Default)]
pub struct StreamSplitter {
    header: [u8; STREAM_HEADER],
    /// Bytes of `header` that are there.
    filled: usize,
    /// Bytes of data that the current frame still has; only meaningful with a full header.
    left: usize,
}

impl StreamSplitter {
    /// Returns a splitter that stands before a frame.
    pub fn new() -> StreamSplitter {
        StreamSplitter::default()
    }

    /// Takes the next piece off the front of `input`, or returns `None` when all of it is taken.
    ///
    /// # Errors
    ///
    /// A length that no frame can have; the channel has lost its place then and every further call says the same.
    pub fn split<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Piece<'a>>, FrameError> {
        if self.filled < STREAM_HEADER {
            let (head, rest) = input.split_at(input.len().min(STREAM_HEADER - self.filled));
            self.header[self.filled..self.filled + head.len()].copy_from_slice(head);
            self.filled += head.len();
            *input = rest;
            if self.filled < STREAM_HEADER {
                return Ok(None);
            }
            self.left = self.length()? - STREAM_HEADER;
            if self.left == 0 {
                self.filled = 0;
                return Ok(Some(Piece { seq: self.seq(), data: &[], end: true }));
            }
        }
        // A refused header stays refused: `left` was never set from it.
        self.length()?;
        if input.is_empty() {
            return Ok(None);
        }
        let (data, rest) = input.split_at(input.len().min(self.left));
        *input = rest;
        self.left -= data.len();
        let end = self.left == 0;
        if end {
            self.filled = 0;
        }
        Ok(Some(Piece { seq: self.seq(), data, end }))
    }

    fn seq(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.header;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }

    fn length(&self) -> Result<usize, FrameError> {
        let [.., a, b, c, d] = self.header;
        FrameError::check(u32::from_be_bytes([a, b, c, d]), STREAM_HEADER, STREAM_FRAME_MAX)
    }
}

/// A whole frame of the stream channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamFrame {
    /// The stream.
    pub seq: u64,
    /// Its data; empty at the stream's end.
    pub data: Vec<u8>,
}

impl StreamFrame {
    /// Appends the frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&encode_header(self.seq, self.data.len()));
        out.extend_from_slice(&self.data);
    }
}

/// Turns the channel's bytes into whole frames.
///
/// It holds at most one frame and what was pushed after it: take every frame out before the next [`push`](Self::push).
#[derive(Debug, Default)]
pub struct StreamCodec {
    buffer: Vec<u8>,
    start: usize,
    splitter: StreamSplitter,
    data: Vec<u8>,
}

impl StreamCodec {
    /// Returns a codec that holds nothing.
    pub fn new() -> StreamCodec {
        StreamCodec::default()
    }

    /// Takes bytes of the channel.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next whole frame, or `None` until more bytes are pushed.
    ///
    /// # Errors
    ///
    /// As [`StreamSplitter::split`].
    #[allow(clippy::should_implement_trait, reason = "an iterator cannot say that it needs more bytes")]
    pub fn next(&mut self) -> Result<Option<StreamFrame>, FrameError> {
        loop {
            let mut input = &self.buffer[self.start..];
            let piece = self.splitter.split(&mut input);
            self.start = self.buffer.len() - input.len();
            let Some(piece) = piece? else { return Ok(None) };
            self.data.extend_from_slice(piece.data);
            if piece.end {
                return Ok(Some(StreamFrame { seq: piece.seq, data: core::mem::take(&mut self.data) }));
            }
        }
    }
}

/// Bytes of one [`Credit`] record.
pub const CREDIT_RECORD: usize = 12;

/// Gives a sender credit back: its peer took `bytes` of the stream's data.
///
/// A record of 0 bytes says that nothing more of the stream is taken: its reader has closed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// The stream.
    pub seq: u64,
    /// Bytes that may be sent in addition; 0 when the reader is gone.
    pub bytes: u32,
}

impl Credit {
    /// Appends a frame of these records to `out`; nothing when there are none.
    ///
    /// At most [`Credit::FRAME_MAX`] records fit a frame.
    pub fn encode(records: &[Credit], out: &mut Vec<u8>) {
        if records.is_empty() {
            return;
        }
        out.extend_from_slice(&encode_header(CREDIT_SEQ, records.len() * CREDIT_RECORD));
        for record in records {
            out.extend_from_slice(&record.seq.to_be_bytes());
            out.extend_from_slice(&record.bytes.to_be_bytes());
        }
    }

    /// The most records that one frame holds.
    pub const FRAME_MAX: usize = (STREAM_FRAME_MAX - STREAM_HEADER) / CREDIT_RECORD;
}

/// Gathers credit records from the pieces of [`CREDIT_SEQ`](crate::command::CREDIT_SEQ)'s frames.
#[derive(Debug, Default)]
pub struct CreditDecoder {
    record: [u8; CREDIT_RECORD],
    filled: usize,
}

impl CreditDecoder {
    /// Takes the next record off the front of `data`, or returns `None` when all of it is taken. `end` is the
    /// [`Piece`]'s: half a record at a frame's end is dropped.
    pub fn next(&mut self, data: &mut &[u8], end: bool) -> Option<Credit> {
        let (head, rest) = data.split_at(data.len().min(CREDIT_RECORD - self.filled));
        self.record[self.filled..self.filled + head.len()].copy_from_slice(head);
        self.filled += head.len();
        *data = rest;
        if self.filled < CREDIT_RECORD {
            if end {
                self.filled = 0;
            }
            return None;
        }
        self.filled = 0;
        let [a, b, c, d, e, f, g, h, i, j, k, l] = self.record;
        Some(Credit {
            seq: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            bytes: u32::from_be_bytes([i, j, k, l]),
        })
    }
}

#[cfg(test)]
mod tests;
