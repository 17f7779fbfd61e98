//! Repeated runs, abnormal ends, what they leave on the host, and how much memory they use.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use tests::{Bundle, check_output, program};

/// What a run could leave on the host.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    mounts: String,
    processes: BTreeSet<String>,
    files: BTreeSet<String>,
}

impl Traces {
    /// Collects the traces of runs of `bundle`.
    fn of(bundle: &Path) -> Traces {
        let own = bundle.to_string_lossy().into_owned();
        let mut processes = BTreeSet::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&own) {
                processes.insert(line);
            }
        }
        let list = |dir: &str| -> Vec<String> {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|e| format!("{dir}/{}", e.file_name().to_string_lossy())).collect()
        };
        let mut files: BTreeSet<String> = [list("/run/vmm"), list("/dev/shm")].concat().into_iter().collect();
        files.retain(|f| !f.contains("tests"));
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mounts = mounts.lines().filter(|l| l.contains(&own)).collect();
        Traces { mounts, processes, files }
    }
}

#[test]
fn twenty_runs_in_a_row_succeed() {
    let bundle = Bundle::sh("echo boot");
    for _ in 0..20 {
        bundle.run().code(0).stdout("boot\n").stderr("");
    }
}

#[test]
fn a_run_leaves_nothing_on_the_host() {
    let bundle = Bundle::sh("echo up; cat");
    bundle.write();
    let before = Traces::of(bundle.path());
    bundle.run().code(0);
    assert_eq!(Traces::of(bundle.path()), before, "after a clean exit");
    Bundle::new(&["/none"]).run().code(127);
    assert_eq!(Traces::of(bundle.path()), before, "after a failed start");
    for signal in ["KILL", "QUIT"] {
        let mut run = bundle.start();
        run.wait_for("up\n");
        run.signal(signal);
        if signal == "QUIT" {
            // Forwarded. The shell is an init process without a handler, so it runs until its input ends.
            run.finish();
        } else {
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&run.finish().status), Some(9));
        }
        assert_eq!(Traces::of(bundle.path()), before, "after SIG{signal}");
    }
}

#[test]
fn vmm_uses_at_most_8_mib_of_private_memory() {
    let bundle = Bundle::sh("echo up; cat");
    let mut run = bundle.start();
    run.wait_for("up\n");
    let maps = fs::read_to_string(format!("/proc/{}/smaps", run.pid())).unwrap();
    run.finish().code(0);
    let (mut guest, mut private, mut size) = (0, 0, 0);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let word = words.next().unwrap_or_default();
        let kib = || line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        match word {
            "Size:" => size = kib(),
            // Only guest memory is a mapping of this size.
            "Private_Dirty:" if size >= 32 << 10 => guest += kib(),
            "Private_Dirty:" => private += kib(),
            _ => {}
        }
    }
    println!("guest memory in use {guest} KiB, private memory of vmm {private} KiB");
    assert!(private <= 8 << 10, "vmm has {private} KiB of private memory");
    assert!(guest > 1 << 10, "no guest memory found");
}

#[test]
fn kernel_and_agent_use_at_most_24_mib() {
    let text = Bundle::new(&["cat", "/proc/meminfo"]).flag("--memory").flag("256").run().code(0).text();
    let free = text.lines().find_map(|line| line.strip_prefix("MemFree:")?.split_whitespace().next());
    let free: u64 = free.expect("meminfo has a line MemFree").parse().unwrap();
    // The kernel with its page structures, the agent, and `cat`.
    let used = (256 << 10) - free;
    println!("the guest uses {used} KiB");
    assert!(used <= 24 << 10, "the guest uses {used} KiB");
}

#[test]
fn marks_are_written_in_order() {
    let bundle = Bundle::sh("echo hi");
    let file = bundle.path().join("marks.json");
    let bundle = bundle.flag("--marks").flag(file.to_str().unwrap());
    bundle.run().code(0).stdout("hi\n");
    let text = fs::read_to_string(&file).unwrap();
    let marks: serde_json::Value = serde_json::from_str(&text).unwrap();
    let events = marks["traceEvents"].as_array().expect("a trace");
    let mut last = -1.0;
    for name in [
        "start",
        "planned",
        "vm_created",
        "vcpu_running",
        "agent_started",
        "agent_ready",
        "first_output",
        "exited",
    ] {
        let event =
            events.iter().find(|e| e["name"] == name).unwrap_or_else(|| panic!("no {name} in {text}"));
        let at = event["ts"].as_f64().expect("a time");
        assert!(at >= last, "{name} at {at} comes before {last}");
        last = at;
    }
}

#[test]
fn run_takes_the_bundle_from_a_flag_or_the_working_directory() {
    let bundle = Bundle::sh("echo form");
    bundle.write();
    let dir = bundle.path().to_str().unwrap();
    assert_eq!(check_output(Command::new(program()).args(["run", "--bundle", dir, "some-id"])), "form\n");
    assert_eq!(check_output(Command::new(program()).args(["run", "other-id"]).current_dir(dir)), "form\n");
}

#[test]
fn the_version_is_printed() {
    assert!(check_output(Command::new(program()).arg("--version")).starts_with("vmm "));
}

#[test]
fn programs_of_debian_run() {
    let bundle = Bundle::debian(&["sh", "-c", "uname -a; cat /etc/os-release; id; mount; ls /proc | wc -l"]);
    let text = bundle.run().code(0).text();
    for part in ["Linux", "Debian GNU/Linux", "uid=0(root)", "on / type", "on /proc type proc"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}
