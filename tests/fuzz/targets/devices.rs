//! Real devices behind their registers, under a driver that starts, resets and starts them again with anything, in guest
//! memory that changes while they work on it.
//!
//! An input is the number of a device, and a script of steps of twelve bytes for
//! [`devices::virtio::hostile`].
#![no_main]

use devices::virtio::fs::{self, FileServer};
use devices::virtio::hostile::{Machine, Subject};
use devices::virtio::p9;
use libfuzzer_sys::fuzz_target;
use vmm_sys_util::signal::block_signal;

mod scratch;

/// As signal(7) has it.
const SIGPIPE: i32 = 13;

// A socket whose other end has gone is an error of a write, as in every program whose start is Rust's.
fuzz_target!(init: block_signal(SIGPIPE).unwrap(), |data: &[u8]| {
    let [number, script @ ..] = data else { return };
    let subject = Subject::ALL[usize::from(*number) % Subject::ALL.len()];
    let server = || -> Box<dyn FileServer> {
        let tree = scratch::tree();
        if subject == Subject::P9 { p9::server(&tree) } else { fs::server(&tree) }
    };
    let mut machine = Machine::new(subject, server);
    machine.play(script);
    machine.finish();
});
