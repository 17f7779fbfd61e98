//! Memory of many idle containers at the same time.

use std::process::Child;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Samples;
use crate::contenders::{Folder, continued, make_template};
use crate::rate::available_mib;
use crate::restore::{end, idle_bundle, private_mib, start_idle};

/// Memory in MiB that stays available: with less, the host would take back what the containers share.
const RESERVE: f64 = 512.0;
/// Time in which the guests become idle after the last start.
const SETTLE: Duration = Duration::from_secs(60);

/// Part of the containers that boot: each of them is alone with its memory, and all use about the same.
const COLD: usize = 10;

/// Starts `count` idle containers from a template, as far as memory reaches, and then a tenth of them cold. Measures the private memory
/// of each process, and what the host has less of available memory, divided by their number.
pub fn density(folder: &Folder, count: usize) -> Value {
    make_template(folder);
    let idle = idle_bundle(folder);
    let (mut memory, mut counts) = (Samples::default(), Vec::new());
    for (name, when, count) in
        [("vmm from a template", "require", count), ("vmm", "off", count.div_ceil(COLD))]
    {
        // The first one fills caches.
        end(&mut start_idle(&mut continued(folder, when, &["run", &idle])));
        let before = available_mib();
        let mut children: Vec<Child> = Vec::new();
        while children.len() < count && available_mib() > RESERVE {
            children.push(start_idle(&mut continued(folder, when, &["run", &idle])));
        }
        thread::sleep(SETTLE);
        let used = (before - available_mib()) / children.len() as f64;
        for child in &children {
            for (part, mib) in private_mib(child.id()) {
                memory.add(&format!("{name}: {part}"), mib);
            }
        }
        memory.add(&format!("{name}: less on the host"), used);
        counts.push(format!("{} of {name}", children.len()));
        children.iter_mut().for_each(end);
    }
    let mut group = memory.group(&format!("memory of each idle container: {}", counts.join(", ")));
    group["unit"] = json!("MiB");
    json!({"groups": [group]})
}
