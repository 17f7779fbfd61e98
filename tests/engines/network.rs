//! Networks.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use crate::case::{Case, case};
use crate::engine::Engine;
use crate::settings::expect_refusal;

pub const CASES: &[Case] = &[
    case!(bridge_reaches_the_gateway).core(),
    case!(none_has_a_loopback_alone),
    case!(published_port_answers).core(),
    case!(containers_talk_by_name).core(),
    case!(two_networks_from_the_start),
    case!(hardware_address_and_fixed_address),
    case!(mtu_of_the_network),
    case!(ipv6),
    case!(macvlan),
    case!(ipvlan),
    case!(services_of_a_swarm),
    case!(nothing_of_the_hosts_network_changes),
    case!(host_network_is_refused).refused("a guest has a network stack of its own"),
    case!(connect_while_it_runs),
    case!(names_of_the_first_network_that_has_them),
];

/// A web server that answers every request with `hello`.
pub const SERVER: &str =
    "mkdir /w; echo hello >/w/index.html; httpd -h /w -p 80; echo ready; exec sleep 1000";

fn bridge_reaches_the_gateway(engine: &Engine) {
    let script = "ip -o -4 addr show eth0 | awk '{print $4}'; ip route | awk '/default/ {print $3}'; \
                  ping -c 2 -q $(ip route | awk '/default/ {print $3}') | grep received";
    let text = engine.sh(&[], script);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("172.") && lines[0].ends_with("/16"), "{text}");
    assert!(lines[2].contains("2 packets received"), "{text}");
}

fn none_has_a_loopback_alone(engine: &Engine) {
    let script = "ls /sys/class/net | grep -v tunl | grep -v sit; ping -c 1 -q 127.0.0.1 | grep -c '1 packets received'";
    assert_eq!(engine.sh(&["--net", "none"], script), "lo\n1");
}

/// Returns the answer of the web server behind this port of the host, with its header.
pub fn fetch(port: &str) -> String {
    let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).expect("connect to the published port");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set a deadline");
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("send the request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read the answer");
    answer
}

fn published_port_answers(engine: &Engine) {
    engine.start_container("server", &["-p", "127.0.0.1:8765:80", "box", "sh", "-c", SERVER], "ready");
    assert!(fetch("8765").ends_with("hello\n"));
    assert_eq!(engine.ok(&["port", "server", "80"]), "127.0.0.1:8765");
    assert!(fetch("8765").ends_with("hello\n"));
}

fn containers_talk_by_name(engine: &Engine) {
    engine.ok(&["network", "create", "town"]);
    engine.start_container(
        "server",
        &["--net", "town", "--network-alias", "web", "box", "sh", "-c", SERVER],
        "ready",
    );
    let script =
        "wget -q -O - http://server/; wget -q -O - http://web/; nslookup server 127.0.0.11 | grep -c Name";
    assert_eq!(engine.sh(&["--net", "town"], script), "hello\nhello\n1");
    // A query over TCP (RFC 1035) for the addresses of `server`. The script prints the answer's id, flags and the
    // numbers of its questions and addresses.
    let script = r"printf '\000\030\001\002\001\000\000\001\000\000\000\000\000\000\006server\000\000\001\000\001' |
        nc 127.0.0.11 53 | head -c 10 | tail -c 8 | od -An -tx1";
    let answer = engine.sh(&["--net", "town"], script);
    assert!(answer.trim().starts_with("01 02 8") && answer.ends_with("00 01 00 01"), "{answer}");
    engine.ok(&["rm", "-f", "server"]);
    engine.ok(&["network", "rm", "town"]);
}

