//! Measures output and input of a container, and exec processes, each in comparison with the same without a machine.
//! Prints the results as JSON.

#[path = "streams/counters.rs"]
mod counters;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use counters::Trace;
use serde_json::{Value, json};

/// Size of reads and writes in bytes, on both sides.
const BLOCK: usize = 64 << 10;
/// Size of a line of a log in bytes, and which part of the data is written in lines: they take longer.
const LINE: usize = 100;
const LINES_PART: usize = 16;
/// Name of the pod and of the container with the exec processes.
const NAME: &str = "bench";

/// What to measure and how often.
struct Plan {
    vmm: PathBuf,
    rootfs: PathBuf,
    /// Template of `config.json`.
    config: Value,
    /// Directory for bundles.
    dir: PathBuf,
    mib: usize,
    runs: usize,
}

/// Samples by name, in order of appearance.
#[derive(Default)]
struct Series(Vec<(&'static str, Vec<f64>)>);

impl Series {
    fn add(&mut self, name: &'static str, sample: f64) {
        eprintln!("{name}: {sample:.1}");
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, samples)) => samples.push(sample),
            None => self.0.push((name, vec![sample])),
        }
    }

    fn group(&self, title: &str, unit: &str) -> Value {
        let rows = self.0.iter().map(|(name, samples)| json!({"name": name, "samples": samples}));
        json!({"title": title, "unit": unit, "series": rows.collect::<Vec<_>>()})
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [vmm, bundle, dir, mib, runs] = words.try_into().expect("VMM BUNDLE DIR MIB RUNS");
    let bundle = PathBuf::from(bundle);
    let config = fs::read(bundle.join("config.json")).expect("read config.json");
    let plan = Plan {
        vmm: vmm.into(),
        rootfs: bundle.join("rootfs"),
        config: serde_json::from_slice(&config).expect("parse config.json"),
        dir: dir.into(),
        mib: mib.parse().expect("MIB is a number"),
        runs: runs.parse().expect("RUNS is a number"),
    };
    let moved = [
        ("from the guest in 64 KiB writes", plan.output(BLOCK, plan.mib)),
        ("from the guest in 100 byte writes", plan.output(LINE, (plan.mib / LINES_PART).max(1))),
        ("to the guest", plan.input()),
    ];
    let mut groups = Vec::new();
    for (title, [rates, exits, calls]) in moved {
        groups.push(rates.group(title, "MiB/s"));
        groups.push(exits.group(&format!("exits, {title}"), "per MiB"));
        groups.push(calls.group(&format!("system calls of the machine's process, {title}"), "per MiB"));
    }
    groups.push(plan.execs().group("exec process", "ms"));
    println!("{}", json!({ "groups": groups }));
}

impl Plan {
    /// A bundle that runs `script`.
    fn bundle(&self, name: &str, script: &str) -> PathBuf {
        let dir = self.dir.join(name);
        let mut config = self.config.clone();
        config["root"]["path"] = json!(self.rootfs);
        config["process"]["args"] = json!(["/bin/sh", "-c", script]);
        fs::create_dir_all(&dir).expect("create a bundle");
        fs::write(dir.join("config.json"), config.to_string()).expect("write config.json");
        dir
    }

