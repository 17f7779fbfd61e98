//! The stream channel's codec: `u64 seq, u32 length, data`, big-endian. The length includes the header.
//!
//! [`StreamSplitter`] returns data in the pieces in which they arrive, [`StreamCodec`] collects complete frames. An
//! empty frame ends its stream. In the extended form, frames of [`CREDIT_SEQ`](crate::command::CREDIT_SEQ) contain
//! [`Credit`] records.

use alloc::vec::Vec;

use crate::FrameError;
use crate::command::{CREDIT_SEQ, STREAM_FRAME_MAX, STREAM_HEADER};

/// Returns the header of a frame with `len` bytes of data.
///
/// `len` must be at most [`STREAM_FRAME_MAX`]` - `[`STREAM_HEADER`], or the peer refuses the frame.
pub fn encode_header(seq: u64, len: usize) -> [u8; STREAM_HEADER] {
    let length = u32::try_from(STREAM_HEADER + len).unwrap_or(u32::MAX);
    let mut header = [0; STREAM_HEADER];
    header[..8].copy_from_slice(&seq.to_be_bytes());
    header[8..].copy_from_slice(&length.to_be_bytes());
    header
}

/// A part of a frame's data, borrowed from the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Sequence number of the stream.
    pub seq: u64,
    /// Data of the stream. Empty only for an empty frame, which ends the stream.
    pub data: &'a [u8],
    /// Whether this is the last piece of the frame.
    pub end: bool,
}

/// Splits the channel's bytes into pieces of frames without copying data.
#[derive(Debug, Default)]
pub struct StreamSplitter {
    header: [u8; STREAM_HEADER],
    /// Number of bytes of `header` that have arrived.
    filled: usize,
    /// Remaining bytes of data of the current frame. Only valid with a complete header.
    left: usize,
}

impl StreamSplitter {
    /// Returns a splitter that expects the start of a frame.
    pub fn new() -> StreamSplitter {
        StreamSplitter::default()
    }

    /// Removes the next piece from the front of `input`, or returns `None` when `input` is empty.
    ///
    /// # Errors
    ///
    /// If the length is invalid. The channel cannot be read any further, and every later call returns the same error.
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
        // A refused header stays refused: `left` is not valid for it.
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

    /// Returns the bytes of an incomplete header, or a complete header and how much data of its frame has not come yet.
    pub fn state(&self) -> (&[u8], usize) {
        let whole = self.filled == STREAM_HEADER;
        (&self.header[..self.filled], if whole { self.left } else { 0 })
    }

    /// Returns a splitter with the [`state`](Self::state) of another one; `None` if no splitter has it.
    pub fn of_state(header: &[u8], left: usize) -> Option<StreamSplitter> {
        let mut splitter = StreamSplitter { left, filled: header.len(), ..StreamSplitter::default() };
        splitter.header.get_mut(..header.len())?.copy_from_slice(header);
        let fits = match header.len() {
            STREAM_HEADER => (1..=splitter.length().ok()? - STREAM_HEADER).contains(&left),
            _ => left == 0,
        };
        fits.then_some(splitter)
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

/// A complete frame of the stream channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamFrame {
    /// Sequence number of the stream.
    pub seq: u64,
    /// Data of the stream. Empty at the end of the stream.
    pub data: Vec<u8>,
}

impl StreamFrame {
    /// Appends the frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&encode_header(self.seq, self.data.len()));
        out.extend_from_slice(&self.data);
    }
}

/// Decodes the channel's bytes into complete frames.
///
/// All frames must be taken out before the next [`push`](Self::push); the codec then holds at most one incomplete
/// frame.
#[derive(Debug, Default)]
pub struct StreamCodec {
    buffer: Vec<u8>,
    start: usize,
    splitter: StreamSplitter,
    data: Vec<u8>,
}

impl StreamCodec {
    /// Returns an empty codec.
    pub fn new() -> StreamCodec {
        StreamCodec::default()
    }

    /// Adds bytes of the channel.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next complete frame, or `None` if more bytes must be pushed first.
    ///
    /// # Errors
    ///
    /// The same as for [`StreamSplitter::split`].
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

/// Length of one [`Credit`] record.
pub const CREDIT_RECORD: usize = 12;

/// Returns credit to a sender: the receiver has consumed `bytes` of the stream's data.
///
/// A record of 0 bytes means that the reader has closed the stream and no more data are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// Sequence number of the stream.
    pub seq: u64,
    /// Number of further bytes that may be sent; 0 if the reader has closed the stream.
    pub bytes: u32,
}

impl Credit {
    /// Appends a frame with these records to `out`, or nothing if there are none.
    ///
    /// At most [`Credit::FRAME_MAX`] records fit into a frame.
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

    /// Limit of records in one frame.
    pub const FRAME_MAX: usize = (STREAM_FRAME_MAX - STREAM_HEADER) / CREDIT_RECORD;
}

/// Decodes credit records from the pieces of [`CREDIT_SEQ`](crate::command::CREDIT_SEQ)'s frames.
#[derive(Debug, Default)]
pub struct CreditDecoder {
    record: [u8; CREDIT_RECORD],
    filled: usize,
}

impl CreditDecoder {
    /// Returns the bytes of an incomplete record.
    pub fn state(&self) -> &[u8] {
        &self.record[..self.filled]
    }

    /// Returns a decoder with these bytes of an incomplete record; `None` if they are a whole one or more.
    pub fn of_state(bytes: &[u8]) -> Option<CreditDecoder> {
        let mut decoder = CreditDecoder { filled: bytes.len(), ..CreditDecoder::default() };
        decoder.record.get_mut(..bytes.len())?.copy_from_slice(bytes);
        (bytes.len() < CREDIT_RECORD).then_some(decoder)
    }

    /// Removes the next record from the front of `data`, or returns `None` when `data` is empty. `end` is that of the
    /// [`Piece`]: an incomplete record at the end of a frame is dropped.
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