/// Services are reached by the addresses of their tasks, by a virtual address, and by a port of the host.
fn services_of_a_swarm(engine: &Engine) {
    const ADDRESS: &str = "10.50.0.1";
    for words in [
        &["link", "add", "swarm", "type", "dummy"][..],
        &["addr", "add", "10.50.0.1/24", "dev", "swarm"],
        &["link", "set", "swarm", "up"],
    ] {
        tests::check_output(Command::new("ip").args(words));
    }
    engine.ok(&["swarm", "init", "--advertise-addr", ADDRESS]);
    engine.ok(&["network", "create", "-d", "overlay", "--attachable", "plain"]);
    let port = "mode=host,published=8766,target=80";
    for (name, flags) in
        [("tasks", &["--endpoint-mode", "dnsrr", "--publish", port][..]), ("virtual", &["--replicas", "2"])]
    {
        let create = ["service", "create", "--quiet", "--no-resolve-image", "--stop-grace-period", "0s"];
        let what = ["--network", "plain", "--name", name];
        // It returns when the service runs.
        engine.ok(&[&create[..], &what, flags, &["box", "sh", "-c", SERVER]].concat());
    }
    let script = "wget -q -O - http://tasks/; wget -q -O - http://virtual/";
    assert_eq!(engine.sh(&["--net", "plain"], script), "hello\nhello");
    assert!(fetch("8766").ends_with("hello\n"));
    engine.ok(&["service", "rm", "tasks", "virtual"]);
    engine.ok(&["swarm", "leave", "--force"]);
    tests::check_output(Command::new("ip").args(["link", "del", "swarm"]));
}

fn two_networks_from_the_start(engine: &Engine) {
    engine.ok(&["network", "create", "--subnet", "10.77.0.0/24", "left"]);
    engine.ok(&["network", "create", "--subnet", "10.78.0.0/24", "right"]);
    engine.ok(&[
        "create",
        "--name",
        "both",
        "--net",
        "left",
        "box",
        "sh",
        "-c",
        "ip -o -4 addr | awk '{print $2, $4}' | sort",
    ]);
    engine.ok(&["network", "connect", "right", "both"]);
    let done = engine.run(&["start", "-a", "both"]).code(0);
    assert_eq!(done.text(), "eth0 10.77.0.2/24\neth1 10.78.0.2/24\nlo 127.0.0.1/8");
    engine.ok(&["rm", "both"]);
    engine.ok(&["network", "rm", "left", "right"]);
}

fn hardware_address_and_fixed_address(engine: &Engine) {
    engine.ok(&["network", "create", "--subnet", "10.79.0.0/24", "fixed"]);
    assert_eq!(
        engine.sh(
            &["--net", "fixed", "--ip", "10.79.0.99", "--mac-address", "02:00:00:00:12:34"],
            "cat /sys/class/net/eth0/address; ip -o -4 addr show eth0 | awk '{print $4}'"
        ),
        "02:00:00:00:12:34\n10.79.0.99/24"
    );
    engine.ok(&["network", "rm", "fixed"]);
}

fn mtu_of_the_network(engine: &Engine) {
    engine.ok(&["network", "create", "-o", "com.docker.network.driver.mtu=1400", "narrow"]);
    assert_eq!(
        engine.ok(&["run", "--rm", "--net", "narrow", "box", "cat", "/sys/class/net/eth0/mtu"]),
        "1400"
    );
    engine.ok(&["network", "rm", "narrow"]);
}

fn ipv6(engine: &Engine) {
    engine.ok(&["network", "create", "--ipv6", "--subnet", "fd00:77::/64", "six"]);
    let script = "ip -o -6 addr show eth0 scope global | awk '{print $4}'; ping6 -c 1 -q fd00:77::1 | grep -c '1 packets received'";
    assert_eq!(
        engine.sh(&["--net", "six", "--sysctl", "net.ipv6.conf.all.disable_ipv6=0"], script),
        "fd00:77::2/64\n1"
    );
    engine.ok(&["network", "rm", "six"]);
}

fn macvlan(engine: &Engine) {
    neighbours_of_one_link(engine, "macvlan");
}

fn ipvlan(engine: &Engine) {
    neighbours_of_one_link(engine, "ipvlan");
}

/// Two containers with interfaces on the same link of the host.
fn neighbours_of_one_link(engine: &Engine, driver: &str) {
    engine.ok(&["network", "create", "-d", driver, "--subnet", "10.81.0.0/24", "street"]);
    engine.start_container("server", &["--net", "street", "box", "sh", "-c", SERVER], "ready");
    let words = ["run", "--rm", "--net", "street", "box", "wget", "-q", "-O", "-", "http://server/"];
    assert_eq!(engine.ok(&words), "hello");
    let address = engine.ok(&["exec", "server", "cat", "/sys/class/net/eth0/address"]);
    let known = engine.inspect("server", ".NetworkSettings.Networks.street.MacAddress");
    assert!(known.is_empty() || known == address, "{known} {address}");
    engine.ok(&["rm", "-f", "server"]);
    engine.ok(&["network", "rm", "street"]);
}

