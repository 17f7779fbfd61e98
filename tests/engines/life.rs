//! The life of a container: start, inspection, stop, restart.

use rustix::process::Signal;

use crate::case::{Case, case};
use crate::engine::Engine;

pub const CASES: &[Case] = &[
    case!(stop_lets_it_end).core(),
    case!(stop_kills_after_its_timeout),
    case!(kill_sends_the_signal_named).core(),
    case!(kill_ends_it).core(),
    case!(restart_and_start_again),
    case!(pause_holds_it).core(),
    case!(wait_top_rename),
    case!(copies_in_and_out),
    case!(stats_are_of_the_container),
    case!(update_changes_limits),
    case!(restart_policy_starts_it_again),
    case!(health_is_checked),
    case!(init_reaps),
    case!(create_then_start),
    case!(a_checkpoint_is_gone_on_from),
];

/// A script that sets `traps`, prints `ready` and waits for signals.
fn waiter(traps: &str) -> String {
    format!("{traps}; echo ready; while :; do sleep 1000 & wait $!; done")
}

fn stop_lets_it_end(engine: &Engine) {
    engine.start_container("polite", &["box", "sh", "-c", &waiter("trap 'echo bye; exit 7' TERM")], "ready");
    engine.ok(&["stop", "polite"]);
    assert_eq!(engine.inspect("polite", ".State.ExitCode"), "7");
    assert_eq!(engine.ok(&["logs", "polite"]), "ready\nbye");
}

fn stop_kills_after_its_timeout(engine: &Engine) {
    engine.start_container("stubborn", &["box", "sh", "-c", &waiter("trap '' TERM")], "ready");
    engine.ok(&["stop", "-t", "1", "stubborn"]);
    assert_eq!(engine.inspect("stubborn", ".State.ExitCode"), "137");
}

fn kill_sends_the_signal_named(engine: &Engine) {
    engine.start_container("listener", &["box", "sh", "-c", &waiter("trap 'echo usr1' USR1")], "ready");
    engine.ok(&["kill", "-s", "USR1", "listener"]);
    engine.wait_log("listener", "usr1");
    assert_eq!(engine.inspect("listener", ".State.Running"), "true");
}

fn kill_ends_it(engine: &Engine) {
    engine.start_container("victim", &["box", "sh", "-c", &waiter(":")], "ready");
    engine.ok(&["kill", "victim"]);
    assert_eq!(engine.ok(&["wait", "victim"]), "137");
}

fn restart_and_start_again(engine: &Engine) {
    let script = "n=$(cat /n 2>/dev/null || echo 0); echo $((n+1)) >/n; echo start $((n+1)); exec sleep 1000";
    engine.start_container("again", &["box", "sh", "-c", script], "start 1");
    engine.ok(&["restart", "-t", "0", "again"]);
    engine.wait_log("again", "start 2");
    engine.ok(&["stop", "-t", "0", "again"]);
    engine.ok(&["start", "again"]);
    engine.wait_log("again", "start 3");
}

pub fn pause_holds_it(engine: &Engine) {
    engine.start_container("clock", &["box", "sh", "-c", "while :; do date +%s%N; usleep 50000; done"], "1");
    engine.ok(&["pause", "clock"]);
    assert_eq!(engine.inspect("clock", ".State.Status"), "paused");
    let before = engine.ok(&["logs", "clock"]).lines().count();
    let after = engine.ok(&["logs", "clock"]).lines().count();
    assert_eq!(before, after, "the paused container still prints");
    engine.ok(&["unpause", "clock"]);
    let last = engine.ok(&["logs", "--tail", "1", "clock"]);
    let mut log = engine.start_command(&["logs", "-f", "--since", "0m", "clock"]);
    log.wait_for("\n");
    log.stop();
    assert!(!last.is_empty());
    assert_eq!(engine.inspect("clock", ".State.Status"), "running");
}

fn wait_top_rename(engine: &Engine) {
    engine.start_container("before", &["box", "sh", "-c", &waiter("trap 'exit 9' USR1")], "ready");
    engine.ok(&["rename", "before", "after"]);
    let top = engine.ok(&["top", "after"]);
    assert!(top.lines().count() >= 2, "{top}");
    engine.ok(&["kill", "-s", "USR1", "after"]);
    assert_eq!(engine.ok(&["wait", "after"]), "9");
}

fn copies_in_and_out(engine: &Engine) {
    let file = engine.dir().join("copied");
    std::fs::write(&file, "over\n").expect("write a file");
    let path = file.to_str().expect("the path is UTF-8");
    engine.start_container(
        "copier",
        &["box", "sh", "-c", "mkdir /d; echo in >/d/f; echo ready; exec sleep 1000"],
        "ready",
    );
    engine.ok(&["cp", path, "copier:/tmp/there"]);
    assert_eq!(engine.ok(&["exec", "copier", "cat", "/tmp/there"]), "over");
    engine.ok(&["cp", "copier:/d/f", path]);
    assert_eq!(std::fs::read_to_string(&file).expect("read a file"), "in\n");
    engine.ok(&["kill", "copier"]);
    engine.ok(&["cp", path, "copier:/d/g"]);
    let archive = engine.run(&["cp", "copier:/d", "-"]).code(0);
    assert!(archive.stdout.windows(4).any(|w| w == b"d/g\0"), "no d/g in the archive");
}

