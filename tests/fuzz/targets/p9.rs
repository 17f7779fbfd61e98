//! The 9P server with a guest that sends arbitrary messages, on a share of two directories and a file. One of the
//! directories is read-only.
//!
//! An input is a list of messages: two bytes of length, a type, a fid, and the body. The server performs the requests
//! in the share.
#![no_main]

use devices::Pieces;
use devices::virtio::p9::{MSIZE_MAX, server};
use libfuzzer_sys::fuzz_target;
use vm_memory::VolatileSlice;

mod scratch;

/// Bytes of `size[4] type[1] tag[2]`.
const HEADER: usize = 7;
const RLERROR: u8 = 7;
const LOPEN: u8 = 12;
const VERSION: u8 = 100;
const ATTACH: u8 = 104;
const WALK: u8 = 110;
/// All types of requests, and one that does not exist.
const TYPES: [u8; 29] = [
    8, LOPEN, 14, 16, 18, 20, 22, 24, 26, 30, 32, 40, 50, 52, 54, 70, 72, 74, 76, VERSION, 102, ATTACH, 108,
    WALK, 116, 118, 120, 122, 255,
];
/// Number of fids that are tried, half of which exist.
const FIDS: u32 = 8;
/// Size of the guest's buffer for a reply.
const ROOM: usize = 64 << 10;

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let size = (HEADER + body.len()) as u32;
    [&size.to_le_bytes()[..], &[kind, 1, 0], body].concat()
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_le_bytes()[..], text.as_bytes()].concat()
}

/// Begins a session in which fids 1 to 4 are a directory, an open file in it, a read-only directory, and the shared
/// file.
fn begin(mut call: impl FnMut(Vec<u8>)) {
    call(message(VERSION, &[&MSIZE_MAX.to_le_bytes()[..], &string("9P2000.L")].concat()));
    let nobody = u32::MAX.to_le_bytes();
    call(message(ATTACH, &[&[0; 4][..], &nobody, &string(""), &string(""), &[0; 4]].concat()));
    for (fid, path) in
        [(1u32, &["a", "open"][..]), (2, &["a", "open", "f"]), (3, &["a", "closed"]), (4, &["b"])]
    {
        let names: Vec<u8> = path.iter().flat_map(|name| string(name)).collect();
        let count = path.len() as u16;
        call(message(WALK, &[&[0; 4][..], &fid.to_le_bytes(), &count.to_le_bytes(), &names].concat()));
    }
    // O_RDWR.
    call(message(LOPEN, &[2u32.to_le_bytes(), 2u32.to_le_bytes()].concat()));
}

fuzz_target!(|data: &[u8]| {
    let tree = scratch::tree();
    let mut server = server(&tree);
    let mut reply = vec![0; ROOM];
    let mut call = |mut bytes: Vec<u8>| {
        let request = Pieces::new(vec![VolatileSlice::from(bytes.as_mut_slice())]);
        let room = Pieces::new(vec![VolatileSlice::from(reply.as_mut_slice())]);
        let Ok(written) = server.handle(request, room) else { return };
        let said = u32::from_le_bytes([reply[0], reply[1], reply[2], reply[3]]);
        assert!((HEADER..=ROOM).contains(&written) && said as usize == written);
        assert!(reply[4] == RLERROR || reply[4] == bytes[4].wrapping_add(1));
        assert_eq!(reply[5..7], bytes[5..7]);
    };
    begin(&mut call);
    let mut rest = data;
    while let [low, high, kind, fid, tail @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*low, *high]) % 512).min(tail.len());
        let (body, after) = tail.split_at(len);
        rest = after;
        let fid = u32::from(*fid) % FIDS;
        call(message(TYPES[usize::from(*kind) % TYPES.len()], &[&fid.to_le_bytes()[..], body].concat()));
    }
    // An arbitrary header.
    call(data.to_vec());
});
