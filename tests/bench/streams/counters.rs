//! What the host counts of a machine: exits, and system calls of its process.

use std::fs;

/// KVM's count of exits of the machines that exist.
const EXITS: &str = "/sys/kernel/debug/kvm/exits";
/// The trace event of a system call.
const CALL: &str = "/sys/kernel/tracing/events/raw_syscalls/sys_enter";
const TRIGGER: &str = "hist:keys=common_pid:size=4096";

/// Exits of all machines so far: there is one at a time. 0 without KVM's counters.
pub fn exits() -> f64 {
    fs::read_to_string(EXITS).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
}

/// Counting of the system calls of a process's threads, which takes time.
pub struct Trace {
    threads: Vec<String>,
}

impl Trace {
    pub fn begin(pid: u32) -> Trace {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let threads = threads.filter_map(|thread| thread.file_name().into_string().ok()).collect();
        fs::write(format!("{CALL}/trigger"), TRIGGER).expect("trace system calls");
        Trace { threads }
    }

    pub fn end(self) -> f64 {
        let text = fs::read_to_string(format!("{CALL}/hist")).expect("read a histogram");
        fs::write(format!("{CALL}/trigger"), format!("!{TRIGGER}")).expect("end the trace");
        text.lines().filter_map(|line| self.calls_of(line)).sum()
    }

    /// Returns the count of a line `{ common_pid: 17 } hitcount: 3` if it is one of these threads.
    fn calls_of(&self, line: &str) -> Option<f64> {
        let (key, count) = line.strip_prefix("{ common_pid:")?.split_once("} hitcount:")?;
        self.threads.iter().any(|thread| thread == key.trim()).then(|| count.trim().parse().ok())?
    }
}