/// The host's links, addresses, routes and packet filter.
fn host_network() -> String {
    let parts: [&[&str]; 4] =
        [&["ip", "-o", "link"], &["ip", "-o", "addr"], &["ip", "route"], &["iptables-save"]];
    let all = parts.map(|words| tests::check_output(std::process::Command::new(words[0]).args(&words[1..])));
    // Comments contain times, and chains counters. The state of Docker's own bridges depends on their ports.
    let lines = all.iter().flat_map(|text| text.lines()).filter(|line| !line.starts_with('#'));
    let lines = lines.filter(|line| !["docker0", "docker_gwbridge"].iter().any(|name| line.contains(name)));
    let lines = lines.filter(|line| !line.starts_with(':'));
    lines.collect::<Vec<_>>().join("\n")
}

fn nothing_of_the_hosts_network_changes(engine: &Engine) {
    let before = host_network();
    engine.ok(&["run", "--rm", "box", "ping", "-c", "1", "-q", "172.17.0.1"]);
    assert_eq!(host_network(), before);
}

fn host_network_is_refused(engine: &Engine) {
    let done = engine.run(&["run", "--rm", "--net", "host", "box", "true"]);
    expect_refusal(engine, &done, "network");
}

/// The default bridge has no name server.
fn names_of_the_first_network_that_has_them(engine: &Engine) {
    engine.ok(&["network", "create", "named"]);
    engine.start_container("server", &["--net", "named", "box", "sh", "-c", SERVER], "ready");
    engine.start_container("plain", &["box", "sh", "-c", "echo ready; exec sleep 1000"], "ready");
    engine.ok(&["network", "connect", "named", "plain"]);
    let fetch = "until wget -q -O - http://server/; do sleep 0.1; done";
    assert_eq!(engine.ok(&["exec", "plain", "timeout", "60", "sh", "-c", fetch]), "hello");
    engine.ok(&["rm", "-f", "server", "plain"]);
    engine.ok(&["network", "rm", "named"]);
}

fn connect_while_it_runs(engine: &Engine) {
    engine.ok(&["network", "create", "--subnet", "10.82.0.0/24", "early"]);
    engine.ok(&["network", "create", "--subnet", "10.83.0.0/24", "late"]);
    engine.start_container("server", &["--net", "early", "box", "sh", "-c", SERVER], "ready");
    for _ in 0..2 {
        engine.ok(&["network", "connect", "--ip", "10.83.0.99", "--alias", "latecomer", "late", "server"]);
        // Docker returns after the change of the namespace. The machine gets the interface a moment later.
        let there = "until ip -o -4 addr | grep -q 10.83.0.99; do sleep 0.1; done";
        engine.ok(&["exec", "server", "timeout", "30", "sh", "-c", there]);
        let page =
            engine.ok(&["run", "--rm", "--net", "late", "box", "wget", "-q", "-O", "-", "http://latecomer/"]);
        assert!(page.contains("hello"), "{page}");
        // The container reaches others on that network by name.
        engine.start_container("other", &["--net", "late", "box", "sh", "-c", SERVER], "ready");
        engine.ok(&["exec", "server", "wget", "-q", "-O", "-", "http://other/"]);
        engine.ok(&["rm", "-f", "other"]);
        engine.ok(&["network", "disconnect", "late", "server"]);
        let gone = "while ip -o -4 addr | grep -q 10.83.0.99; do sleep 0.1; done";
        engine.ok(&["exec", "server", "timeout", "30", "sh", "-c", gone]);
        engine.ok(&["exec", "server", "ping", "-c", "1", "-W", "20", "10.82.0.1"]);
    }
    engine.ok(&["rm", "-f", "server"]);
    engine.ok(&["network", "rm", "early", "late"]);
}
