//! The host's memory that a machine uses.

use std::fs;
use std::time::{Duration, Instant};

use tests::{Bundle, Running};

/// Memory that the container touches, in MiB.
const TOUCHED: u64 = 300;
/// Memory that must come back to the host, in MiB. The guest reports only large blocks, so some may stay.
const RETURNED: u64 = 200;
/// Size of a file that the container reads, in MiB.
const READ: u64 = 800;
/// Time for the guest's reports, which come every two seconds.
const DEADLINE: Duration = Duration::from_secs(120);

/// Resident guest memory, and that of the monitor, in MiB.
fn resident(run: &Running) -> u64 {
    let status =
        fs::read_to_string(format!("/proc/{}/status", run.pid())).expect("read the process's status");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("RssAnon");
    line.split_ascii_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") >> 10
}

#[test]
fn memory_that_a_container_frees_goes_back_to_the_host() {
    let script = format!("/bin/guest memory {TOUCHED}; while read line; do sleep 0.2; echo $line; done");
    let bundle = Bundle::sh(&script).flag("--memory").flag("512");
    bundle.copy_guest_program();
    let mut run = bundle.start();
    run.wait_for(&format!("touched {}\n", TOUCHED << 20));
    let before = resident(&run);
    assert!(before >= TOUCHED, "{before} MiB");

    // The process exits, and the shell that started it stays.
    run.write(b"exit\n");
    run.wait_for("ok\n");
    let start = Instant::now();
    loop {
        let after = resident(&run);
        if after + RETURNED <= before {
            break;
        }
        assert!(start.elapsed() < DEADLINE, "{after} MiB of {before} MiB are still resident");
        run.write(b"still here\n");
        run.wait_for("still here\n");
    }
    run.finish().code(0);
}

/// The host caches the file as well, so the guest need not grow for it.
#[test]
fn files_that_are_read_once_do_not_fill_the_machine() {
    let script = "cat /mnt/file >/dev/null; awk '/^(Active|Inactive).file/ { kib += $2 } END { print int(kib / 1024) }' /proc/meminfo";
    let bundle = Bundle::sh(script).flag("--memory").flag("2G");
    fs::File::create(bundle.rootfs().join("mnt/file"))
        .and_then(|file| file.set_len(READ << 20))
        .expect("make a file without blocks");
    let cached: u64 = bundle.run().code(0).text().parse().expect("a number of MiB");
    assert!(cached < READ * 3 / 4, "{cached} MiB are cached");
}
