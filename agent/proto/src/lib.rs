//! The contract between the runtime and the guest's agent: hyperstart's API 4244 and the extension above it.
//!
//! Wire types and codecs only: no file descriptors, no threads, no I/O. Both sides, their tests and the fuzzers drive
//! it with byte slices.
//!
//! Two channels, each a virtio-console port: control (`u32 code, u32 length, payload`) and streams
//! (`u64 seq, u32 length, data`), all big-endian, lengths with their header. See [`command`] for the control
//! channel's codes, [`payload`] for its JSON, [`control`] and [`stream`] for the frames.
//!
//! A command's frame as the host writes it, and as the agent reads it, whatever pieces it arrives in:
//!
//! ```
//! use agent_proto::command::Code;
//! use agent_proto::control::{ControlCodec, ControlFrame};
//!
//! let ping = ControlFrame { code: Code::Ping as u32, id: 7, payload: Vec::new() };
//! let mut bytes = Vec::new();
//! ping.encode(true, &mut bytes);
//! assert_eq!(bytes, [0, 0, 0, Code::Ping as u8, 0, 0, 0, 12, 0, 0, 0, 7]);
//!
//! let mut codec = ControlCodec::new();
//! codec.set_extended(true);
//! codec.push(&bytes[..5]);
//! assert_eq!(codec.next()?, None);
//! codec.push(&bytes[5..]);
//! assert_eq!(codec.next()?, Some(ping));
//! # Ok::<(), agent_proto::FrameError>(())
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod command;
pub mod control;
pub mod datagram;
pub mod payload;
pub mod stream;

/// A frame whose length cannot be: the channel has lost its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Shorter than its own header.
    #[error("frame of {length} bytes is shorter than its header of {header}")]
    TooShort {
        /// What the frame says.
        length: u32,
        /// What the header takes.
        header: usize,
    },
    /// Longer than any frame may be.
    #[error("frame of {length} bytes is longer than {max}")]
    TooLong {
        /// What the frame says.
        length: u32,
        /// The most that this channel allows.
        max: usize,
    },
}

impl FrameError {
    fn check(length: u32, header: usize, max: usize) -> Result<usize, FrameError> {
        let bytes = length as usize;
        if bytes < header {
            Err(FrameError::TooShort { length, header })
        } else if bytes > max {
            Err(FrameError::TooLong { length, max })
        } else {
            Ok(bytes)
        }
    }
}
