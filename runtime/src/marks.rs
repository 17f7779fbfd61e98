//! Writes the boot's timeline to a file and as a table.
//!
//! The file is one JSON object that Perfetto and chrome://tracing open (the Trace Event Format's object form, which
//! allows further keys): `traceEvents`, and `marks` with each milestone's name and microseconds since the start.
//! The kernel's milestones use the guest's clock, which starts when it is first read. They are on a track of their own,
//! relative to the start of the first vCPU.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use agent_proto::command::MARK_IO_PORT;
use serde_json::json;
use vmm::Mark;
use vmm::devices::mark::MARK_PORT;

use crate::console::KernelMark;

/// The mark at which the guest's clock starts.
const GUEST_START: &str = "vcpu_running";

/// Names of the bytes that the agent writes to the mark port.
pub const GUEST_MARKS: [(u8, &str); 1] = [(agent_proto::command::Mark::AgentStarted as u8, "agent_started")];
// The agent writes to the port that the machine registers.
const _: () = assert!(MARK_IO_PORT as u64 == MARK_PORT);

/// Number of the guest kernel's longest steps in the table; the file has all steps.
const KERNEL_STEPS: usize = 8;
/// Maximum length of the kernel's text in the table.
const KERNEL_WIDTH: usize = 60;

/// All milestones, of this program and of the guest kernel.
#[derive(Debug, Default)]
pub struct Marks {
    /// Milestones of this program, sorted by time.
    pub host: Vec<Mark>,
    /// Milestones of the kernel, on the guest's clock.
    pub kernel: Vec<KernelMark>,
}

impl Marks {
    /// Writes the file, unless the path is `-`, and the table.
    pub fn write(&self, to: &Path, mut table: impl Write) -> io::Result<()> {
        if to != Path::new("-") {
            fs::write(to, self.json()?)?;
        }
        table.write_all(self.table().as_bytes())
    }

    /// Events of the trace: a complete one (`X`) for the time before a milestone of this program, an instant (`i`) for one
    /// of the kernel, and the tracks' names (`M`).
    fn json(&self) -> io::Result<Vec<u8>> {
        let start = self.guest_start();
        let host: Vec<_> = self.host.iter().map(|mark| (mark.name, micros(mark.at))).collect();
        let kernel: Vec<_> = self.kernel.iter().map(|mark| (&mark.name, micros(start + mark.at))).collect();
        let track = |tid: u32, name: &str| {
            let args = json!({ "name": name });
            json!({ "name": "thread_name", "ph": "M", "ts": 0, "pid": 1, "tid": tid, "args": args })
        };
        let mut events = vec![track(1, "vmm"), track(2, "guest kernel")];
        let mut before = 0;
        for (name, us) in &host {
            let dur = us - before;
            events.push(json!({ "name": name, "ph": "X", "ts": before, "dur": dur, "pid": 1, "tid": 1 }));
            before = *us;
        }
        for (name, us) in &kernel {
            events.push(json!({ "name": name, "ph": "i", "ts": us, "pid": 1, "tid": 2 }));
        }
        let host: Vec<_> = host.iter().map(|(name, us)| json!({ "name": name, "us": us })).collect();
        let kernel: Vec<_> = kernel.iter().map(|(name, us)| json!({ "name": name, "us": us })).collect();
        let file = json!({ "displayTimeUnit": "ms", "traceEvents": events, "marks": host, "kernel": kernel });
        serde_json::to_vec_pretty(&file).map_err(io::Error::from)
    }

    fn table(&self) -> String {
        let mut lines = String::from("        ms       +ms\n");
        let mut before = Duration::ZERO;
        for mark in &self.host {
            let step = mark.at.saturating_sub(before);
            lines += &format!("{:10.3}{:10.3}  {}\n", millis(mark.at), millis(step), mark.name);
            before = mark.at;
            if mark.name == GUEST_START {
                self.longest_steps(&mut lines);
            }
        }
        lines
    }

    /// Adds the guest kernel's longest steps, each with the text that preceded it.
    fn longest_steps(&self, lines: &mut String) {
        let ends = self.kernel.iter().skip(1).map(|mark| mark.at);
        let mut steps: Vec<(Duration, &KernelMark)> =
            ends.zip(&self.kernel).map(|(end, mark)| (end.saturating_sub(mark.at), mark)).collect();
        steps.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
        steps.truncate(KERNEL_STEPS);
        steps.sort_by_key(|(_, mark)| mark.at);
        for (step, mark) in steps {
            let name: String = mark.name.chars().take(KERNEL_WIDTH).collect();
            *lines += &format!("{:20}{:10.3}  after: {name}\n", "", millis(step));
        }
    }

    fn guest_start(&self) -> Duration {
        self.host.iter().find(|mark| mark.name == GUEST_START).map_or(Duration::ZERO, |mark| mark.at)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks() -> Marks {
        let mark = |name, us| Mark { name, at: Duration::from_micros(us) };
        Marks {
            host: vec![mark("start", 0), mark("vcpu_running", 2500), mark("agent_ready", 40_000)],
            kernel: (0..20)
                .map(|n| KernelMark { at: Duration::from_micros(1000 * n * n), name: format!("step {n}") })
                .collect(),
        }
    }

    #[test]
    fn the_file_is_a_trace_and_a_list() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("marks.json");
        marks().write(&path, io::sink()).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        assert_eq!(json["marks"][2], serde_json::json!({"name": "agent_ready", "us": 40_000}));
        assert_eq!(json["kernel"][2], serde_json::json!({"name": "step 2", "us": 6500}));
        let events = json["traceEvents"].as_array().unwrap();
        assert_eq!(events.len(), 25);
        assert_eq!(events[4]["name"], "agent_ready");
        assert_eq!((events[4]["ts"].as_u64(), events[4]["dur"].as_u64()), (Some(2500), Some(37_500)));
        assert_eq!(events[6]["ts"], 3500);
    }

    #[test]
    fn the_table_has_marks_and_the_kernel_s_longest_steps() {
        let mut table = Vec::new();
        marks().write(Path::new("-"), &mut table).unwrap();
        let table = String::from_utf8(table).unwrap();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 4 + KERNEL_STEPS);
        assert_eq!(lines[2], "     2.500     2.500  vcpu_running");
        assert_eq!(lines[3], "                        23.000  after: step 11");
        assert_eq!(lines[10], "                        37.000  after: step 18");
        assert_eq!(lines[11], "    40.000    37.500  agent_ready");
    }
}
