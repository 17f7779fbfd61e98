//! Starts over the size of the machine.

use serde_json::{Value, json};

use crate::Samples;
use crate::contenders::{Contender, Folder, Shape};
use crate::start::start;

/// Sizes of memory in MiB.
const MEMORY: [u32; 7] = [64, 128, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10];
/// Numbers of vCPUs.
const VCPUS: [u8; 4] = [1, 2, 4, 8];

/// Starts over the memory of the machine, with one vCPU.
pub fn memory(folder: &Folder, runs: usize) -> Value {
    curves(folder, runs, &MEMORY, |mib| Shape { mib: Some(mib), vcpus: Some(1) })
}

/// Starts over the number of vCPUs, with 256 MiB.
pub fn cpus(folder: &Folder, runs: usize) -> Value {
    curves(folder, runs, &VCPUS, |vcpus| Shape { mib: Some(256), vcpus: Some(vcpus) })
}

/// A group for each milestone, with a series for each contender and size: its name ends with the size.
fn curves<T: Copy + std::fmt::Display>(
    folder: &Folder,
    runs: usize,
    sizes: &[T],
    shape: impl Fn(T) -> Shape,
) -> Value {
    let (mut first, mut end) = (Samples::default(), Samples::default());
    for round in 0..=runs {
        for contender in Contender::machines(folder) {
            for &size in sizes {
                let (to_output, to_exit) =
                    start(folder, contender, &format!("bench-{round}-{size}"), shape(size));
                // The first round fills caches.
                if round > 0 {
                    let name = format!("{} {size}", contender.name());
                    first.add(&name, to_output);
                    end.add(&name, to_exit);
                }
            }
        }
    }
    json!({"groups": [first.group("start to first output"), end.group("start to exit")]})
}
