//! Resource limits of containers.

use crate::case::{Case, case};
use crate::engine::Engine;

pub const CASES: &[Case] = &[
    case!(memory_beyond_the_limit_kills).core(),
    case!(a_kill_of_the_init_process_is_told).core(),
    case!(a_kill_of_another_process_is_told_and_the_container_lives_on),
    case!(an_end_without_a_kill_for_memory_is_none),
    case!(processes_beyond_the_limit_fail).core(),
    case!(cpus_are_limited),
    case!(cpu_set_and_shares),
    case!(memory_reservation_and_swap),
    case!(oom_killer_cannot_be_disabled),
    case!(block_io_weight),
    case!(a_limit_above_the_hosts_memory_is_none),
    case!(update_raises_memory_and_cpus),
    case!(update_beyond_the_machine_is_refused).refused("the size of a machine is fixed when it starts"),
];

pub fn memory_beyond_the_limit_kills(engine: &Engine) {
    // The first command stays within the limit.
    let script =
        "head -c 24m /dev/zero | tail | wc -c; echo within; head -c 96m /dev/zero | tail | wc -c; echo $?";
    engine.ok(&["create", "--name", "eater", "-m", "48m", "--memory-swap", "48m", "box", "sh", "-c", script]);
    let done = engine.run(&["start", "-a", "eater"]);
    let text = done.text();
    assert!(text.starts_with("25165824\nwithin\n"), "{done}");
    assert!(!text.contains("100663296"), "{done}");
    let one = ["run", "--rm", "-m", "48m", "--memory-swap", "48m", "box", "tail", "/dev/zero"];
    engine.run(&one).code(137);
}

/// A limit without swap.
const SMALL: [&str; 4] = ["-m", "48m", "--memory-swap", "48m"];

fn a_kill_of_the_init_process_is_told(engine: &Engine) {
    engine.run(&[&["run", "--name", "eaten"], &SMALL[..], &["box", "tail", "/dev/zero"]].concat()).code(137);
    assert_eq!(engine.inspect("eaten", ".State.OOMKilled"), "true");
}

fn a_kill_of_another_process_is_told_and_the_container_lives_on(engine: &Engine) {
    let mut events = engine.start_command(&["events", "--filter", "event=oom"]);
    let words = ["box", "sh", "-c", "echo ready; read line; echo $line; exit 3"];
    engine.start_container("parent", &[&["-i"], &SMALL[..], &words].concat(), "ready");
    engine.run(&["exec", "parent", "tail", "/dev/zero"]).code(137);
    events.wait_for("name=parent");
    // Everything else works as before, also a second time.
    assert_eq!(engine.ok(&["exec", "parent", "echo", "more"]), "more");
    engine.ok(&["pause", "parent"]);
    engine.ok(&["unpause", "parent"]);
    engine.ok(&["update", "-m", "40m", "--memory-swap", "40m", "parent"]);
    let usage = engine.ok(&["stats", "--no-stream", "--format", "{{.MemUsage}}", "parent"]);
    assert!(!usage.starts_with("0B"), "{usage}");
    engine.run(&["exec", "parent", "tail", "/dev/zero"]).code(137);
    events.wait_for("name=parent");
    events.stop();
    let mut attached = engine.start_command(&["attach", "parent"]);
    attached.write(b"end\n");
    attached.wait_for("end\n");
    attached.finish().code(3);
    assert_eq!(engine.inspect("parent", ".State.OOMKilled"), "true");
}

fn an_end_without_a_kill_for_memory_is_none(engine: &Engine) {
    let script = "kill -9 $$";
    // Process 1 of a namespace cannot kill itself.
    let words = ["box", "sh", "-c", "echo ready; exec sleep 1000"];
    engine.start_container("killed", &[&SMALL[..], &words].concat(), "ready");
    engine.run(&["exec", "killed", "sh", "-c", script]).code(137);
    engine.ok(&["kill", "killed"]);
    assert_eq!(engine.ok(&["wait", "killed"]), "137");
    assert_eq!(engine.inspect("killed", ".State.OOMKilled"), "false");
}

