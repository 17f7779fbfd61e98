//! Measures operations on files in containers: `file-bench BUNDLE DIR RUNS NAME=RUNTIME…` runs this program in a
//! container of each runtime in turn, where it is `file-bench work`. Prints the results as JSON.

#[path = "files/operations.rs"]
mod operations;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Map, Value, json};

/// Directory of the work in the container's root.
const WORK: &str = "work";
/// Name of this program in the container's root.
const PROGRAM: &str = "file-bench";

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let ["work", dir] = words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return operations::run(Path::new(dir));
    }
    let [bundle, dir, runs, contenders @ ..] = &words[..] else { panic!("BUNDLE DIR RUNS NAME=RUNTIME…") };
    let (bundle, dir) = (PathBuf::from(bundle), PathBuf::from(dir));
    let runs: usize = runs.parse().expect("RUNS is a number");
    fs::copy("/proc/self/exe", bundle.join("rootfs").join(PROGRAM)).expect("copy this program");
    let mut rows: Vec<(String, Map<String, Value>)> = Vec::new();
    // The first round fills caches and does not count.
    for round in 0..=runs {
        for contender in contenders {
            let (name, runtime) = contender.split_once('=').expect("NAME=RUNTIME");
            eprintln!("round {round}: {name}");
            let text = run(runtime, &bundle, &dir);
            if round > 0 {
                add(&mut rows, name, &text);
            }
        }
    }
    let rows = rows.into_iter().map(|(operation, of)| json!({"operation": operation, "contenders": of}));
    println!("{}", json!({"rows": rows.collect::<Vec<_>>()}));
}

/// Runs the work in a container with an empty directory, and returns its output.
fn run(runtime: &str, bundle: &Path, dir: &Path) -> String {
    let work = bundle.join("rootfs").join(WORK);
    let _ = fs::remove_dir_all(&work);
    operations::prepare(&work);
    let config = fs::read(bundle.join("config.json")).expect("read config.json");
    let mut config: Value = serde_json::from_slice(&config).expect("parse config.json");
    config["root"]["path"] = json!(bundle.join("rootfs"));
    config["process"]["args"] = json!([format!("/{PROGRAM}"), "work", format!("/{WORK}")]);
    fs::create_dir_all(dir).expect("create a bundle");
    fs::write(dir.join("config.json"), config.to_string()).expect("write config.json");
    let mut command = Command::new(runtime);
    command.args(["run", "--bundle"]).arg(dir).arg("file-bench").stdin(Stdio::null());
    let done = command.stderr(Stdio::inherit()).output().expect("start the runtime");
    assert!(done.status.success(), "{runtime}: {}", done.status);
    String::from_utf8(done.stdout).expect("output is text")
}

/// Adds a run's lines, `operation TAB nanoseconds TAB interrupts`, both for one operation.
fn add(rows: &mut Vec<(String, Map<String, Value>)>, contender: &str, text: &str) {
    for line in text.lines() {
        let parts: Vec<&str> = line.trim_end().split('\t').collect();
        let [operation, time, interrupts] = parts[..] else { panic!("not a result: {line:?}") };
        let [time, interrupts] = [time, interrupts].map(|number| number.parse::<f64>().expect("a number"));
        let at = rows.iter().position(|(known, _)| known == operation).unwrap_or_else(|| {
            rows.push((operation.to_owned(), Map::new()));
            rows.len() - 1
        });
        let of = rows[at].1.entry(contender).or_insert_with(|| json!({"us": [], "interrupts": []}));
        of["us"].as_array_mut().expect("an array").push(json!(time / 1000.0));
        of["interrupts"].as_array_mut().expect("an array").push(json!(interrupts));
    }
}
