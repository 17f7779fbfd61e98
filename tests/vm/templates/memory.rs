//! Memory that machines of a template share.

use std::fs;
use std::time::{Duration, Instant};

use tests::{Bundle, Running};

use super::Templates;

/// How long the host may not find large pages.
const DEADLINE: Duration = Duration::from_secs(60);

/// Sum of these lines of a process's mappings (proc_pid_smaps(5)), in KiB. With `guest`, only those of guest memory, which alone is
/// not in core dumps.
fn mapped(pid: u32, key: &str, guest: bool) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("read its mappings");
    let (mut sum, mut here) = (0, 0);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some(word) if word == key => {
                here = words.next().and_then(|number| number.parse().ok()).expect("a number of KiB");
            }
            Some("VmFlags:") => {
                sum += if !guest || words.any(|flag| flag == "dd") { here } else { 0 };
                here = 0;
            }
            _ => {}
        }
    }
    sum
}

/// The host keeps the code of the guest's kernel in large pages, and no machine has a copy of them.
#[test]
fn machines_share_the_kernel_s_code_in_large_pages() {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("read the kernel's release");
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    if (numbers.next(), numbers.next()) < (Some(6), Some(1)) {
        return;
    }
    let bundle = Bundle::sh("echo running; read line");
    let begun = Instant::now();
    loop {
        let templates = Templates::in_memory();
        let [cold, continued] = ["off", "require"].map(|when| {
            let mut command = bundle.command();
            command.envs(templates.env(when));
            let mut running = Running::start(command);
            running.wait_for("running");
            let found = ["ShmemPmdMapped:", "Anonymous:"].map(|key| mapped(running.pid(), key, true));
            running.stop();
            found
        });
        assert_eq!(cold[0], 0);
        // The kernel may have changed its code in one of them, or constants may not be alone in theirs.
        let shared = continued[0] >= 3 * 2048;
        if shared {
            assert!(continued[1] < cold[1] * 3 / 4, "{continued:?}, {cold:?}");
            return;
        }
        // Other tests may have the host's memory in pieces at the moment.
        assert!(begun.elapsed() < DEADLINE, "{continued:?}");
    }
}
