//! Starts from a template, beside cold starts and other runtimes; the memory of an idle container; and its checkpoint.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use crate::Samples;
use crate::contenders::{Contender, Folder, Shape, continued, continued_by, make_template};
use crate::timing::{SETTLE, settled};

/// A cold start that has a template made: it starts a process for that.
const CLAIMS: &str = "vmm, the first of its kind";

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
        let claims = folder.path("claims");
        all.push((CLAIMS, continued(folder, "auto", &["run", &bundle])));
        for (name, mut command) in all {
            if name == CLAIMS {
                command.env("VMM_TEMPLATE_DIR", &claims).env("VMM_TEMPLATE_MAKE", "idle");
            }
            let times = settled(&mut command, Contender::Vmm.line());
            let first = times.first.unwrap_or_else(|| panic!("{name} printed {:?}", times.output));
            starts.add(&format!("{name}: first output"), first);
            starts.add(&format!("{name}: exit"), times.end);
            if name == CLAIMS {
                end_makers();
                fs::remove_dir_all(&claims).expect("remove the template directory");
            }
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
    let (times, sizes) = checkpoints(folder, &idle, runs);
    let mut sizes = sizes.group("checkpoint of an idle container: length of its files");
    sizes["unit"] = json!("MiB");
    json!({"groups": [starts.group("start"), memory, times.group("checkpoint of an idle container"), sizes]})
}

/// Saves an idle container and restores it `runs` times, beside its start. The first round fills caches and does not count. Also
/// returns the lengths of the files.
fn checkpoints(folder: &Folder, idle: &str, runs: usize) -> (Samples, Samples) {
    let (mut times, mut sizes) = (Samples::default(), Samples::default());
    let (state, image) = (folder.path("state"), folder.path("checkpoint"));
    for round in 0..=runs {
        eprintln!("round {round}");
        let (mut dropped, mut dropped_sizes) = (Samples::default(), Samples::default());
        let (times, sizes) =
            if round == 0 { (&mut dropped, &mut dropped_sizes) } else { (&mut times, &mut sizes) };
        let mut timed = |name: &str, when: &str, words: &[&str]| {
            let all: Vec<&str> = ["--root", &state].iter().chain(words).copied().collect();
            let mut command = continued(folder, when, &all);
            command.stdin(Stdio::null()).stdout(Stdio::null());
            times.add(name, took(&mut command));
        };
        let start = ["run", "--detach", "--bundle", idle];
        timed("start, cold", "off", &[&start[..], &["cold"]].concat());
        timed("start from a template", "require", &[&start[..], &["saved"]].concat());
        timed("checkpoint", "off", &["checkpoint", "--image-path", &image, "saved"]);
        for name in ["memory", "state"] {
            let file = fs::metadata(format!("{image}/{name}")).expect("a file of the checkpoint");
            // Of the memory, what is on the disk.
            sizes.add(name, file.blocks() as f64 / 2048.0);
        }
        let restore = ["restore", "--image-path", &image, "--bundle", idle, "--detach", "again"];
        timed("restore", "off", &restore);
        for id in ["cold", "saved", "again"] {
            let mut delete = continued(folder, "off", &["--root", &state, "delete", "--force", id]);
            assert!(delete.status().expect("start vmm").success(), "delete {id}");
        }
    }
    (times, sizes)
}

/// Runs a command, which succeeds, when the host has settled. Returns its milliseconds.
fn took(command: &mut Command) -> f64 {
    thread::sleep(SETTLE);
    let start = Instant::now();
    let status = command.status().expect("start vmm");
    assert!(status.success(), "{command:?}: {status}");
    start.elapsed().as_secs_f64() * 1000.0
}

/// Kills the processes that are about to make templates, which wait for two seconds at first.
fn end_makers() {
    for entry in fs::read_dir("/proc").expect("list processes").flatten() {
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if words.ends_with(b"\0template\0make\0") {
            let killed = Command::new("kill").arg("-KILL").arg(entry.file_name()).status();
            assert!(killed.expect("start kill").success(), "kill a process that makes a template");
        }
    }
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
