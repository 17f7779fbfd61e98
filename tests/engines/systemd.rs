//! Docker as a service of systemd, with systemd's cgroup driver: each container is a scope.

use std::fs;
use std::path::Path;

use tests::check_output;

use crate::case::{Case, case};
use crate::engine::Engine;

pub const CASES: &[Case] = &[
    case!(a_container_is_a_scope_with_its_limits).core(),
    case!(limits_outlive_a_reload),
    case!(update_tells_systemd),
    case!(a_scope_in_a_slice_of_its_own),
    case!(codes_of_what_ends_by_itself_and_by_kill),
];

/// The unit of a container.
fn unit(engine: &Engine, name: &str) -> String {
    format!("docker-{}.scope", engine.inspect(name, ".Id"))
}

/// A property of a unit.
fn property(engine: &Engine, unit: &str, name: &str) -> String {
    check_output(&mut engine.systemctl(&["show", "--value", "--property", name, unit])).trim().to_owned()
}

/// A file of a unit's cgroup.
fn file(engine: &Engine, unit: &str, name: &str) -> String {
    let inside = property(engine, unit, "ControlGroup");
    let trees = fs::read_dir("/sys/fs/cgroup").expect("list cgroups").filter_map(Result::ok);
    let tree = trees.map(|entry| entry.path()).find(|path| path.join("init.scope").is_dir());
    let path =
        tree.expect("systemd has a cgroup").join(Path::new(&inside).strip_prefix("/").expect("absolute"));
    fs::read_to_string(path.join(name))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .trim()
        .to_owned()
}

fn a_container_is_a_scope_with_its_limits(engine: &Engine) {
    assert_eq!(engine.ok(&["info", "--format", "{{.CgroupDriver}}"]), "systemd");
    let flags =
        ["-m", "64m", "--cpus", "1.5", "--pids-limit", "50", "box", "sh", "-c", "echo up; sleep 1000"];
    engine.start_container("inner", &flags, "up");
    let unit = unit(engine, "inner");
    assert_eq!(property(engine, &unit, "ActiveState"), "active");
    assert_eq!(property(engine, &unit, "Slice"), "system.slice");
    assert_eq!(property(engine, &unit, "ControlGroup"), format!("/system.slice/{unit}"));
    assert_eq!(property(engine, &unit, "CPUQuotaPerSecUSec"), "1.500000s");
    // The limit of a machine includes an allowance for its monitor.
    let memory: u64 = property(engine, &unit, "MemoryMax").parse().expect("the unit has a limit");
    assert!((64 << 20..512 << 20).contains(&memory), "{memory}");
    let processes: u64 = property(engine, &unit, "TasksMax").parse().expect("the unit has a limit");
    assert!((50..500).contains(&processes), "{processes}");
    let inside = file(engine, &unit, "cgroup.procs");
    assert!(!inside.is_empty());
    engine.ok(&["rm", "-f", "inner"]);
    assert_eq!(property(engine, &unit, "ActiveState"), "inactive");
}

fn limits_outlive_a_reload(engine: &Engine) {
    let flags = ["-m", "64m", "--cpus", "0.5", "--cpuset-cpus", "1", "--cpu-shares", "300"];
    engine.start_container(
        "inner",
        &[&flags[..], &["box", "sh", "-c", "echo up; sleep 1000"]].concat(),
        "up",
    );
    let unit = unit(engine, "inner");
    let names = ["memory.max", "cpu.max", "cpu.weight", "cpuset.cpus"];
    let before = names.map(|name| file(engine, &unit, name));
    check_output(&mut engine.systemctl(&["daemon-reload"]));
    assert_eq!(names.map(|name| file(engine, &unit, name)), before);
    assert_eq!(before[1], "50000 100000");
    assert_eq!(before[3], "1");
}

fn update_tells_systemd(engine: &Engine) {
    engine.start_container("inner", &["--cpus", "1", "box", "sh", "-c", "echo up; sleep 1000"], "up");
    let unit = unit(engine, "inner");
    engine.ok(&["update", "--cpus", "0.25", "inner"]);
    assert_eq!(property(engine, &unit, "CPUQuotaPerSecUSec"), "250ms");
    assert_eq!(file(engine, &unit, "cpu.max"), "25000 100000");
}

fn a_scope_in_a_slice_of_its_own(engine: &Engine) {
    let flags = ["--cgroup-parent", "box-inner.slice", "box", "sh", "-c", "echo up; sleep 1000"];
    engine.start_container("inner", &flags, "up");
    let unit = unit(engine, "inner");
    assert_eq!(property(engine, &unit, "ControlGroup"), format!("/box.slice/box-inner.slice/{unit}"));
}

fn codes_of_what_ends_by_itself_and_by_kill(engine: &Engine) {
    engine.run(&["run", "--rm", "box", "sh", "-c", "exit 7"]).code(7);
    engine.start_container("inner", &["box", "sh", "-c", "echo up; sleep 1000"], "up");
    let unit = unit(engine, "inner");
    engine.ok(&["exec", "inner", "true"]);
    engine.ok(&["pause", "inner"]);
    engine.ok(&["unpause", "inner"]);
    engine.ok(&["kill", "inner"]);
    assert_eq!(engine.ok(&["wait", "inner"]), "137");
    assert_eq!(property(engine, &unit, "ActiveState"), "inactive");
    // A new start uses a scope of the same name.
    engine.ok(&["start", "inner"]);
    assert_eq!(property(engine, &unit, "ActiveState"), "active");
}
