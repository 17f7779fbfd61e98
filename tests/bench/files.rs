//! Measures operations on files in containers: `file-bench BUNDLE DIR RUNS GROUPS NAME=RUNTIME…` runs this program in a
//! container of each runtime in turn, where it is `file-bench work`. GROUPS are kinds of operations with commas between
//! them; none stands for all. Prints the results as JSON.
//!
//! Each run gives times, interrupts of the guest, and for a machine its exits and the switches of its threads, from the
//! counters of the host's kernel. One more run of each machine counts the requests to the file server, from its log.

#[path = "files/counters.rs"]
mod counters;
#[path = "files/operations.rs"]
mod operations;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use counters::{Counters, LOG};

use serde_json::{Map, Value, json};

/// Directory of the work in the container's root.
const WORK: &str = "work";
/// Name of this program in the container's root.
const PROGRAM: &str = "file-bench";

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let ["work", dir, groups] = words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        let only: Vec<&str> = groups.split(',').filter(|group| !group.is_empty()).collect();
        return operations::run(Path::new(dir), &only);
    }
    let [bundle, dir, runs, groups, contenders @ ..] = &words[..] else {
        panic!("BUNDLE DIR RUNS GROUPS NAME=RUNTIME…")
    };
    let (bundle, dir) = (PathBuf::from(bundle), PathBuf::from(dir));
    let runs: usize = runs.parse().expect("RUNS is a number");
    fs::copy("/proc/self/exe", bundle.join("rootfs").join(PROGRAM)).expect("copy this program");
    let mut rows: Vec<(String, Map<String, Value>)> = Vec::new();
    // The first round fills caches and does not count, the last one counts requests alone.
    for round in 0..=runs + 1 {
        for contender in contenders {
            let (name, runtime) = contender.split_once('=').expect("NAME=RUNTIME");
            let counts_requests = round > runs;
            if counts_requests && name == "runc" {
                continue;
            }
            eprintln!("round {round}: {name}");
            let lines = run(runtime, &bundle, &dir, groups, counts_requests);
            if round > 0 {
                add(&mut rows, name, &lines, counts_requests);
            }
        }
    }
    let rows = rows.into_iter().map(|(operation, of)| json!({"operation": operation, "contenders": of}));
    println!("{}", json!({"rows": rows.collect::<Vec<_>>()}));
}

/// What an operation has cost.
struct Line {
    operation: String,
    /// Nanoseconds and interrupts for one operation.
    own: [f64; 2],
    /// Counts of the host for one operation.
    host: Counters,
}

/// Runs the work in a container with an empty directory, and returns its results. `logs`: the file server logs requests.
fn run(runtime: &str, bundle: &Path, dir: &Path, groups: &str, logs: bool) -> Vec<Line> {
    let work = bundle.join("rootfs").join(WORK);
    let _ = fs::remove_dir_all(&work);
    operations::prepare(&work);
    let config = fs::read(bundle.join("config.json")).expect("read config.json");
    let mut config: Value = serde_json::from_slice(&config).expect("parse config.json");
    config["root"]["path"] = json!(bundle.join("rootfs"));
    config["process"]["args"] = json!([format!("/{PROGRAM}"), "work", format!("/{WORK}"), groups]);
    fs::create_dir_all(dir).expect("create a bundle");
    fs::write(dir.join("config.json"), config.to_string()).expect("write config.json");
    let mut command = Command::new(runtime);
    if logs {
        let _ = fs::remove_file(dir.join(LOG));
        command.args(["--log-level", "trace", "--log"]).arg(dir.join(LOG));
    }
    command.args(["run", "--bundle"]).arg(dir).arg("file-bench").stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).spawn().expect("start the runtime");
    let mut input = child.stdin.take().expect("stdin is a pipe");
    let output = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
    let (mut lines, mut before) = (Vec::new(), Counters::default());
    for line in output.lines() {
        let line = line.expect("output is text");
        let now = Counters::read(child.id(), dir);
        if line == operations::BEGIN {
            before = now;
        } else {
            lines.push(parse(&line, &now.since(&before)));
        }
        input.write_all(b"\n").expect("answer");
    }
    let status = child.wait().expect("wait for the runtime");
    assert!(status.success(), "{runtime}: {status}");
    lines
}

/// Takes a result of the work, and what the host has counted for all operations of it.
fn parse(line: &str, counted: &Counters) -> Line {
    let parts: Vec<&str> = line.trim_end().split('\t').collect();
    let [operation, numbers @ ..] = &parts[..] else { panic!("not a result: {line:?}") };
    let numbers: Vec<f64> = numbers.iter().map(|number| number.parse().expect("a number")).collect();
    let [count, time, interrupts] = numbers[..] else { panic!("not a result: {line:?}") };
    Line { operation: (*operation).to_owned(), own: [time, interrupts], host: counted.over(count) }
}

/// Adds the results of a run.
fn add(rows: &mut Vec<(String, Map<String, Value>)>, contender: &str, lines: &[Line], requests: bool) {
    for line in lines.iter().filter(|line| line.operation != operations::NOTHING) {
        let at = rows.iter().position(|(known, _)| *known == line.operation).unwrap_or_else(|| {
            rows.push((line.operation.clone(), Map::new()));
            rows.len() - 1
        });
        let empty = || json!({"us": [], "interrupts": [], "exits": [], "switches": [], "requests": []});
        let of = rows[at].1.entry(contender).or_insert_with(empty);
        let mut push = |what: &str, number: f64| {
            of[what].as_array_mut().expect("an array").push(json!(number));
        };
        if requests {
            push("requests", line.host.requests);
            continue;
        }
        push("us", line.own[0] / 1000.0);
        push("interrupts", line.own[1]);
        if contender != "runc" {
            push("exits", line.host.exits);
            push("switches", line.host.switches);
        }
    }
}
