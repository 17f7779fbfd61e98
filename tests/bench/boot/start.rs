//! Starts of all contenders in turn, and the parts of a start of `vmm`.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::Samples;
use crate::contenders::{Contender, Folder, Shape};
use crate::timing::{Times, settled};

/// Marks of a start of `vmm` in their order, each with the name of the part that it ends.
const PARTS: [(&str, &str); 8] = [
    ("planned", "bundle read, machine planned"),
    ("vm_created", "machine created"),
    ("vcpu_running", "first vCPU runs"),
    ("agent_started", "guest's kernel"),
    ("agent_ready", "agent ready"),
    ("container_started", "container started"),
    ("first_output", "first output"),
    ("exited", "container exited"),
];

/// Starts each contender `runs` times in turn. The first round fills caches and does not count.
pub fn boot(folder: &Folder, runs: usize) -> Value {
    let (mut starts, mut parts) = (Samples::default(), Samples::default());
    for round in 0..=runs {
        eprintln!("round {round}");
        let (mut dropped_starts, mut dropped_parts) = (Samples::default(), Samples::default());
        let (starts, parts) =
            if round == 0 { (&mut dropped_starts, &mut dropped_parts) } else { (&mut starts, &mut parts) };
        for contender in Contender::all(folder) {
            let (first, end) = start(folder, contender, &format!("bench-{round}"), Shape::default());
            if contender == Contender::Vmm {
                let (ready, marks) = marked(folder);
                starts.add("vmm: agent ready", ready);
                marks.iter().for_each(|(name, ms)| parts.add(name, *ms));
                // With marks, the machine's end contains the copy of the kernel's log.
                let exited = marks.last().map_or(0.0, |(_, ms)| *ms);
                parts.add("machine and process ended", end - first - exited);
            }
            starts.add(&format!("{}: {}", contender.name(), contender.first()), first);
            starts.add(&format!("{}: exit", contender.name()), end);
        }
    }
    json!({"groups": [starts.group("start"), parts.group("parts of a start of vmm, with --marks")]})
}

/// Starts a contender. Returns the times from its start to its line of output and to its exit.
pub fn start(folder: &Folder, contender: Contender, id: &str, shape: Shape) -> (f64, f64) {
    times(contender, settled(&mut contender.command(folder, id, shape), contender.line()))
}

/// Asserts that the contender printed its line.
fn times(contender: Contender, times: Times) -> (f64, f64) {
    if times.requests > 0 {
        eprintln!("{contender:?}: {} requests to the outer machine disturb the next sample", times.requests);
    }
    let first = times.first.unwrap_or_else(|| panic!("{contender:?} printed {:?}", times.output));
    (first, times.end)
}

/// A start of `vmm` with marks. Returns the time from the start of the process to READY of the agent, and the duration
/// of each part.
fn marked(folder: &Folder) -> (f64, Vec<(&'static str, f64)>) {
    let file = folder.path("marks.json");
    let mut command = Contender::Vmm.command(folder, "marked", Shape::default());
    // The marks count from the beginning of main(). The first output, which both clocks know, gives their offset.
    let command = command.args(["--marks", &file]).stderr(Stdio::null());
    let (first, _) = times(Contender::Vmm, settled(command, Contender::Vmm.line()));
    let marks: Value =
        serde_json::from_slice(&std::fs::read(&file).expect("read the marks")).expect("parse the marks");
    let ready = first - (mark(&marks, "first_output") - mark(&marks, "agent_ready"));
    let mut before = 0.0;
    let part = |(name, part): &(&'static str, &'static str)| {
        let at = mark(&marks, name);
        let took = at - before;
        before = at;
        (*part, took)
    };
    (ready, PARTS.iter().map(part).collect())
}

/// Time of the mark `name` in milliseconds.
fn mark(marks: &Value, name: &str) -> f64 {
    let all = marks["marks"].as_array().expect("the marks are a list");
    let found = all.iter().find(|m| m["name"] == name).unwrap_or_else(|| panic!("no mark {name}"));
    found["us"].as_f64().expect("a mark has a time") / 1000.0
}
