//! Runs the body of the fuzz target with fixed seeds.

use std::fs::{self, File};

use devices::share::{ShareTree, Terms};
use devices::virtio::fs::{FileServer, server};
use devices::virtio::hostile::{Machine, STEP_LEN, Subject};
use devices::virtio::p9;

/// Number of scripts for each device.
const SCRIPTS: u64 = 100;
/// Number of steps in a script.
const STEPS: usize = 40;

/// Returns a reproducible pseudo-random script (splitmix).
fn script(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::new();
    while bytes.len() < STEPS * STEP_LEN {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ word >> 31).to_le_bytes());
    }
    bytes
}

fn drive(subject: Subject) {
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..SCRIPTS {
        let root = dir.path().join(seed.to_string());
        fs::create_dir_all(root.join("d")).unwrap();
        fs::write(root.join("f"), "text").unwrap();
        let tree = ShareTree::new().unwrap();
        tree.bind("/a", File::open(&root).unwrap().into(), Terms::default()).unwrap();
        let server = || -> Box<dyn FileServer> {
            if subject == Subject::P9 { p9::server(&tree) } else { server(&tree) }
        };
        let mut machine = Machine::new(subject, server);
        machine.play(&script(seed));
        machine.finish();
    }
}

#[test]
fn no_driver_does_harm_to_a_console() {
    drive(Subject::Console);
}

#[test]
fn no_driver_does_harm_to_a_network_device() {
    drive(Subject::Net);
}

#[test]
fn no_driver_does_harm_to_a_network_device_whose_queues_are_lent() {
    drive(Subject::LentNet);
}

#[test]
fn no_driver_does_harm_to_network_devices_that_come_and_go() {
    drive(Subject::Slot);
}

#[test]
fn no_driver_does_harm_to_the_entropy_device() {
    drive(Subject::Rng);
}

#[test]
fn no_driver_does_harm_to_the_balloon() {
    drive(Subject::Balloon);
}

#[test]
fn no_driver_does_harm_to_a_share() {
    drive(Subject::Fs);
}

#[test]
fn no_driver_does_harm_to_a_share_over_9p() {
    drive(Subject::P9);
}
