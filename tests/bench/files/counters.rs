//! What the host counts of a machine: exits, switches of its threads, and requests to its file server.

use std::fs;
use std::path::Path;

/// Name of the machine's log in its bundle.
pub const LOG: &str = "log";
/// KVM's count of exits of the machines that exist.
const EXITS: &str = "/sys/kernel/debug/kvm/exits";
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
        Counters { exits: exits(), switches: switches(pid), requests }
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

/// Those of all machines: there is one, whose folder has the number of a thread that has ended.
fn exits() -> f64 {
    fs::read_to_string(EXITS).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
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