pub fn stats_are_of_the_container(engine: &Engine) {
    engine.start_container("user", &["box", "sh", "-c", "echo ready; while :; do :; done"], "ready");
    let line =
        engine.ok(&["stats", "--no-stream", "--format", "{{.CPUPerc}} {{.MemUsage}} {{.PIDs}}", "user"]);
    let words: Vec<&str> = line.split_whitespace().collect();
    let percent: f64 = words[0].trim_end_matches('%').parse().expect("a percentage");
    assert!(percent > 10.0, "{line}");
    assert_ne!(words[1], "0B", "{line}");
    assert_ne!(words[words.len() - 1], "0", "{line}");
}

fn update_changes_limits(engine: &Engine) {
    engine.start_container(
        "limited",
        &["-m", "128m", "box", "sh", "-c", "echo ready; exec sleep 1000"],
        "ready",
    );
    engine.ok(&["update", "--pids-limit", "55", "--memory", "96m", "--memory-swap", "96m", "limited"]);
    let read = "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/memory.max";
    assert_eq!(engine.ok(&["exec", "limited", "sh", "-c", read]), "55\n100663296");
}

fn restart_policy_starts_it_again(engine: &Engine) {
    let script = "echo run; exit 4";
    let mut deaths = engine.start_command(&["events", "--filter", "event=die"]);
    engine.ok(&["run", "-d", "--name", "loop", "--restart", "on-failure:2", "box", "sh", "-c", script]);
    (0..3).for_each(|_| drop(deaths.wait_for("name=loop")));
    deaths.stop();
    assert_eq!(engine.ok(&["wait", "loop"]), "4");
    assert_eq!(engine.ok(&["logs", "loop"]), "run\nrun\nrun");
    assert_eq!(engine.inspect("loop", ".RestartCount"), "2");
}

fn health_is_checked(engine: &Engine) {
    let mut events = engine.start_command(&["events", "--filter", "event=health_status"]);
    let flags = ["--health-cmd", "test -e /healthy", "--health-interval", "1s", "--health-retries", "1"];
    let mut words = flags.to_vec();
    words.extend(["box", "sh", "-c", "touch /healthy; echo ready; exec sleep 1000"]);
    engine.start_container("patient", &words, "ready");
    events.wait_for("health_status: healthy");
    engine.ok(&["exec", "patient", "rm", "/healthy"]);
    events.wait_for("health_status: unhealthy");
    events.stop();
}

fn init_reaps(engine: &Engine) {
    let script = "cat /proc/1/comm; (sleep 0.1 & exec true); exit 8";
    engine.run(&["run", "--rm", "--init", "box", "sh", "-c", script]).code(8).stdout("docker-init\n");
}

fn create_then_start(engine: &Engine) {
    engine.ok(&["create", "--name", "later", "box", "sh", "-c", "echo now; exit 2"]);
    assert_eq!(engine.inspect("later", ".State.Status"), "created");
    engine.run(&["start", "-a", "later"]).code(2).stdout("now\n");
}

/// With runc there is no checkpoint: it needs CRIU, which the host does not have.
fn a_checkpoint_is_gone_on_from(engine: &Engine) {
    engine.end_daemon(Signal::TERM);
    engine.start_daemon(&["--experimental"]);
    let script = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.1; done";
    engine.start_container("counter", &["box", "sh", "-c", script], "3");
    if !engine.is_vm() {
        let refused = engine.run(&["checkpoint", "create", "counter", "first"]);
        assert!(
            !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("criu"),
            "{refused}"
        );
        return;
    }
    engine.ok(&["checkpoint", "create", "counter", "first"]);
    assert_eq!(engine.ok(&["wait", "counter"]), "137");
    let before = engine.ok(&["logs", "counter"]).lines().count();
    engine.ok(&["start", "--checkpoint", "first", "counter"]);
    engine.wait_log("counter", &format!("\n{}\n", before + 3));
    assert_eq!(engine.ok(&["exec", "counter", "cat", "/proc/1/comm"]), "sh");
    let address = engine.inspect("counter", ".NetworkSettings.IPAddress");
    let found = engine.ok(&["exec", "counter", "ip", "-o", "addr", "show", "dev", "eth0"]);
    assert!(found.contains(&format!("inet {address}/")), "{found}");
    let log = engine.ok(&["logs", "counter"]);
    let counted: Vec<String> = (1..=log.lines().count()).map(|n| n.to_string()).collect();
    assert_eq!(log.lines().collect::<Vec<_>>(), counted);
    engine.ok(&["stop", "-t", "1", "counter"]);
}
