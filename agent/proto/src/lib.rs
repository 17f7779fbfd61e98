//! The protocol between the runtime and the guest's agent: hyperstart's API 4244, and an extension of it.
//!
//! This crate contains only wire types and codecs: no file descriptors, threads or I/O. Both sides, their tests and the
//! fuzzers use it with byte slices.
//!
//! There are two channels, each a virtio-console port: control (`u32 code, u32 length, payload`) and streams
//! (`u64 seq, u32 length, data`). All numbers are big-endian, and lengths include the header. See [`command`] for the
//! control channel's codes, [`payload`] for its JSON, [`control`] and [`stream`] for the frames.
//!
//! The host encodes a command; the agent decodes it from pieces of any size:
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
pub mod revival;
pub mod sockets;
pub mod stream;

/// A frame with an invalid length. The channel cannot be read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is shorter than the header.
    #[error("frame of {length} bytes is shorter than its header of {header} bytes")]
    TooShort {
        /// Length in the frame's header.
        length: u32,
        /// Length of the header.
        header: usize,
    },
    /// The length exceeds the channel's limit.
    #[error("frame of {length} bytes exceeds the limit of {max} bytes")]
    TooLong {
        /// Length in the frame's header.
        length: u32,
        /// Limit of a frame's length on this channel.
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
