//! Measures starts of `vmm` and of other monitors and runtimes in one run, and prints the samples as JSON:
//!
//! ```text
//! boot-bench FOLDER boot RUNS [favordynmods]   # start to first output and to exit, each contender in turn
//! boot-bench FOLDER restore RUNS               # the same from a template, and cold; memory and checkpoint of an idle container
//! boot-bench FOLDER memory RUNS                # the same for machines of 64 MiB to 64 GiB
//! boot-bench FOLDER cpus RUNS                  # the same for machines of 1 to 8 vCPUs
//! boot-bench FOLDER bundles RUNS               # the same for bundles that ask for more than a program
//! boot-bench FOLDER pods RUNS                  # a pod with one container, and a further container in it
//! boot-bench FOLDER density COUNT              # memory of COUNT idle containers of a template at the same time
//! boot-bench FOLDER rate ROW BATCH ROUNDS [templates]   # ROW starts in a row, and ROUNDS times BATCH starts at once
//! ```
//!
//! FOLDER holds the contenders' programs and files ([`contenders`]). Times are those of the monotonic clock since just
//! before the program is started, in milliseconds. On the instruction clock of the emulated KVM host, one nanosecond is
//! one instruction.

mod bundles;
mod contenders;
mod density;
mod pods;
mod rate;
mod restore;
mod shape;
mod start;
mod timing;

use std::process::Command;

use contenders::{Contender, Folder};
use serde_json::Value;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [folder, what, numbers @ ..] = words.as_slice() else { panic!("usage: FOLDER BENCH NUMBER...") };
    let folder = Folder::new(folder);
    let report = match (*what, numbers) {
        ("boot", [runs]) => start::boot(&folder, number(runs)),
        ("boot", [runs, "favordynmods"]) => {
            favor_dynamic_changes();
            start::boot(&folder, number(runs))
        }
        ("restore", [runs]) => restore::restore(&folder, number(runs)),
        ("restore", [runs, "favordynmods"]) => {
            favor_dynamic_changes();
            restore::restore(&folder, number(runs))
        }
        ("memory", [runs]) => shape::memory(&folder, number(runs)),
        ("cpus", [runs]) => shape::cpus(&folder, number(runs)),
        ("bundles", [runs]) => bundles::bundles(&folder, number(runs)),
        ("pods", [runs]) => pods::pods(&folder, number(runs)),
        ("density", [count]) => density::density(&folder, number(count)),
        ("rate", [numbers @ .., "templates"]) => rate::rate(&folder, &[Contender::Continued], all(numbers)),
        ("rate", numbers) => rate::rate(&folder, &Contender::containers(&folder), all(numbers)),
        _ => panic!("unknown bench: {words:?}"),
    };
    println!("{report}");
}

/// Reads three numbers.
fn all(words: &[&str]) -> [usize; 3] {
    let numbers: Vec<usize> = words.iter().map(|word| number(word)).collect();
    numbers.try_into().unwrap_or_else(|_| panic!("not three numbers: {words:?}"))
}

fn number(word: &str) -> usize {
    word.parse().unwrap_or_else(|_| panic!("not a number: {word}"))
}

/// Has moves between cgroups wait for no RCU grace period (Linux, Documentation/admin-guide/cgroup-v2.rst).
fn favor_dynamic_changes() {
    let status = Command::new("mount").args(["-o", "remount,favordynmods", "/sys/fs/cgroup"]).status();
    assert!(status.expect("start mount").success(), "remount the cgroup tree with favordynmods");
}

/// Samples by name, in order of appearance.
#[derive(Default)]
struct Samples(Vec<(String, Vec<f64>)>);

impl Samples {
    fn add(&mut self, name: &str, sample: f64) {
        eprintln!("{name}: {sample:.1}");
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, samples)) => samples.push(sample),
            None => self.0.push((name.to_owned(), vec![sample])),
        }
    }

    /// The samples as a group of the report.
    fn group(&self, title: &str) -> Value {
        let rows = self.0.iter().map(|(name, samples)| serde_json::json!({"name": name, "samples": samples}));
        serde_json::json!({"title": title, "series": rows.collect::<Vec<_>>()})
    }
}
