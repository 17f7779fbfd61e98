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

/// Starts `count` idle containers from a template, as far as memory reaches, and then a tenth of them cold.
pub fn density(folder: &Folder, count: usize) -> Value {
    make_template(folder);
    let idle = idle_bundle(folder);
    let mut groups = Vec::new();
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
        let (mut private, mut host) = (Samples::default(), Samples::default());
        for child in &children {
            private_mib(child.id()).into_iter().for_each(|(part, mib)| private.add(part, mib));
        }
        host.add("for each", used);
        let title = format!("{name}, {} idle containers", children.len());
        for (group, what) in
            [(private, "private memory of each process"), (host, "memory that the host has less")]
        {
            let mut group = group.group(&format!("{title}: {what}"));
            group["unit"] = json!("MiB");
            groups.push(group);
        }
        children.iter_mut().for_each(end);
    }
    json!({"groups": groups})
}
