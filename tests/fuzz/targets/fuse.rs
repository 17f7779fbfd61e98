//! The FUSE server with a guest that sends arbitrary requests, on a share of two directories and a file. One of the
//! directories is read-only.
//!
//! An input is a list of requests: two bytes of length, an opcode, a node, and the body. The server performs the
//! requests in the share, except FALLOCATE, which would fill the disk.
#![no_main]

use devices::Pieces;
use devices::virtio::fs::server;
use devices::virtio::hostile::fuse_request;
use libfuzzer_sys::fuzz_target;
use vm_memory::VolatileSlice;

mod scratch;

/// Opcode of FUSE_INIT.
const INIT: u32 = 26;
/// Opcode of FUSE_FALLOCATE.
const FALLOCATE: u32 = 43;
/// Number of opcodes that are tried, some of which do not exist.
const OPCODES: u32 = 56;
/// Number of node numbers that are tried, most of which exist.
const NODES: u64 = 16;

fuzz_target!(|data: &[u8]| {
    let tree = scratch::tree();
    let mut server = server(&tree);
    let mut reply = vec![0; (64 << 10) + 16];
    let mut call = |mut bytes: Vec<u8>| {
        if bytes.get(4..8) == Some(&FALLOCATE.to_le_bytes()) {
            return;
        }
        let request = Pieces::new(vec![VolatileSlice::from(bytes.as_mut_slice())]);
        let capacity = reply.len();
        let reply = Pieces::new(vec![VolatileSlice::from(reply.as_mut_slice())]);
        if let Ok(written) = server.handle(request, reply) {
            assert!(written <= capacity);
        }
    };
    let mut init = [0; 64];
    init[..4].copy_from_slice(&7u32.to_le_bytes());
    init[4..8].copy_from_slice(&38u32.to_le_bytes());
    init[8..12].copy_from_slice(&(128u32 << 10).to_le_bytes());
    call(fuse_request(INIT, 0, &init));
    let mut rest = data;
    while let [low, high, opcode, node, tail @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*low, *high]) % 512).min(tail.len());
        let (body, after) = tail.split_at(len);
        rest = after;
        call(fuse_request(u32::from(*opcode) % OPCODES, u64::from(*node) % NODES, body));
    }
    // An arbitrary header.
    call(data.to_vec());
});
