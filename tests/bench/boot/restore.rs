//! Starts from a template, beside cold starts and other runtimes, and the memory of an idle container.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::Samples;
use crate::contenders::{Contender, Folder, Shape};
use crate::timing::settled;

/// Starts each contender `runs` times in turn. The first round fills caches and does not count.
pub fn restore(folder: &Folder, runs: usize) -> Value {
    let mut create = vmm(folder, "auto", &["template", "create"]);
    let made = create.stdout(Stdio::null()).status().expect("start vmm");
    assert!(made.success(), "make a template: {made}");
    let (mut starts, mut memory) = (Samples::default(), Samples::default());
    for round in 0..=runs {
        eprintln!("round {round}");
        let mut dropped = Samples::default();
        let starts = if round == 0 { &mut dropped } else { &mut starts };
        let bundle = folder.path("bundle");
        let id = format!("bench-{round}");
        let runtime = |contender: Contender| contender.command(folder, &id, Shape::default());
        for (name, mut command) in [
            ("vmm from a template", vmm(folder, "require", &["run", &bundle])),
            ("vmm", vmm(folder, "off", &["run", &bundle])),
            ("runc", runtime(Contender::Runc)),
            ("crun", runtime(Contender::Crun)),
        ] {
            let times = settled(&mut command, Contender::Vmm.line());
            let first = times.first.unwrap_or_else(|| panic!("{name} printed {:?}", times.output));
            starts.add(&format!("{name}: first output"), first);
            starts.add(&format!("{name}: exit"), times.end);
        }
    }
    let idle = idle_bundle(folder);
    for (name, when) in [("vmm from a template", "require"), ("vmm", "off")] {
        for (part, kib) in private_memory(&mut vmm(folder, when, &["run", &idle])) {
            memory.add(&format!("{name}: {part}"), kib as f64 / 1024.0);
        }
    }
    let mut memory = memory.group("private memory of an idle container's process");
    memory["unit"] = json!("MiB");
    json!({"groups": [starts.group("start"), memory]})
}

/// `vmm` with the bench's own templates.
fn vmm(folder: &Folder, when: &str, words: &[&str]) -> Command {
    let mut command = Command::new(folder.path("vmm"));
    command.args(words).env("VMM_TEMPLATE", when).env("VMM_TEMPLATE_DIR", folder.path("templates"));
    command
}

/// Makes a bundle of the same root file system whose container prints a line and waits for ever.
fn idle_bundle(folder: &Folder) -> String {
    let bundle = folder.path("idle");
    let text = fs::read(folder.path("bundle") + "/config.json").expect("read config.json");
    let mut config: Value = serde_json::from_slice(&text).expect("parse config.json");
    config["process"]["args"] = json!(["sh", "-c", "echo hello; exec sleep 1000000"]);
    config["root"]["path"] = json!(folder.path("bundle") + "/rootfs");
    fs::create_dir_all(&bundle).expect("create a bundle");
    fs::write(format!("{bundle}/config.json"), config.to_string()).expect("write config.json");
    bundle
}

/// Starts a container, and returns the private memory of its process in KiB once it has printed its line: all of it, and the
/// part that is not guest memory.
fn private_memory(command: &mut Command) -> [(&'static str, u64); 2] {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("start the idle container");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("read its line");
    assert_eq!(line, "hello\n");
    let maps = fs::read_to_string(format!("/proc/{}/smaps", child.id())).expect("read its mappings");
    child.kill().expect("kill it");
    child.wait().expect("wait for it");
    // Only guest memory is excluded from core dumps (`dd`).
    let (mut all, mut own, mut private) = (0, 0, 0);
    for line in maps.lines() {
        let number = || line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
        // Clean pages are those of files, which the next machine uses as well.
        if line.starts_with("Private_Dirty:") {
            private += number().expect("a number of KiB");
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            all += private;
            own += if flags.split_whitespace().any(|flag| flag == "dd") { 0 } else { private };
            private = 0;
        }
    }
    [("all", all), ("without guest memory", own)]
}
