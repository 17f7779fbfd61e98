//! Devices behind their registers, with a driver that starts and resets them with arbitrary values, in guest memory
//! that changes while the devices use it.
//!
//! An input is the number of a device and a script for [`devices::virtio::hostile`], in steps of twelve bytes.
#![no_main]

use devices::virtio::fs::{self, FileServer};
use devices::virtio::hostile::{Machine, Subject};
use devices::virtio::p9;
use libfuzzer_sys::fuzz_target;
use vmm_sys_util::signal::block_signal;

mod scratch;

/// The signal's number (signal(7)).
const SIGPIPE: i32 = 13;

// As in every program with Rust's runtime, a write to a closed socket returns an error and sends no signal.
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
