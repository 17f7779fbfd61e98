//! Containers of Docker that use namespaces of another container, as services of a Compose file do.

use std::fs;

use crate::case::{Case, case};
use crate::engine::Engine;
use crate::network::SERVER;
use crate::settings::expect_refusal;

pub const CASES: &[Case] = &[
    case!(network_of_another_container).core(),
    case!(all_namespaces_of_another_container),
    case!(a_container_in_another_s_network_has_a_life_of_its_own),
    case!(limits_in_another_s_network),
    case!(a_chain_of_containers),
    case!(a_service_of_compose_in_another_s_network),
    case!(namespaces_of_two_containers_are_refused).refused("a container is in one machine"),
    case!(shared_memory_and_a_network_of_its_own_are_refused)
        .refused("the interfaces of a machine are its first container's"),
];

const OF_FIRST: [&str; 2] = ["--network", "container:first"];

fn start_first(engine: &Engine) {
    engine.start_container("first", &["--ipc", "shareable", "box", "sh", "-c", SERVER], "ready");
}

fn network_of_another_container(engine: &Engine) {
    start_first(engine);
    assert_eq!(engine.sh(&OF_FIRST, "wget -q -O - http://127.0.0.1/"), "hello");
    let address = "ip -o -4 addr show eth0 | awk '{print $4}'; hostname";
    assert_eq!(engine.sh(&OF_FIRST, address), engine.ok(&["exec", "first", "sh", "-c", address]));
    let script = "echo out; echo err >&2; exit 3";
    let words = [&["run", "--rm"], &OF_FIRST[..], &["box", "sh", "-c", script]].concat();
    engine.run(&words).code(3).stdout("out\n").stderr("err\n");
    // Its own processes only.
    assert_eq!(engine.sh(&OF_FIRST, "ps -o args | grep -c '[h]ttpd'; true"), "0");
    assert_eq!(engine.ok(&["exec", "first", "wget", "-q", "-O", "-", "http://127.0.0.1/"]), "hello");
}

fn all_namespaces_of_another_container(engine: &Engine) {
    start_first(engine);
    let all = [&OF_FIRST[..], &["--ipc", "container:first", "--pid", "container:first"]].concat();
    let links = "for n in net ipc pid; do readlink /proc/self/ns/$n; done";
    assert_eq!(engine.sh(&all, links), engine.ok(&["exec", "first", "sh", "-c", links]));
    engine.ok(&["exec", "first", "sh", "-c", "echo shared >/dev/shm/f"]);
    assert_eq!(engine.sh(&all, "cat /dev/shm/f"), "shared");
    assert_eq!(engine.sh(&all, "ps -o pid,args | grep -c '^ *1 .*sleep'"), "1");
}

fn a_container_in_another_s_network_has_a_life_of_its_own(engine: &Engine) {
    start_first(engine);
    let script = "trap 'exit 6' TERM; echo ready; while :; do sleep 1; done";
    let words = [&OF_FIRST[..], &["box", "sh", "-c", script]].concat();
    engine.start_container("second", &words, "ready");
    engine.feed(&["exec", "-i", "second", "sh", "-c", "cat; exit 4"], b"in\n").code(4).stdout("in\n");
    engine.ok(&["pause", "second"]);
    assert_eq!(engine.inspect("second", ".State.Status"), "paused");
    assert_eq!(engine.inspect("first", ".State.Status"), "running");
    engine.ok(&["unpause", "second"]);
    engine.ok(&["stop", "second"]);
    assert_eq!(engine.inspect("second", ".State.ExitCode"), "6");
    engine.ok(&["start", "second"]);
    engine.wait_log("second", "ready\nready");
    engine.ok(&["kill", "second"]);
    assert_eq!(engine.ok(&["wait", "second"]), "137");
    assert_eq!(engine.ok(&["exec", "first", "wget", "-q", "-O", "-", "http://127.0.0.1/"]), "hello");
}

fn limits_in_another_s_network(engine: &Engine) {
    start_first(engine);
    let words =
        [&["run", "--name", "greedy", "-m", "50331648"], &OF_FIRST[..], &["box", "tail", "/dev/zero"]];
    engine.run(&words.concat()).code(137);
    assert_eq!(engine.inspect("greedy", ".State.OOMKilled"), "true");
    assert_eq!(engine.inspect("first", ".State.OOMKilled"), "false");
    assert_eq!(engine.ok(&["exec", "first", "wget", "-q", "-O", "-", "http://127.0.0.1/"]), "hello");
}

fn a_chain_of_containers(engine: &Engine) {
    start_first(engine);
    let words = [&OF_FIRST[..], &["box", "sh", "-c", "echo ready; exec sleep 1000"]].concat();
    engine.start_container("second", &words, "ready");
    let flags = ["--network", "container:second", "--pid", "container:second"];
    assert_eq!(
        engine.sh(&flags, "wget -q -O - http://127.0.0.1/; ps -o args | grep -c '[s]leep 1000'"),
        "hello\n1"
    );
}

/// A Compose file whose second service uses the network of the first, and ends.
const COMPOSE: &str = r#"
version: "2.4"
services:
  web:
    image: box
    command: [sh, -c, "SERVER"]
  visitor:
    image: box
    network_mode: service:web
    command: [sh, -c, "until wget -q -O - http://127.0.0.1/; do sleep 0.1; done; exit 7"]
"#;

fn a_service_of_compose_in_another_s_network(engine: &Engine) {
    let file = engine.dir().join("compose.yaml");
    fs::write(&file, COMPOSE.replace("SERVER", SERVER)).expect("write a file");
    let up = engine.compose(&file, &["up", "--no-color", "--exit-code-from", "visitor"]).code(7);
    assert!(up.text().lines().any(|line| line.starts_with("visitor_1") && line.ends_with("| hello")), "{up}");
    engine.compose(&file, &["down", "-t", "0"]).code(0);
}

fn namespaces_of_two_containers_are_refused(engine: &Engine) {
    start_first(engine);
    engine.start_container("other", &["--ipc", "shareable", "box", "sh", "-c", SERVER], "ready");
    let words = [&["run", "--rm"], &OF_FIRST[..], &["--ipc", "container:other", "box", "true"]].concat();
    expect_refusal(engine, &engine.run(&words), "is in another virtual machine than");
}

fn shared_memory_and_a_network_of_its_own_are_refused(engine: &Engine) {
    start_first(engine);
    let words = ["run", "--rm", "--ipc", "container:first", "box", "true"];
    expect_refusal(engine, &engine.run(&words), "interface eth0");
    let words = ["--ipc", "container:first", "--network", "none"];
    assert_eq!(engine.sh(&words, "ip -o link | wc -l"), "1");
}
