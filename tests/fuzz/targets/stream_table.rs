//! The host's end of the stream channel, with a guest that sends arbitrary bytes: two outputs, one input, and credit.
#![no_main]

use std::fs::File;
use std::os::fd::AsRawFd;

use libfuzzer_sys::fuzz_target;
use link::streams::{StreamSpec, streams};

/// Size of the guest's receive buffer: a page, as Linux's driver has.
const ROOM: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let Some((&step, data)) = data.split_first() else { return };
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let zero = File::open("/dev/zero").unwrap();
    let specs = [
        StreamSpec { seq: 1, source: Some(zero.as_raw_fd()), sink: Some(null.as_raw_fd()) },
        StreamSpec { seq: 2, source: None, sink: Some(null.as_raw_fd()) },
    ];
    let (mut table, handle) = streams(&specs, None).unwrap();
    let watch = &mut |_, _, _| Ok(());
    table.begin(watch).unwrap();
    handle.start(1, 4096);
    table.ready(0, watch);
    let mut room = [0; ROOM];
    let mut sent = 0;
    for chunk in data.chunks(usize::from(step) + 1) {
        table.take(chunk, watch);
        // A guest may give excessive credit, but the host reads no more input than fits into the guest's buffer.
        sent += table.fill(&mut room);
    }
    assert!(sent <= ROOM * data.len().max(1));
});
