//! ONLINECPUMEM: brings CPUs and memory online that the host has added.

use alloc::format;

use rustix::fs::{Mode, OFlags};
use rustix::io::Result as IoResult;

use crate::error::{Error, Step};
use crate::sys::{self, Fork};

/// Directory in which the kernel lists CPUs and memory blocks.
const DEVICES: &str = "/sys/devices/system";
/// Limit of CPUs.
const CPUS_MAX: u32 = 256;
/// Limit of memory blocks, of 128 MiB or more each: 512 GiB.
const MEMORY_MAX: u32 = 4096;

/// Starts to bring everything online, in a child process, because bringing memory online takes long.
pub fn start() -> Result<(), Error> {
    match sys::fork(0, None).step("start", "hotplug process")? {
        Fork::Child => {
            bring_up(DEVICES);
            sys::exit(0)
        }
        Fork::Parent { .. } => Ok(()),
    }
}

/// Brings all CPUs and memory blocks below `devices` online, except the first of each, which is always online. Their
/// numbers may have gaps.
fn bring_up(devices: &str) {
    for (kind, limit) in [("cpu", CPUS_MAX), ("memory", MEMORY_MAX)] {
        for number in 1..limit {
            // Ignore failures: the number may not exist, be online already, or fail to come online.
            let _ = write_one(&format!("{devices}/{kind}/{kind}{number}/online"));
        }
    }
}

fn write_one(path: &str) -> IoResult<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, b"1").map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn everything_but_the_first_is_brought_up() {
        let tree = std::env::temp_dir().join(format!("agent-hotplug-{}", std::process::id()));
        for name in ["cpu/cpu0", "cpu/cpu1", "cpu/cpufreq", "memory/memory0", "memory/memory12"] {
            fs::create_dir_all(tree.join(name)).unwrap();
            fs::write(tree.join(name).join("online"), "0").unwrap();
        }
        bring_up(tree.to_str().unwrap());
        let online = |name: &str| fs::read_to_string(tree.join(name).join("online")).unwrap();
        let states = ["cpu/cpu0", "cpu/cpu1", "cpu/cpufreq", "memory/memory0", "memory/memory12"].map(online);
        fs::remove_dir_all(&tree).unwrap();
        assert_eq!(states, ["0", "1", "0", "0", "1"]);
    }
}
