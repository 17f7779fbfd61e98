//! What the host counts of a machine and its network: exits, switches of its threads, packets, and traced events.

use std::fs;
use std::path::Path;

use crate::contenders::Started;

/// KVM's count of exits of the machines that exist.
const EXITS: &str = "/sys/kernel/debug/kvm/exits";
/// Trace events of KVM.
const EVENTS: &str = "/sys/kernel/tracing/events/kvm";

/// Counts since the contender's start.
#[derive(Clone, Copy, Debug)]
pub struct Counters {
    /// Exits of all vCPUs.
    exits: f64,
    /// Context switches of the contender's threads, and of vhost-net's.
    switches: f64,
    /// Packets of the host's interface in both directions. A segmented packet that stays whole is one.
    packets: f64,
}

impl Counters {
    pub fn read(started: &Started) -> Counters {
        let pid = started.child.id();
        Counters { exits: number(EXITS), switches: switches(pid), packets: packets(started.link) }
    }

    /// Returns what was counted since `earlier`, by kind.
    pub fn since(&self, earlier: &Counters) -> [(&'static str, f64); 3] {
        [
            ("exits", self.exits - earlier.exits),
            ("switches", self.switches - earlier.switches),
            ("packets", self.packets - earlier.packets),
        ]
    }
}

/// Counting of KVM's trace events.
pub struct Trace;

/// Kinds of counts, each with its event: notifications to devices are accesses that KVM decodes, as no register is read in
/// that way.
const TRACED: [(&str, &[&str]); 2] = [("kicks", &["kvm_mmio", "kvm_pio"]), ("halts", &["kvm_vcpu_wakeup"])];

impl Trace {
    pub fn begin() -> Trace {
        write_triggers("hist:keys=common_type");
        Trace
    }

    /// Returns the counts by kind.
    pub fn end(self) -> [(&'static str, f64); 2] {
        let counts = TRACED.map(|(kind, events)| (kind, events.iter().copied().map(hits).sum()));
        write_triggers("!hist:keys=common_type");
        counts
    }
}

fn write_triggers(text: &str) {
    for event in TRACED.iter().flat_map(|(_, events)| *events) {
        let file = format!("{EVENTS}/{event}/trigger");
        fs::write(&file, text).unwrap_or_else(|error| panic!("write {file}: {error}"));
    }
}

/// The number of times that an event happened since its trigger was set.
fn hits(event: &str) -> f64 {
    let text = fs::read_to_string(format!("{EVENTS}/{event}/hist")).expect("read a histogram");
    let total = text.lines().find_map(|line| line.trim().strip_prefix("Hits:")?.trim().parse().ok());
    total.unwrap_or_default()
}

/// A file with a number; 0 if there is none.
fn number(file: &str) -> f64 {
    fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
}

/// Packets of an interface of this network namespace, in both directions.
fn packets(link: &str) -> f64 {
    let text = fs::read_to_string("/proc/net/dev").expect("read the interfaces");
    let row = text.lines().find_map(|line| line.trim_start().strip_prefix(link)?.strip_prefix(':'));
    // Eight numbers of reception precede those of transmission, and bytes the packets.
    let numbers: Vec<f64> = row.into_iter().flat_map(str::split_whitespace).flat_map(str::parse).collect();
    numbers.get(1).unwrap_or(&0.0) + numbers.get(9).unwrap_or(&0.0)
}

fn switches(pid: u32) -> f64 {
    let worker = format!("vhost-{pid}");
    let own = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let others = fs::read_dir("/proc").into_iter().flatten().flatten();
    let workers = others.filter(|process| {
        fs::read_to_string(process.path().join("comm")).is_ok_and(|name| name.trim_end() == worker)
    });
    own.chain(workers).map(|thread| of_thread(&thread.path())).sum()
}

fn of_thread(thread: &Path) -> f64 {
    let text = fs::read_to_string(thread.join("status")).unwrap_or_default();
    let lines = text.lines().filter(|line| line.contains("ctxt_switches:"));
    lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok()).sum()
}
