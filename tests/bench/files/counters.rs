//! What the host counts of a machine: exits, switches of its threads, and requests to its file server.

use std::fs;
use std::path::Path;

/// Name of the machine's log in its bundle.
pub const LOG: &str = "log";
/// Statistics of KVM, a folder for each machine: `PROCESS-DESCRIPTOR`.
const KVM: &str = "/sys/kernel/debug/kvm";
/// Part of the line that the file server logs for each request.
const REQUEST: &str = "file server: request ";

/// Counts since the machine's start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Exits of all vCPUs.
    pub exits: f64,
    /// Context switches of all threads.
    pub switches: f64,
    /// Requests in the log; 0 without one.
    pub requests: f64,
}

impl Counters {
    /// Reads the counters of the machine of process `pid`, whose log is in `dir`.
    pub fn read(pid: u32, dir: &Path) -> Counters {
        let log = fs::read_to_string(dir.join(LOG)).unwrap_or_default();
        let requests = log.lines().filter(|line| line.contains(REQUEST)).count() as f64;
        Counters { exits: exits(pid), switches: switches(pid), requests }
    }

    /// Returns what was counted since `earlier`.
    pub fn since(&self, earlier: &Counters) -> Counters {
        Counters {
            exits: self.exits - earlier.exits,
            switches: self.switches - earlier.switches,
            requests: self.requests - earlier.requests,
        }
    }

    /// Returns the counts for one of `count` operations.
    pub fn over(&self, count: f64) -> Counters {
        Counters {
            exits: self.exits / count,
            switches: self.switches / count,
            requests: self.requests / count,
        }
    }
}

fn exits(pid: u32) -> f64 {
    let prefix = format!("{pid}-");
    let machines = fs::read_dir(KVM).into_iter().flatten().flatten();
    let own = machines.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    let texts = own.filter_map(|entry| fs::read_to_string(entry.path().join("exits")).ok());
    texts.filter_map(|text| text.trim().parse::<f64>().ok()).sum()
}

fn switches(pid: u32) -> f64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let texts = threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
    let count = |text: String| {
        let lines = text.lines().filter(|line| line.contains("ctxt_switches:"));
        lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok()).sum::<f64>()
    };
    texts.map(count).sum()
}
