//! Measures containers of Docker with `runc` and `vmm` in turn, and prints a report as JSON.

use std::time::Instant;

use serde_json::{Value, json};
use tests::Running;

use crate::engine::{Engine, Kind, WITHOUT_VHOST};
use crate::{RUNTIMES, images};

/// Size of the file that is written and read, in MiB.
const FILE_MIB: u32 = 64;
/// Duration of each transfer over the network, in seconds.
const TRANSFER_SECONDS: &str = "3";
/// Runtimes whose networks are compared.
const NETWORKED: [&str; 3] = ["runc", "vmm", WITHOUT_VHOST];
/// Address of the host on Docker's default bridge.
const GATEWAY: &str = "172.17.0.1";

/// Samples of a measurement by runtime.
struct Measured {
    title: &'static str,
    unit: &'static str,
    rows: Vec<(String, Vec<f64>)>,
}

impl Measured {
    fn new(title: &'static str, unit: &'static str) -> Measured {
        Measured { title, unit, rows: Vec::new() }
    }

    fn add(&mut self, name: &str, sample: f64) {
        eprintln!("{}, {name}: {sample:.1} {}", self.title, self.unit);
        match self.rows.iter_mut().find(|(known, _)| known == name) {
            Some((_, samples)) => samples.push(sample),
            None => self.rows.push((name.to_owned(), vec![sample])),
        }
    }

    fn json(&self) -> Value {
        let rows = self.rows.iter().map(|(name, samples)| json!({"name": name, "samples": samples}));
        json!({"title": self.title, "unit": self.unit, "series": rows.collect::<Vec<_>>()})
    }
}

/// Measures `runs` times. With `all`, measures memory, files and network besides the time of a run.
pub fn bench(runs: usize, all: bool) {
    let engine = Engine::start(Kind::Docker, "vmm");
    let mut groups = vec![whole_runs(&engine, runs)];
    if all {
        groups.push(private_memory(&engine));
        groups.push(files(&engine, runs));
        groups.push(network(&engine, runs));
    }
    println!("{}", json!({"groups": groups.iter().map(Measured::json).collect::<Vec<_>>()}));
}

/// Time of `docker run`.
fn whole_runs(engine: &Engine, runs: usize) -> Measured {
    let mut measured = Measured::new("docker run --rm box true", "ms");
    // The first round fills caches and does not count.
    for round in 0..=runs {
        for runtime in RUNTIMES {
            let begun = Instant::now();
            engine.ok(&["run", "--rm", "--runtime", runtime, "box", "true"]);
            if round > 0 {
                measured.add(runtime, begun.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    measured
}

/// Private memory of the process that represents a container, which includes the guest's.
fn private_memory(engine: &Engine) -> Measured {
    let mut measured = Measured::new("private memory of a container that sleeps", "MiB");
    for runtime in RUNTIMES {
        engine.start_container(
            "sleeper",
            &["--runtime", runtime, "box", "sh", "-c", "echo ready; exec sleep 1000"],
            "ready",
        );
        let pid = engine.inspect("sleeper", ".State.Pid");
        let maps =
            std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("read what the process has");
        let private = maps.lines().filter(|line| line.starts_with("Private_"));
        let kib: f64 = private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok()).sum();
        measured.add(runtime, kib / 1024.0);
        engine.ok(&["rm", "-f", "sleeper"]);
    }
    measured
}

/// Rates at which a file of the root file system is written with fsync, and read.
fn files(engine: &Engine, runs: usize) -> Measured {
    let mut measured = Measured::new("a file of the root file system", "MiB/s");
    // The container prints its clock, in hundredths of a second, before and after each.
    let script = format!(
        "now() {{ cut -d' ' -f1 /proc/uptime; }}; now; dd if=/dev/zero of=/f bs=1M count={FILE_MIB} conv=fsync 2>/dev/null; \
         now; dd if=/f of=/dev/null bs=1M 2>/dev/null; now"
    );
    for _ in 0..runs {
        for runtime in RUNTIMES {
            let text = engine.sh(&["--runtime", runtime], &script);
            let times: Vec<f64> = text.lines().map(|line| line.parse().expect("a time")).collect();
            assert_eq!(times.len(), 3, "{text}");
            for (name, pair) in ["write", "read"].iter().zip(times.windows(2)) {
                let seconds = (pair[1] - pair[0]).max(0.01);
                measured.add(&format!("{runtime}: {name}"), f64::from(FILE_MIB) / seconds);
            }
        }
    }
    measured
}

/// Rates of a TCP stream to the host and of one from it, measured by iperf3.
fn network(engine: &Engine, runs: usize) -> Measured {
    let mut measured = Measured::new("TCP over the bridge, iperf3", "Mbit/s");
    images::import_programs(engine);
    let mut server = Running::start({
        let mut command = std::process::Command::new("iperf3");
        command.args(["-s", "--forceflush"]);
        command
    });
    server.wait_for("listening");
    for _ in 0..runs {
        for runtime in NETWORKED {
            for (name, flag) in [("to the host", "-4"), ("from the host", "-R")] {
                let words = [
                    "run",
                    "--rm",
                    "--runtime",
                    runtime,
                    "programs",
                    "iperf3",
                    "-J",
                    "-c",
                    GATEWAY,
                    "-t",
                    TRANSFER_SECONDS,
                    flag,
                ];
                let report: Value = serde_json::from_str(&engine.ok(&words)).expect("parse iperf3's report");
                let bits = report["end"]["sum_received"]["bits_per_second"].as_f64().expect("a rate");
                measured.add(&format!("{runtime}: {name}"), bits / 1e6);
            }
        }
    }
    server.stop();
    measured
}
