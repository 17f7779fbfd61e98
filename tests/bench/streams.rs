//! Measures output and input of a container, and exec processes, each in comparison with the same without a machine.
//! Prints the results as JSON.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

/// Size of reads and writes in bytes, on both sides.
const BLOCK: usize = 64 << 10;
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
    let groups = [
        plan.output().group("from the guest", "MiB/s"),
        plan.input().group("to the guest", "MiB/s"),
        plan.execs().group("exec process", "ms"),
    ];
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

    /// The same script on the host and in a container.
    fn contenders(&self, name: &str, script: &str) -> [(&'static str, Command); 2] {
        let mut host = Command::new("/bin/busybox");
        host.args(["sh", "-c", script]);
        let mut container = Command::new(&self.vmm);
        container.arg("run").arg(self.bundle(name, script));
        [("pipe between two processes", host), ("vmm", container)]
    }

    /// Rates at which a process's output arrives, from the first byte to the last.
    fn output(&self) -> Series {
        let mut series = Series::default();
        let script =
            format!("exec dd if=/dev/zero bs={BLOCK} count={} 2>/dev/null", self.mib * (1 << 20) / BLOCK);
        for _ in 0..self.runs {
            for (name, mut command) in self.contenders("output", &script) {
                let mut child = start(command.stdin(Stdio::null()));
                let mut stdout = child.stdout.take().expect("standard output is a pipe");
                let mut block = vec![0; BLOCK];
                let first = stdout.read(&mut block).expect("read the first bytes");
                let begun = Instant::now();
                let mut bytes = 0;
                while bytes + first < self.mib << 20 {
                    match stdout.read(&mut block).expect("read") {
                        0 => panic!("{name}: the output ended early"),
                        count => bytes += count,
                    }
                }
                series.add(name, rate(bytes, begun));
                end(child);
            }
        }
        series
    }

    /// Rates at which a process reads its input, from its first line of output to its last.
    fn input(&self) -> Series {
        let mut series = Series::default();
        let script = format!("echo ready; dd of=/dev/null bs={BLOCK} 2>/dev/null; echo done");
        let block = vec![0; BLOCK];
        for _ in 0..self.runs {
            for (name, mut command) in self.contenders("input", &script) {
                let mut child = start(command.stdin(Stdio::piped()));
                let mut stdin = child.stdin.take().expect("standard input is a pipe");
                let mut lines =
                    BufReader::new(child.stdout.take().expect("standard output is a pipe")).lines();
                let mut line = || lines.next().expect("a line").expect("read");
                assert_eq!(line(), "ready");
                let begun = Instant::now();
                let blocks = self.mib * (1 << 20) / BLOCK;
                (0..blocks).for_each(|_| stdin.write_all(&block).expect("write"));
                drop(stdin);
                assert_eq!(line(), "done");
                series.add(name, rate(blocks * BLOCK, begun));
                end(child);
            }
        }
        series
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

/// MiB per second.
fn rate(bytes: usize, since: Instant) -> f64 {
    bytes as f64 / f64::from(1 << 20) / since.elapsed().as_secs_f64()
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