    /// The same script on the host and in containers.
    fn contenders(&self, name: &str, script: &str) -> [(&'static str, Command); 3] {
        let mut host = Command::new("/bin/busybox");
        host.args(["sh", "-c", script]);
        let bundle = self.bundle(name, script);
        let mut runc = Command::new("runc");
        runc.args(["run", "--bundle"]).arg(&bundle).arg(NAME);
        let mut container = Command::new(&self.vmm);
        container.arg("run").arg(bundle);
        [("pipe between two processes", host), ("runc", runc), ("vmm", container)]
    }

    /// Moves so many bytes with each contender in turn. The last round counts system calls alone.
    fn moved(&self, name: &str, script: &str, transfer: Transfer, bytes: usize) -> [Series; 3] {
        let [mut rates, mut exits, mut calls] = [Series::default(), Series::default(), Series::default()];
        for run in 0..=self.runs {
            let traced = run == self.runs;
            for (contender, mut command) in self.contenders(name, script) {
                if traced && contender != "vmm" {
                    continue;
                }
                let mut child = start(command.stdin(Stdio::piped()));
                let moved = transfer(&mut child, bytes, traced);
                end(child);
                let mib = bytes as f64 / f64::from(1 << 20);
                match moved.calls {
                    Some(counted) => calls.add(contender, counted / mib),
                    None => rates.add(contender, mib / moved.seconds),
                }
                if contender == "vmm" && !traced {
                    exits.add(contender, moved.exits / mib);
                }
            }
        }
        [rates, exits, calls]
    }

    /// A process writes `mib` MiB in blocks of `block` bytes.
    fn output(&self, block: usize, mib: usize) -> [Series; 3] {
        let count = mib * (1 << 20) / block;
        let script = format!("dd if=/dev/zero bs={block} count={count} 2>/dev/null; exec cat >/dev/null");
        self.moved("output", &script, take_output, block * count)
    }

    /// A process reads its input.
    fn input(&self) -> [Series; 3] {
        let script = format!("echo ready; dd of=/dev/null bs={BLOCK} 2>/dev/null; echo done; sleep 1");
        self.moved("input", &script, give_input, self.mib << 20)
    }

    /// Times of an exec process in a running container, from start to end.
    fn execs(&self) -> Series {
        let mut series = Series::default();
        let bundle = self.bundle("exec", "exec sleep 100000");
        let pod = json!({"id": NAME, "containers": [{"name": NAME, "image": bundle}]});
        let podfile = self.dir.join("pod.json");
        fs::write(&podfile, pod.to_string()).expect("write the podfile");
        let vmm = |words: &[&str]| {
            let mut command = Command::new(&self.vmm);
            command.args(["pod", "--root"]).arg(self.dir.join("state")).args(words);
            command
        };
        let runc = |words: &[&str]| {
            let mut command = Command::new("runc");
            command.args(words);
            command
        };
        succeed(&mut vmm(&["run", "--detach", &text(&podfile)]));
        succeed(&mut runc(&["run", "--detach", "--bundle", &text(&bundle), NAME]));
        // The first run of each fills caches and does not count.
        for run in 0..=self.runs * 4 {
            for (name, mut command) in [
                ("runc exec", runc(&["exec", NAME, "true"])),
                ("vmm pod exec", vmm(&["exec", NAME, NAME, "true"])),
            ] {
                let begun = Instant::now();
                succeed(&mut command);
                let ms = begun.elapsed().as_secs_f64() * 1000.0;
                if run > 0 {
                    series.add(name, ms);
                }
            }
        }
        succeed(&mut runc(&["delete", "--force", NAME]));
        succeed(&mut vmm(&["rm", "--force", NAME]));
        series
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Moves so many bytes out of a process or into one, and traces that or not.
type Transfer = fn(&mut Child, usize, bool) -> Moved;

/// What a transfer took.
struct Moved {
    seconds: f64,
    exits: f64,
    /// System calls, if they were traced.
    calls: Option<f64>,
}

impl Moved {
    /// What `transfer` takes, whose end is not that of the machine of process `pid`.
    fn by(pid: u32, traced: bool, transfer: impl FnOnce()) -> Moved {
        let trace = traced.then(|| Trace::begin(pid));
        let (begun, before) = (Instant::now(), counters::exits());
        transfer();
        let seconds = begun.elapsed().as_secs_f64();
        Moved { seconds, exits: counters::exits() - before, calls: trace.map(Trace::end) }
    }
}

/// Reads a process's output, and measures from the first byte to the last. The process then waits for its input's end.
fn take_output(child: &mut Child, bytes: usize, traced: bool) -> Moved {
    let mut stdout = child.stdout.take().expect("standard output is a pipe");
    let mut block = vec![0; BLOCK];
    stdout.read_exact(&mut block[..1]).expect("read the first byte");
    let moved = Moved::by(child.id(), traced, || {
        let mut rest = bytes - 1;
        while rest > 0 {
            let count = stdout.read(&mut block).expect("read");
            assert!(count > 0, "the output ended early");
            rest -= count;
        }
    });
    drop(child.stdin.take());
    moved
}

/// Gives a process its input, and measures from its first line of output to its last.
fn give_input(child: &mut Child, bytes: usize, traced: bool) -> Moved {
    let mut stdin = child.stdin.take().expect("standard input is a pipe");
    let mut lines = BufReader::new(child.stdout.take().expect("standard output is a pipe")).lines();
    let mut line = || lines.next().expect("a line").expect("read");
    assert_eq!(line(), "ready");
    let block = vec![0; BLOCK];
    Moved::by(child.id(), traced, || {
        (0..bytes / BLOCK).for_each(|_| stdin.write_all(&block).expect("write"));
        drop(stdin);
        assert_eq!(line(), "done");
    })
}

fn start(command: &mut Command) -> Child {
    let program = command.get_program().to_owned();
    command.stdout(Stdio::piped()).spawn().unwrap_or_else(|error| panic!("start {program:?}: {error}"))
}

fn end(mut child: Child) {
    let status = child.wait().expect("wait for the program");
    assert!(status.success(), "{status}");
}

fn succeed(command: &mut Command) {
    let program = command.get_program().to_owned();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    let status = status.unwrap_or_else(|error| panic!("start {program:?}: {error}"));
    assert!(status.success(), "{program:?}: {status}");
}
