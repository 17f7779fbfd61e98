//! Pods of Podman: an infra container, and containers that share its namespaces.

use crate::case::{Case, case};
use crate::engine::Engine;
use crate::network::SERVER;

pub const CASES: &[Case] = &[
    case!(containers_of_a_pod_share_a_network),
    case!(a_pod_shares_processes_if_asked),
    case!(stop_and_start_of_a_pod),
    case!(a_pod_without_an_infra_container),
];

/// Podman 4.3 denies all devices to the cgroup that it makes for a pod with the cgroup manager cgroupfs. So these pods have
/// none: their containers are beside each other.
fn create(engine: &Engine, flags: &[&str]) {
    engine.ok(&[&["pod", "create", "--name", "house", "--share-parent=false"], flags].concat());
}

fn server(engine: &Engine) {
    engine.start_container("server", &["--pod", "house", "box", "sh", "-c", SERVER], "ready");
}

fn containers_of_a_pod_share_a_network(engine: &Engine) {
    create(engine, &[]);
    server(engine);
    let of_pod = ["--pod", "house"];
    assert_eq!(engine.sh(&of_pod, "wget -q -O - http://127.0.0.1/; hostname"), "hello\nhouse");
    assert_eq!(engine.sh(&of_pod, "ps -o args | grep -c '[h]ttpd'; true"), "0");
    engine.ok(&["exec", "server", "sh", "-c", "echo shared >/dev/shm/f"]);
    assert_eq!(engine.sh(&of_pod, "cat /dev/shm/f"), "shared");
    let words = ["run", "--rm", "--pod", "house", "box", "sh", "-c", "exit 9"];
    engine.run(&words).code(9);
}

fn a_pod_shares_processes_if_asked(engine: &Engine) {
    create(engine, &["--share", "net,ipc,uts,pid"]);
    server(engine);
    assert_eq!(engine.sh(&["--pod", "house"], "ps -o args | grep -c '[h]ttpd'"), "1");
}

fn stop_and_start_of_a_pod(engine: &Engine) {
    create(engine, &[]);
    server(engine);
    engine.ok(&["pod", "stop", "-t", "0", "house"]);
    assert_eq!(engine.inspect("server", ".State.Running"), "false");
    engine.ok(&["pod", "start", "house"]);
    engine.wait_log("server", "ready\nready");
    assert_eq!(engine.sh(&["--pod", "house"], "wget -q -O - http://127.0.0.1/"), "hello");
}

fn a_pod_without_an_infra_container(engine: &Engine) {
    create(engine, &["--infra=false"]);
    server(engine);
    engine.ok(&["exec", "server", "wget", "-q", "-O", "-", "http://127.0.0.1/"]);
}
