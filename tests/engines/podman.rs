//! Podman with conmon.

use crate::case::{Case, case};
use crate::engine::Engine;

pub const CASES: &[Case] = &[
    case!(output_error_and_exit_code).core(),
    case!(input_is_copied),
    case!(exec_in_a_running_container),
    case!(stop_and_start_again),
    case!(logs_and_kill),
    case!(settings),
    case!(bridge_network),
    case!(network_that_comes_while_it_runs),
    case!(volume),
];

/// `podman run` without a network, for cases that need none.
const QUIET: [&str; 3] = ["run", "--rm", "--net=none"];

fn quiet<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [QUIET.as_slice(), words].concat()
}

fn output_error_and_exit_code(engine: &Engine) {
    let script = "echo out; echo err >&2; exit 3";
    engine.run(&quiet(&["box", "sh", "-c", script])).code(3).stdout("out\n").stderr("err\n");
    engine.run(&quiet(&["box", "nosuch"])).code(127);
}

fn input_is_copied(engine: &Engine) {
    engine.feed(&quiet(&["-i", "box", "wc", "-c"]), &[b'x'; 200_000]).code(0).stdout("200000\n");
}

fn start(engine: &Engine, script: &str) {
    engine.start_container("lasting", &["--net=none", "box", "sh", "-c", script], "ready");
}

fn exec_in_a_running_container(engine: &Engine) {
    start(engine, "echo ready; exec sleep 1000");
    engine.feed(&["exec", "-i", "lasting", "sh", "-c", "cat; exit 4"], b"in\n").code(4).stdout("in\n");
    assert_eq!(engine.ok(&["exec", "-u", "ann", "lasting", "id", "-u"]), "1000");
}

fn stop_and_start_again(engine: &Engine) {
    start(engine, "trap 'exit 7' TERM; echo ready; while :; do sleep 1000 & wait $!; done");
    engine.ok(&["stop", "lasting"]);
    assert_eq!(engine.inspect("lasting", ".State.ExitCode"), "7");
    engine.ok(&["start", "lasting"]);
    engine.wait_log("lasting", "ready\nready");
}

fn logs_and_kill(engine: &Engine) {
    start(engine, "echo ready; echo error >&2; exec sleep 1000");
    engine.ok(&["kill", "-s", "KILL", "lasting"]);
    assert_eq!(engine.ok(&["wait", "lasting"]), "137");
    engine.run(&["logs", "lasting"]).code(0).stdout("ready\n").stderr("error\n");
}

fn settings(engine: &Engine) {
    let words = [
        "--hostname",
        "house",
        "-e",
        "A=b",
        "-w",
        "/tmp",
        "--ulimit",
        "nofile=77:88",
        "--read-only",
        "-m",
        "64m",
        "box",
        "sh",
        "-c",
        "hostname; echo $A; pwd; ulimit -n; touch /f 2>/dev/null || echo fixed; cat /sys/fs/cgroup/memory.max",
    ];
    assert_eq!(engine.ok(&quiet(&words)), "house\nb\n/tmp\n77\nfixed\n67108864");
}

fn bridge_network(engine: &Engine) {
    let script = "ping -c 1 -q $(ip route | awk '/default/ {print $3}') | grep -c '1 packets received'";
    // By default, containers of Podman have no CAP_NET_RAW, which ping needs.
    assert_eq!(engine.sh(&["--cap-add", "NET_RAW"], script), "1");
}

fn network_that_comes_while_it_runs(engine: &Engine) {
    engine.ok(&["network", "create", "--subnet", "10.84.0.0/24", "early"]);
    engine.ok(&["network", "create", "--subnet", "10.85.0.0/24", "late"]);
    // ping needs CAP_NET_RAW.
    let words = ["--net", "early", "--cap-add", "NET_RAW", "box", "sh", "-c", "echo ready; exec sleep 1000"];
    engine.start_container("lasting", &words, "ready");
    engine.ok(&["network", "connect", "late", "lasting"]);
    let there = "until ip -o -4 addr | grep -q 10.85.0; do sleep 0.1; done; ping -c 1 -W 20 10.85.0.1";
    engine.ok(&["exec", "lasting", "timeout", "60", "sh", "-c", there]);
    engine.ok(&["network", "disconnect", "late", "lasting"]);
    let gone = "while ip -o -4 addr | grep -q 10.85.0; do sleep 0.1; done; ping -c 1 -W 20 10.84.0.1";
    engine.ok(&["exec", "lasting", "timeout", "60", "sh", "-c", gone]);
    engine.ok(&["rm", "-f", "-t", "0", "lasting"]);
    engine.ok(&["network", "rm", "early", "late"]);
}

fn volume(engine: &Engine) {
    engine.ok(&quiet(&["-v", "keep:/data", "box", "sh", "-c", "echo kept >/data/f"]));
    assert_eq!(engine.ok(&quiet(&["-v", "keep:/data:ro", "box", "cat", "/data/f"])), "kept");
    engine.ok(&["volume", "rm", "keep"]);
}
