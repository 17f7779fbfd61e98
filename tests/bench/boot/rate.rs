//! Many starts: one after the other without a pause, and several at once.

use std::fs;
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use crate::Samples;
use crate::contenders::{Contender, Folder, Shape, make_template};
use crate::timing::at_once;

/// Starts `row` containers in a row, and `rounds` times `batch` containers at once, of each contender. A start that does
/// not print its line or fails is counted and is no sample.
pub fn rate(folder: &Folder, contenders: &[Contender], [row, batch, rounds]: [usize; 3]) -> Value {
    let (mut in_a_row, mut together, mut rates) =
        (Samples::default(), Samples::default(), Samples::default());
    let mut kept = Samples::default();
    let mut failures = Vec::new();
    make_template(folder);
    for &contender in contenders {
        let mut failed = 0;
        let mut note = |samples: &mut Samples, took: Option<f64>| match took {
            Some(ms) => samples.add(contender.name(), ms),
            None => failed += 1,
        };
        // The first start fills caches.
        start(folder, contender, "first");
        let before = available_mib();
        let begun = Instant::now();
        for number in 0..row {
            note(&mut in_a_row, start(folder, contender, &format!("row-{number}")));
            kept.add(contender.name(), before - available_mib());
        }
        rates.add(&format!("{}: in a row", contender.name()), per_second(row, begun));
        for round in 0..rounds {
            let begun = Instant::now();
            let id = |number| format!("batch-{round}-{number}");
            let all: Vec<Option<f64>> = thread::scope(|scope| {
                let begin = |number| scope.spawn(move || start(folder, contender, &id(number)));
                let threads: Vec<_> = (0..batch).map(begin).collect();
                threads.into_iter().map(|thread| thread.join().expect("a start panicked")).collect()
            });
            rates.add(&format!("{}: {batch} at once", contender.name()), per_second(batch, begun));
            all.into_iter().for_each(|took| note(&mut together, took));
        }
        failures.push(json!({"name": contender.name(), "failures": failed}));
    }
    let mut rates = rates.group("rate");
    rates["unit"] = "starts per second".into();
    let mut kept = kept.group(&format!("{row} starts in a row: memory that the host has less after a start"));
    kept["unit"] = "MiB".into();
    json!({
        "groups": [
            in_a_row.group(&format!("{row} starts in a row: start to exit")),
            together.group(&format!("{batch} starts at once: start to exit")),
            rates,
            kept,
        ],
        "failures": failures,
    })
}

/// Milliseconds from start to exit. `None` if the start failed.
fn start(folder: &Folder, contender: Contender, id: &str) -> Option<f64> {
    let times = at_once(&mut contender.command(folder, id, Shape::default()), contender.line());
    let succeeded = times.status.success() && times.output == contender.line();
    if !succeeded {
        eprintln!("{contender:?}: {}, {:?}", times.status, times.output);
    }
    succeeded.then_some(times.end)
}

/// The memory that the host can give to programs, in MiB. Machines that the kernel destroys in the background still have
/// theirs.
pub fn available_mib() -> f64 {
    let text = fs::read_to_string("/proc/meminfo").expect("read /proc/meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).expect("it has MemAvailable");
    let kib = line.trim().trim_end_matches(" kB").parse::<f64>().expect("a size in KiB");
    kib / 1024.0
}

fn per_second(starts: usize, since: Instant) -> f64 {
    starts as f64 / since.elapsed().as_secs_f64()
}
