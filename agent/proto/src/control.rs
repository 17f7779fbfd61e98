//! The control channel's codec: `u32 code, u32 length, [u32 id,] payload`, big-endian. The length is that of the frame.
//!
//! Only the extended form has an id ([`command`](crate::command) describes when that form starts).

use alloc::vec::Vec;

use crate::FrameError;
use crate::command::{CONTROL_FRAME_MAX, CONTROL_HEADER};

/// Length of the message id between header and payload in the extended form.
pub const CONTROL_ID: usize = 4;

/// One message of the control channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlFrame {
    /// A [`Code`](crate::command::Code), or an unknown number.
    pub code: u32,
    /// Number of the command, which its reply repeats. 0 for an event and in the base form.
    pub id: u32,
    /// JSON, or data in the format of the code.
    pub payload: Vec<u8>,
}

impl ControlFrame {
    /// Appends the frame to `out`.
    ///
    /// The frame must not exceed [`CONTROL_FRAME_MAX`], or the peer refuses it.
    pub fn encode(&self, extended: bool, out: &mut Vec<u8>) {
        let id = if extended { CONTROL_ID } else { 0 };
        let length = CONTROL_HEADER + id + self.payload.len();
        out.reserve(length);
        out.extend_from_slice(&self.code.to_be_bytes());
        out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        if extended {
            out.extend_from_slice(&self.id.to_be_bytes());
        }
        out.extend_from_slice(&self.payload);
    }
}

/// Decodes the channel's bytes into frames.
///
/// All frames must be taken out before the next [`push`](Self::push); the buffer then holds at most one incomplete
/// frame.
#[derive(Debug, Default)]
pub struct ControlCodec {
    buffer: Vec<u8>,
    start: usize,
    extended: bool,
}

impl ControlCodec {
    /// Returns an empty codec for the base form.
    pub fn new() -> ControlCodec {
        ControlCodec::default()
    }

    /// Sets the form of the frames that [`next`](Self::next) decodes from now on.
    pub fn set_extended(&mut self, extended: bool) {
        self.extended = extended;
    }

    /// Whether the extended form is set.
    pub fn is_extended(&self) -> bool {
        self.extended
    }

    /// Adds bytes of the channel.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next frame's code, if the first half of its header has arrived.
    pub fn peek_code(&self) -> Option<u32> {
        read_u32(self.pending(), 0)
    }

    /// Returns the next complete frame, or `None` if more bytes must be pushed first.
    ///
    /// # Errors
    ///
    /// If the length is invalid. The channel cannot be read any further, and every later call returns the same error.
    #[allow(clippy::should_implement_trait, reason = "an iterator cannot say that it needs more bytes")]
    pub fn next(&mut self) -> Result<Option<ControlFrame>, FrameError> {
        let pending = self.pending();
        let (Some(code), Some(length)) = (read_u32(pending, 0), read_u32(pending, 4)) else {
            return Ok(None);
        };
        let header = if self.extended { CONTROL_HEADER + CONTROL_ID } else { CONTROL_HEADER };
        let length = FrameError::check(length, header, CONTROL_FRAME_MAX)?;
        let Some(frame) = pending.get(..length) else { return Ok(None) };
        let id = if self.extended { read_u32(frame, CONTROL_HEADER).unwrap_or(0) } else { 0 };
        let payload = frame[header..].to_vec();
        self.start += length;
        if self.start == self.buffer.len() {
            // Free the memory of a large frame. Small frames, which are the most common, reuse the buffer.
            self.start = 0;
            self.buffer.clear();
            self.buffer.shrink_to(KEEP);
        }
        Ok(Some(ControlFrame { code, id, payload }))
    }

    /// Returns the bytes of frames that were not taken out.
    pub fn pending(&self) -> &[u8] {
        &self.buffer[self.start..]
    }
}

