//! The state of a saved machine: any content with a right checksum becomes a snapshot with the same bytes, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::snapshot::{FORMAT, checksum_of};

fuzz_target!(|data: &[u8]| {
    let mut bytes = [b"vmm\0save", &FORMAT.to_le_bytes()[..], data].concat();
    bytes.extend_from_slice(&checksum_of(&bytes).to_le_bytes());
    if let Ok(snapshot) = vmm::Snapshot::decode(&bytes) {
        assert_eq!(snapshot.encode(), bytes);
    }
});