fn processes_beyond_the_limit_fail(engine: &Engine) {
    let script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 100 & done; echo unreachable";
    let done = engine.run(&["run", "--rm", "--pids-limit", "5", "box", "sh", "-c", script]);
    assert!(done.to_string().contains("can't fork"), "{done}");
    assert_eq!(done.text(), "");
}

fn cpus_are_limited(engine: &Engine) {
    let words = ["run", "--rm", "--cpus", "1.5", "box", "cat", "/sys/fs/cgroup/cpu.max"];
    assert_eq!(engine.ok(&words), "150000 100000");
}

fn cpu_set_and_shares(engine: &Engine) {
    let text =
        engine.sh(&["--cpuset-cpus", "1", "--cpu-shares", "512"], "cat /sys/fs/cgroup/cpu.weight; nproc");
    // Older runtimes convert 512 shares to a weight of 20. Since 2025 it is 59, closer to half of the default weight.
    assert!(["20\n1", "59\n1"].contains(&text.as_str()), "{text}");
}

fn memory_reservation_and_swap(engine: &Engine) {
    assert_eq!(
        engine.sh(
            &["-m", "64m", "--memory-reservation", "32m", "--memory-swap", "64m"],
            "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory.low"
        ),
        "67108864\n33554432"
    );
}

fn oom_killer_cannot_be_disabled(engine: &Engine) {
    // cgroup version 2 does not support it: Docker drops the flag with a warning.
    let done = engine.run(&["run", "--rm", "-m", "64m", "--oom-kill-disable", "box", "true"]).code(0);
    assert!(done.to_string().contains("does not support"), "{done}");
}

fn block_io_weight(engine: &Engine) {
    engine.ok(&["run", "--rm", "--blkio-weight", "300", "box", "true"]);
}

fn a_limit_above_the_hosts_memory_is_none(engine: &Engine) {
    assert_eq!(engine.sh(&["-m", "4t"], "cat /sys/fs/cgroup/memory.max"), "4398046511104");
}

fn update_raises_memory_and_cpus(engine: &Engine) {
    let words = ["box", "sh", "-c", "echo ready; exec sleep 1000"];
    engine.start_container("grown", &[engine.all_cpus(), &words].concat(), "ready");
    let allocate = ["exec", "grown", "sh", "-c", "head -c 64m /dev/zero | tail | wc -c"];
    engine.ok(&["update", "-m", "32m", "--memory-swap", "32m", "--cpus", "0.5", "grown"]);
    assert_eq!(engine.ok(&["exec", "grown", "cat", "/sys/fs/cgroup/cpu.max"]), "50000 100000");
    assert_ne!(engine.run(&allocate).text(), "67108864");
    engine.ok(&["update", "-m", "256m", "--memory-swap", "256m", "--cpus", "2", "grown"]);
    let read = ["exec", "grown", "cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max"];
    assert_eq!(engine.ok(&read), "268435456\n200000 100000");
    assert_eq!(engine.ok(&allocate), "67108864");
}

fn update_beyond_the_machine_is_refused(engine: &Engine) {
    let flags = ["-m", "64m", "--memory-swap", "-1", "--cpus", "1"];
    let words = ["box", "sh", "-c", "echo ready; exec sleep 1000"];
    engine.start_container("fixed", &[&flags[..], &words].concat(), "ready");
    for (change, what) in
        [(["-m", "1g"], "linux.resources.memory.limit"), (["--cpus", "2"], "linux.resources.cpu.quota")]
    {
        let done = engine.run(&[&["update"], &change[..], &["fixed"]].concat());
        match engine.is_vm() {
            true => assert!(!done.status.success() && done.to_string().contains(what), "{done}"),
            false => assert!(done.status.success(), "{done}"),
        }
    }
    // What stays is repeated with each change.
    engine.ok(&["update", "--pids-limit", "55", "fixed"]);
}