/// Size of the buffer that an idle codec keeps, in bytes.
const KEEP: usize = 8 << 10;

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn decode(codec: &mut ControlCodec, chunks: &[&[u8]]) -> Result<Vec<ControlFrame>, FrameError> {
        let mut frames = Vec::new();
        for chunk in chunks {
            codec.push(chunk);
            while let Some(frame) = codec.next()? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    #[test]
    fn base_frame_has_the_bytes_of_api_4244() {
        let mut out = Vec::new();
        ControlFrame { code: 14, id: 7, payload: vec![0, 0, 0, 8] }.encode(false, &mut out);
        assert_eq!(out, [0, 0, 0, 14, 0, 0, 0, 12, 0, 0, 0, 8]);
    }

    #[test]
    fn extended_frame_has_its_id_after_the_header() {
        let mut out = Vec::new();
        ControlFrame { code: 12, id: 0x0102_0304, payload: vec![b'x'] }.encode(true, &mut out);
        assert_eq!(out, [0, 0, 0, 12, 0, 0, 0, 13, 1, 2, 3, 4, b'x']);
    }

    #[test]
    fn the_form_changes_between_two_frames_of_one_push() {
        let first = ControlFrame { code: 64, id: 0, payload: b"{}".to_vec() };
        let second = ControlFrame { code: 12, id: 9, payload: Vec::new() };
        let mut bytes = Vec::new();
        first.encode(false, &mut bytes);
        second.encode(true, &mut bytes);
        let mut codec = ControlCodec::new();
        codec.push(&bytes);
        assert_eq!(codec.peek_code(), Some(64));
        assert_eq!(codec.next(), Ok(Some(first)));
        codec.set_extended(true);
        assert_eq!(codec.next(), Ok(Some(second)));
        assert_eq!(codec.next(), Ok(None));
    }

    #[test]
    fn length_below_the_header_is_refused_permanently() {
        let mut codec = ControlCodec::new();
        codec.push(&[0, 0, 0, 1, 0, 0, 0, 7]);
        assert_eq!(codec.next(), Err(FrameError::TooShort { length: 7, header: 8 }));
        codec.push(&[0; 64]);
        assert_eq!(codec.next(), Err(FrameError::TooShort { length: 7, header: 8 }));
    }

    #[test]
    fn length_above_the_maximum_is_refused_before_its_bytes_arrive() {
        let mut codec = ControlCodec::new();
        codec.push(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(codec.next(), Err(FrameError::TooLong { length: u32::MAX, max: CONTROL_FRAME_MAX }));
    }

    #[test]
    fn memory_of_a_large_frame_is_freed() {
        let mut bytes = Vec::new();
        ControlFrame { code: 1, id: 0, payload: vec![0; 1 << 20] }.encode(false, &mut bytes);
        let mut codec = ControlCodec::new();
        codec.push(&bytes);
        assert!(codec.next().unwrap().is_some());
        assert!(codec.buffer.capacity() <= KEEP);
    }

    proptest! {
        #[test]
        fn frames_survive_any_split(
            frames in prop::collection::vec(
                (any::<u32>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..200)),
                0..8,
            ),
            extended: bool,
            step in 1usize..40,
        ) {
            let frames: Vec<ControlFrame> = frames
                .into_iter()
                .map(|(code, id, payload)| ControlFrame { code, id: if extended { id } else { 0 }, payload })
                .collect();
            let mut bytes = Vec::new();
            frames.iter().for_each(|frame| frame.encode(extended, &mut bytes));
            let mut codec = ControlCodec::new();
            codec.set_extended(extended);
            let chunks: Vec<&[u8]> = bytes.chunks(step).collect();
            prop_assert_eq!(decode(&mut codec, &chunks), Ok(frames));
        }

        #[test]
        fn hostile_bytes_never_panic_and_never_grow_without_bound(
            bytes in prop::collection::vec(any::<u8>(), 0..4096), extended: bool, step in 1usize..512,
        ) {
            let mut codec = ControlCodec::new();
            codec.set_extended(extended);
            for chunk in bytes.chunks(step) {
                codec.push(chunk);
                while let Ok(Some(frame)) = codec.next() {
                    prop_assert!(frame.payload.len() <= CONTROL_FRAME_MAX);
                }
                prop_assert!(codec.buffer.len() <= bytes.len());
            }
        }
    }
}
