//! The times of one start, as seen from outside.

use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Pause before each start. After the end of a machine the kernel still works on its removal, without an event for the
/// end of this work, and the creation of the next machine would wait for it.
pub const SETTLE: Duration = Duration::from_millis(500);

/// What one start took, in milliseconds.
pub struct Times {
    /// From the start of the program to its line of output. `None` if it ended without the line.
    pub first: Option<f64>,
    /// From the start of the program to the moment at which its parent has reaped it.
    pub end: f64,
    pub output: String,
    pub status: ExitStatus,
    /// Requests to the outer machine's file system, if this is the emulated KVM host. Their latency counts on the
    /// instruction clock (tests/host/README.md).
    pub requests: u64,
}

/// Waits until the host has settled.
pub fn settle() {
    std::thread::sleep(SETTLE);
}

/// Runs `command`, which prints `line`, when the host has settled.
pub fn settled(command: &mut Command, line: &str) -> Times {
    settle();
    at_once(command, line)
}

/// Runs `command`, which prints `line`.
pub fn at_once(command: &mut Command, line: &str) -> Times {
    let requests = outer_requests();
    let start = Instant::now();
    let ms = || start.elapsed().as_secs_f64() * 1000.0;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("start {:?}: {error}", command.get_program()));
    let mut stdout = child.stdout.take().expect("standard output is a pipe");
    let (mut output, mut block, mut first) = (Vec::new(), [0; 4096], None);
    loop {
        match stdout.read(&mut block).expect("read standard output") {
            0 => break,
            count => output.extend_from_slice(&block[..count]),
        }
        // A machine's console may show messages of its kernel before and after the line.
        if first.is_none() && output.windows(line.len()).any(|part| part == line.as_bytes()) {
            first = Some(ms());
        }
    }
    let status = child.wait().expect("wait for the program");
    let end = ms();
    let requests = outer_requests() - requests;
    Times { first, end, output: String::from_utf8_lossy(&output).into_owned(), status, requests }
}

/// Interrupts of the emulated KVM host's shared root file system since its boot. 0 on other machines.
fn outer_requests() -> u64 {
    let interrupts = std::fs::read_to_string("/proc/interrupts").unwrap_or_default();
    let line = interrupts.lines().find(|line| line.ends_with("virtio1-requests")).unwrap_or_default();
    line.split_whitespace().skip(1).map_while(|word| word.parse::<u64>().ok()).sum()
}
