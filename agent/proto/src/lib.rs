//! The contract between the runtime and the guest's agent: hyperstart's API 4244 and the extension above it.
//!
//! Wire types and codecs only: no file descriptors, no threads, no I/O. Both sides, their tests and the fuzzers drive
//! it with byte slices.
//!
//! Two channels, each a virtio-console port: control (`u32 code, u32 length, payload`) and streams
//! (`u64 seq, u32 length, data`), all big-endian, lengths with their header. See [`command`] for the control
//! channel's codes, [`payload`] for its JSON.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod command;
pub mod payload;
