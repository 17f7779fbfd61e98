//! Starts of `vmm` with bundles that ask for more than a program: the full kernel, a cgroup, a memory limit.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::Samples;
use crate::contenders::Folder;
use crate::timing::settled;

/// A memory limit in bytes.
const LIMIT: u64 = 1 << 30;
/// The machine of a container with [`LIMIT`] in MiB: 1/64 and 32 MiB more.
const MACHINE_MIB: &str = "1072";

/// What a bundle asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A program, in the foreground.
    Program,
    /// A capability for which a machine has the full kernel.
    FullKernel,
    /// A cgroup, in the background, as an engine starts it.
    Cgroup,
    /// The same with a memory limit, whose kills a process of its own reports.
    MemoryLimit,
}

const KINDS: [Kind; 4] = [Kind::Program, Kind::FullKernel, Kind::Cgroup, Kind::MemoryLimit];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Program => "program",
            Kind::FullKernel => "full kernel",
            Kind::Cgroup => "cgroup, detached",
            Kind::MemoryLimit => "memory limit, detached",
        }
    }

    /// Changes the `config.json` of a bundle that asks for nothing.
    fn ask(self, config: &mut Value, id: &str) {
        if self == Kind::FullKernel {
            let bounding = config["process"]["capabilities"]["bounding"].as_array_mut();
            bounding.expect("a list of capabilities").push(json!("CAP_SYS_ADMIN"));
        }
        if self.is_detached() {
            config["linux"]["cgroupsPath"] = json!(format!("/{id}"));
        }
        if self == Kind::MemoryLimit {
            config["linux"]["resources"]["memory"] = json!({"limit": LIMIT});
        }
    }

    fn is_detached(self) -> bool {
        matches!(self, Kind::Cgroup | Kind::MemoryLimit)
    }
}

/// Starts each kind `runs` times in turn, with machines of one size. The first round fills caches and does not count.
pub fn bundles(folder: &Folder, runs: usize) -> Value {
    let (mut first, mut end) = (Samples::default(), Samples::default());
    for round in 0..=runs {
        for kind in KINDS {
            let (to_output, to_exit) = start(folder, kind, &format!("bench-{round}"));
            if round > 0 {
                first.add(kind.name(), to_output);
                // A detached container has ended when its output has.
                end.add(kind.name(), to_exit);
            }
        }
    }
    json!({"groups": [first.group("start to first output"), end.group("start to exit")]})
}

/// Starts a container. Returns the times from the start of `vmm` to its line of output and to the end of both.
fn start(folder: &Folder, kind: Kind, id: &str) -> (f64, f64) {
    let bundle = folder.path("asking");
    fs::create_dir_all(&bundle).expect("create a bundle");
    let text = fs::read(folder.path("bundle/config.json")).expect("read config.json");
    let mut config: Value = serde_json::from_slice(&text).expect("parse config.json");
    config["root"]["path"] = json!(folder.path("bundle/rootfs"));
    kind.ask(&mut config, id);
    fs::write(format!("{bundle}/config.json"), config.to_string()).expect("write config.json");
    let vmm = || {
        let mut command = Command::new(folder.path("vmm"));
        command.env("VMM_MEMORY", MACHINE_MIB).env("VMM_CPUS", "1").args(["--root", &folder.path("state")]);
        command
    };
    let mut command = vmm();
    command.arg("run").args(kind.is_detached().then_some("--detach")).args(["--bundle", &bundle, id]);
    let times = settled(command.stderr(Stdio::inherit()), "hello\n");
    if kind.is_detached() {
        let deleted = vmm().args(["delete", "--force", id]).status().expect("start vmm");
        assert!(deleted.success(), "delete {id}");
    }
    (times.first.unwrap_or_else(|| panic!("{} printed {:?}", kind.name(), times.output)), times.end)
}
