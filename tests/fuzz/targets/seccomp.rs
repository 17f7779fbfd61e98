//! Seccomp profiles of bundles: any profile becomes a program that the kernel accepts and that ends for every call, or
//! an error.
#![no_main]

use bpf::testing::{Call, run};
use libfuzzer_sys::fuzz_target;
use oci::spec::seccomp::Seccomp;

/// Some numbers above the last system call.
const CALLS: u32 = 470;

fuzz_target!(|data: &[u8]| {
    let Some((args, text)) = data.split_first_chunk::<8>() else { return };
    let Ok(profile) = oci::json::from_slice::<Seccomp>(text) else { return };
    let Ok(filter) = plan::seccomp::compile(&profile) else { return };
    let instruction = |word: &u64| {
        let [a, b, jt, jf, k @ ..] = word.to_le_bytes();
        bpf::Instruction { code: u16::from_le_bytes([a, b]), jt, jf, k: u32::from_le_bytes(k) }
    };
    let program: Vec<bpf::Instruction> = filter.program.0.iter().map(instruction).collect();
    // Panics where the kernel would refuse the program.
    for number in (0..CALLS).chain([bpf::X32, u32::MAX]) {
        run(&program, &Call { number, args: [u64::from_ne_bytes(*args); 6], ..Call::default() });
    }
});
