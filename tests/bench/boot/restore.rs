//! Starts from a template, beside cold starts and other runtimes, and the memory of an idle container.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::Samples;
use crate::contenders::{Contender, Folder, Shape, continued, continued_by, make_template};
use crate::timing::settled;

/// Starts each contender `runs` times in turn. The first round fills caches and does not count.
pub fn restore(folder: &Folder, runs: usize) -> Value {
    make_template(folder);
    let (mut starts, mut memory) = (Samples::default(), Samples::default());
    for round in 0..=runs {
        eprintln!("round {round}");
        let mut dropped = Samples::default();
        let starts = if round == 0 { &mut dropped } else { &mut starts };
        let bundle = folder.path("bundle");
        let id = format!("bench-{round}");
        let runtime = |contender: Contender| contender.command(folder, &id, Shape::default());
        let mut all = vec![
            ("vmm from a template", continued(folder, "require", &["run", &bundle])),
            ("vmm", continued(folder, "off", &["run", &bundle])),
            ("runc", runtime(Contender::Runc)),
            ("crun", runtime(Contender::Crun)),
        ];
        if Contender::OtherVmm.takes_part(folder) {
            let command = continued_by("other", folder, "require", &["run", &bundle]);
            all.push(("other vmm from a template", command));
        }
        for (name, mut command) in all {
            let times = settled(&mut command, Contender::Vmm.line());
            let first = times.first.unwrap_or_else(|| panic!("{name} printed {:?}", times.output));
            starts.add(&format!("{name}: first output"), first);
            starts.add(&format!("{name}: exit"), times.end);
        }
    }
    let idle = idle_bundle(folder);
    for (name, when) in [("vmm from a template", "require"), ("vmm", "off")] {
        let mut child = start_idle(&mut continued(folder, when, &["run", &idle]));
        for (part, mib) in private_mib(child.id()) {
            memory.add(&format!("{name}: {part}"), mib);
        }
        end(&mut child);
    }
    let mut memory = memory.group("private memory of an idle container's process");
    memory["unit"] = json!("MiB");
    json!({"groups": [starts.group("start"), memory]})
}

/// Makes a bundle of the same root file system whose container prints a line and waits for ever.
pub fn idle_bundle(folder: &Folder) -> String {
    let bundle = folder.path("idle");
    let text = fs::read(folder.path("bundle") + "/config.json").expect("read config.json");
    let mut config: Value = serde_json::from_slice(&text).expect("parse config.json");
    config["process"]["args"] = json!(["sh", "-c", "echo hello; exec sleep 1000000"]);
    config["root"]["path"] = json!(folder.path("bundle") + "/rootfs");
    fs::create_dir_all(&bundle).expect("create a bundle");
    fs::write(format!("{bundle}/config.json"), config.to_string()).expect("write config.json");
    bundle
}

/// Starts an idle container, and returns once it has printed its line.
pub fn start_idle(command: &mut Command) -> Child {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("start the idle container");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("read its line");
    assert_eq!(line, "hello\n");
    child
}

pub fn end(child: &mut Child) {
    child.kill().expect("kill it");
    child.wait().expect("wait for it");
}

/// Returns the private memory of a process in MiB: all of it, and the part that is not guest memory. What a process alone has mapped
/// of a file, such as its program or a template, is the host's page cache and not private.
pub fn private_mib(pid: u32) -> [(&'static str, f64); 2] {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("read its mappings");
    // Only guest memory is excluded from core dumps (`dd`).
    let (mut all, mut own, mut private) = (0_u64, 0, 0);
    for line in maps.lines() {
        let number = || line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
        if line.starts_with("Anonymous:") {
            private += number().expect("a number of KiB");
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            all += private;
            own += if flags.split_whitespace().any(|flag| flag == "dd") { 0 } else { private };
            private = 0;
        }
    }
    [("all", all), ("without guest memory", own)].map(|(part, kib)| (part, kib as f64 / 1024.0))
}
