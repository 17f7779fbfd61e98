//! Section headers of the file in which `vmm` finds its kernels: any file becomes sections inside of it, or an error.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(data).unwrap();
    for section in vmm::elf::sections(&file).unwrap_or_default() {
        assert!(section.offset + section.len <= data.len() as u64);
    }
});
