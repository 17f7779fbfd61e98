//! Measures the start of `vmm`, QEMU's microvm machine, runc and crun in turn, and prints the times as JSON.
//!
//! Times are those of the monotonic clock since just before the program is started. On the instruction clock of the
//! emulated KVM host, one nanosecond is one instruction.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// What to measure and how often: the arguments, in order.
struct Plan {
    vmm: String,
    bundle: String,
    kernel: String,
    initramfs: String,
    runs: usize,
    /// Another `vmm` program.
    other: Option<String>,
}

/// Names of a `vmm`'s milestones: READY of the agent, first byte of the container, exit.
type Names = [&'static str; 3];
const VMM: Names = ["vmm: agent ready", "vmm: container's first output", "vmm: exit"];
const OTHER: Names = ["other vmm: agent ready", "other vmm: container's first output", "other vmm: exit"];

/// Milestones of all programs, each with a sample per run in milliseconds.
type Series = Vec<(&'static str, Vec<f64>)>;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [vmm, bundle, kernel, initramfs, runs, rest @ ..] = words.as_slice() else {
        panic!("usage: VMM BUNDLE KERNEL INITRAMFS RUNS [OTHER]");
    };
    let plan = Plan {
        vmm: vmm.clone(),
        bundle: bundle.clone(),
        kernel: kernel.clone(),
        initramfs: initramfs.clone(),
        runs: runs.parse().expect("RUNS is a number"),
        other: rest.first().cloned(),
    };
    let mut series: Series = Vec::new();
    // The first round fills caches and does not count.
    for round in 0..=plan.runs {
        let other = plan.other.iter().flat_map(|other| boot_vmm(&plan, other, OTHER)).collect();
        let runc = run_oci(&plan, "runc", round, ["runc: container's first output", "runc: exit"]);
        let crun = run_oci(&plan, "crun", round, ["crun: container's first output", "crun: exit"]);
        let samples = [boot_vmm(&plan, &plan.vmm, VMM), other, boot_qemu(&plan), runc, crun].concat();
        eprintln!("round {round}: {}", shown(&samples));
        if round == 0 {
            continue;
        }
        for (name, value) in samples {
            match series.iter_mut().find(|(known, _)| *known == name) {
                Some((_, values)) => values.push(value),
                None => series.push((name, vec![value])),
            }
        }
    }
    println!("{}", report(&series));
}

fn shown(samples: &[(&str, f64)]) -> String {
    samples.iter().map(|(name, ms)| format!("{name} {ms:.1}")).collect::<Vec<_>>().join(", ")
}

fn report(series: &Series) -> Value {
    let rows = series.iter().map(|(name, values)| json!({"name": name, "samples": values}));
    json!({"series": rows.collect::<Vec<_>>()})
}

/// Pause before each start. After the end of a machine the kernel still works on its removal, without an event for the
/// end of this work, and the creation of the next machine would wait for it.
const SETTLE: Duration = Duration::from_millis(500);

/// Runs `command`. Returns the times of its first byte and of its end, in milliseconds, and its output.
fn time(command: &mut Command) -> (f64, f64, Vec<u8>) {
    std::thread::sleep(SETTLE);
    let start = Instant::now();
    let ms = || start.elapsed().as_secs_f64() * 1000.0;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("start {:?}: {error}", command.get_program()));
    let mut stdout = child.stdout.take().expect("standard output is a pipe");
    let mut all = vec![0];
    stdout
        .read_exact(&mut all)
        .unwrap_or_else(|error| panic!("{:?} printed nothing: {error}", command.get_program()));
    let first = ms();
    stdout.read_to_end(&mut all).expect("read standard output");
    child.wait().expect("wait for the program");
    (first, ms(), all)
}

/// `vmm run`: READY of the agent according to its marks, and first byte of the container and exit as seen from outside.
fn boot_vmm(plan: &Plan, vmm: &str, names: Names) -> Vec<(&'static str, f64)> {
    let (first, end, text) = time(Command::new(vmm).args(["run", &plan.bundle]));
    assert_eq!(text, b"hello\n");
    let file = "/dev/shm/marks.json";
    let (marked, _, _) =
        time(Command::new(vmm).args(["run", "--marks", file, &plan.bundle]).stderr(Stdio::null()));
    let marks: Value =
        serde_json::from_slice(&std::fs::read(file).expect("read the marks")).expect("parse the marks");
    // The marks count from the beginning of main(). The first output, which both clocks know, gives their offset.
    let ready = marked - (mark(&marks, "first_output") - mark(&marks, "agent_ready"));
    names.into_iter().zip([ready, first, end]).collect()
}

/// Time of the mark `name` in milliseconds.
fn mark(marks: &Value, name: &str) -> f64 {
    let all = marks["marks"].as_array().expect("the marks are a list");
    let found = all.iter().find(|m| m["name"] == name).unwrap_or_else(|| panic!("no mark {name}"));
    found["us"].as_f64().expect("a mark has a time") / 1000.0
}

/// QEMU's microvm machine with the same kernel: first line of a trivial init, and exit.
fn boot_qemu(plan: &Plan) -> Vec<(&'static str, f64)> {
    let (first, end, _) = time(
        Command::new("qemu-system-x86_64")
            .args(["-M", "microvm,pit=off,pic=off,rtc=off,isa-serial=on", "-accel", "kvm", "-cpu", "host"])
            .args([
                "-m",
                "256",
                "-smp",
                "1",
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .args(["-serial", "stdio", "-kernel", &plan.kernel, "-initrd", &plan.initramfs])
            .args([
                "-append",
                "console=ttyS0 8250.nr_uarts=1 reboot=t panic=-1 quiet tsc=reliable no_timer_check rdinit=/init",
            ]),
    );
    vec![("QEMU microvm: init's first line", first), ("QEMU microvm: exit", end)]
}

/// `run` of another runtime with the same bundle: first byte of the container, and exit.
fn run_oci(plan: &Plan, runtime: &str, round: usize, names: [&'static str; 2]) -> Vec<(&'static str, f64)> {
    let id = format!("bench-{round}");
    let (first, end, text) = time(Command::new(runtime).args(["run", "--bundle", &plan.bundle, &id]));
    assert_eq!(text, b"hello\n");
    std::io::stderr().flush().expect("flush");
    names.into_iter().zip([first, end]).collect()
}
