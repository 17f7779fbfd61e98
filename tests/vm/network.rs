//! A container in a network namespace of the host: what the guest gets of it, and what is left on the host.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Signal, WaitOptions, kill_process, waitpid};
use serde_json::json;
use tests::{Bundle, Running, check_output, guest_program};

use crate::lifecycle::{Container, reap};

mod changes;
mod loopback;

/// Data that a connection carries, in MiB.
const LOAD_MIB: &str = "20";

/// A network namespace for a pod, and one for its peer.
pub(crate) struct Nets {
    pod: String,
    peer: String,
}

impl Nets {
    /// Two empty namespaces.
    fn new() -> Nets {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let nets = Nets { pod: format!("pod-{name}"), peer: format!("peer-{name}") };
        for net in [&nets.pod, &nets.peer] {
            ip(&["netns", "add", net]);
            ip(&["-n", net, "link", "set", "lo", "up"]);
        }
        nets
    }

    /// Two namespaces whose interfaces `eth0` are connected: the pod has 10.9.0.2 and fd09::2, the peer .1 and ::1.
    pub(crate) fn joined() -> Nets {
        let nets = Nets::new();
        nets.link("eth0", "02:00:00:00:09:02", 1400);
        nets.pod(&["addr", "add", "10.9.0.2/24", "dev", "eth0"]);
        nets.pod(&["addr", "add", "fd09::2/64", "dev", "eth0", "nodad"]);
        nets.peer(&["addr", "add", "10.9.0.1/24", "dev", "eth0"]);
        nets.peer(&["addr", "add", "fd09::1/64", "dev", "eth0", "nodad"]);
        nets
    }

    /// Creates a pair of interfaces called `name`, one in each namespace.
    fn link(&self, name: &str, mac: &str, mtu: u32) {
        let mtu = mtu.to_string();
        let pair = ["link", "add", name, "netns", &self.pod, "address", mac, "mtu", &mtu, "type", "veth"];
        ip(&[&pair[..], &["peer", "name", name, "netns", &self.peer, "mtu", &mtu]].concat());
        self.pod(&["link", "set", name, "up"]);
        self.peer(&["link", "set", name, "up"]);
    }

    fn pod(&self, words: &[&str]) {
        ip(&[&["-n", &self.pod], words].concat());
    }

    fn peer(&self, words: &[&str]) {
        ip(&[&["-n", &self.peer], words].concat());
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.pod)
    }

    /// A bundle that runs `script` in the pod's namespace.
    pub(crate) fn bundle(&self, script: &str) -> Bundle {
        in_namespace(Bundle::sh(script), self.path().to_str().unwrap())
    }

    /// A bundle that runs one end of a connection in the pod's namespace.
    fn guest(&self, check: &str) -> Bundle {
        in_namespace(Bundle::guest(check), self.path().to_str().unwrap())
    }

    /// Starts the other end in the peer's namespace.
    fn end(&self, words: &[&str]) -> Running {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.peer]).arg(guest_program()).args(words);
        Running::start(command)
    }

    /// A command of busybox in the peer's namespace.
    fn at_peer(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.peer, "/bin/busybox"]).args(words);
        command
    }

    /// Taps and queueing disciplines of `vmm` in the pod's namespace.
    pub(crate) fn traces(&self) -> String {
        let list = |tool: &str, words: &[&str]| {
            let mut command = Command::new("ip");
            check_output(command.args(["netns", "exec", &self.pod, tool]).args(words))
        };
        let links = list("ip", &["-o", "link"]);
        let disciplines = list("tc", &["qdisc"]);
        let all = links.lines().filter(|line| line.contains("vmm"));
        all.chain(disciplines.lines().filter(|line| line.contains("ingress"))).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Nets {
    fn drop(&mut self) {
        for net in [&self.pod, &self.peer] {
            let _ = Command::new("ip").args(["netns", "del", net]).status();
        }
    }
}

fn ip(words: &[&str]) {
    check_output(Command::new("ip").args(words));
}

fn in_namespace(bundle: Bundle, path: &str) -> Bundle {
    bundle.share("network").with(|c| {
        let all = c["linux"]["namespaces"].as_array_mut().unwrap();
        all.push(json!({"type": "network", "path": path}));
    })
}

#[test]
fn the_guest_gets_addresses_routes_and_neighbours_of_the_interface() {
    let nets = Nets::joined();
    nets.pod(&["addr", "add", "10.9.1.2/32", "dev", "eth0"]);
    nets.pod(&["route", "add", "default", "via", "10.9.0.1"]);
    nets.pod(&["route", "add", "10.77.0.0/16", "via", "192.168.7.1", "dev", "eth0", "onlink", "metric", "7"]);
    nets.pod(&["route", "add", "10.78.0.0/16", "dev", "eth0", "src", "10.9.1.2", "mtu", "1300"]);
    nets.pod(&["-6", "route", "add", "default", "via", "fd09::1"]);
    nets.pod(&["neigh", "add", "10.9.0.77", "lladdr", "02:00:00:00:00:77", "dev", "eth0"]);
    let script = "cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; \
                  ip -o addr show dev eth0 | awk '{print $3, $4}'; \
                  ip route; ip -6 route | grep -v -e fe80 -e ff00 | cut -d ' ' -f -5; ip neigh | cut -d ' ' -f -5";
    let run = nets.bundle(script).run().code(0).stderr("");
    let text = run.text();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let expected = [
        "02:00:00:00:09:02",
        "1400",
        "inet 10.9.0.2/24",
        "inet 10.9.1.2/32",
        "inet6 fd09::2/64",
        "inet6 fe80::ff:fe00:902/64",
        "default via 10.9.0.1 dev eth0",
        "10.9.0.0/24 dev eth0 scope link  src 10.9.0.2",
        "10.77.0.0/16 via 192.168.7.1 dev eth0  metric 7 onlink",
        "10.78.0.0/16 dev eth0 scope link  src 10.9.1.2",
        "fd09::/64 dev eth0  metric",
        "default via fd09::1 dev eth0",
        "10.9.0.77 dev eth0 lladdr 02:00:00:00:00:77",
    ];
    assert_eq!(lines, expected, "{run}");
    assert_eq!(nets.traces(), "");
}

#[test]
fn both_sides_reach_each_other_over_ipv4_and_ipv6() {
    let nets = Nets::joined();
    let script =
        "ping -c 1 -W 20 10.9.0.1 >/dev/null && ping -6 -c 1 -W 20 fd09::1 > /dev/null && echo out; read go";
    let bundle = nets.bundle(script);
    let mut run = bundle.start();
    run.wait_for("out");
    for address in ["10.9.0.2", "fd09::2"] {
        check_output(&mut nets.at_peer(&["ping", "-c", "1", "-W", "20", address]));
    }
    run.write(b"\n");
    run.finish().code(0).stderr("");
}

/// Filters a bundle's packets by source address, and lets it change its addresses.
fn filtered(bundle: Bundle) -> Bundle {
    may_change(bundle).with(|c| c["annotations"]["vmm.network.filter"] = json!("true"))
}

/// Lets a bundle change its addresses.
fn may_change(bundle: Bundle) -> Bundle {
    bundle.with(|c| {
        for set in ["bounding", "effective", "permitted"] {
            c["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_NET_ADMIN"));
        }
    })
}

/// Prints the source addresses, its own and others, from which the guest gets an answer.
const SENDERS: &str = "try() { ping -c 1 -W $1 -I $2 $3 >/dev/null 2>&1 && echo $2; }
    try 20 10.9.0.2 10.9.0.1; try 20 fd09::2 fd09::1
    ip addr add 10.9.0.66/24 dev eth0; try 3 10.9.0.66 10.9.0.1
    ip -6 addr add fd09::66/64 dev eth0; while ip addr show dev eth0 | grep -q tentative; do sleep 0.1; done
    try 3 fd09::66 fd09::1
    ip link set eth0 down; ip link set eth0 address 02:00:00:00:66:66; ip link set eth0 up
    ping -c 1 -W 3 10.9.0.1 >/dev/null 2>&1 && echo another mac
    ip link set eth0 down; ip link set eth0 address 02:00:00:00:09:02; ip link set eth0 up
    try 20 10.9.0.2 10.9.0.1";

#[test]
fn a_filtered_interface_sends_only_from_its_own_addresses() {
    let nets = Nets::joined();
    let run = filtered(nets.bundle(SENDERS)).run().code(0);
    assert_eq!(run.text(), "10.9.0.2\nfd09::2\n10.9.0.2", "{run}");
    assert!(String::from_utf8_lossy(&run.stderr).contains("a packet that may not leave"), "{run}");
    // No packet from another address has reached the peer.
    let neighbours = check_output(Command::new("ip").args(["-n", &nets.peer, "neigh"]));
    assert!(neighbours.contains("10.9.0.2 ") && !neighbours.contains("66"), "{neighbours}");
}

#[test]
fn an_unfiltered_interface_sends_from_any_address() {
    let nets = Nets::joined();
    let run = may_change(nets.bundle(SENDERS)).run().code(0).stderr("");
    assert_eq!(run.text(), "10.9.0.2\nfd09::2\n10.9.0.66\nfd09::66\nanother mac\n10.9.0.2", "{run}");
}

/// Sends a load out of a guest with the flag `--vhost-net`.
fn load_goes_out(vhost_net: &str) {
    let nets = Nets::joined();
    let mut server = nets.end(&["drain", "[fd09::1]:5001", LOAD_MIB]);
    server.wait_for("ready");
    let bundle = nets.guest(&format!("pour [fd09::1]:5001 {LOAD_MIB}")).flag("--vhost-net").flag(vhost_net);
    bundle.run().code(0).stdout("ok\n").stderr("");
    let run = server.finish().code(0).stderr("");
    assert!(run.text().contains("MiB in"), "{run}");
    assert_eq!(nets.traces(), "");
}

/// Sends a load into a guest with the flag `--vhost-net`.
fn load_comes_in(vhost_net: &str) {
    let nets = Nets::joined();
    let bundle = nets.guest(&format!("drain 0.0.0.0:5001 {LOAD_MIB}")).flag("--vhost-net").flag(vhost_net);
    let mut run = bundle.start();
    run.wait_for("ready");
    nets.end(&["pour", "10.9.0.2:5001", LOAD_MIB]).finish().code(0).stdout("ok\n").stderr("");
    let run = run.finish().code(0).stderr("");
    assert!(run.text().contains("MiB in"), "{run}");
    assert_eq!(nets.traces(), "");
}

#[test]
fn a_load_out_of_the_guest_is_complete() {
    load_goes_out("off");
}

#[test]
fn a_load_out_of_the_guest_through_vhost_is_complete() {
    load_goes_out("on");
}

#[test]
fn a_load_into_the_guest_is_complete() {
    load_comes_in("off");
}

#[test]
fn a_load_into_the_guest_through_vhost_is_complete() {
    load_comes_in("on");
}

/// Whether vhost has a worker for a thread of the process `pid`. Older kernels run it as a separate process.
fn has_vhost_worker(pid: u32) -> bool {
    let list = |path: String| std::fs::read_dir(path).expect("list processes").map(|entry| entry.unwrap());
    let threads = || list(format!("/proc/{pid}/task"));
    let names: Vec<String> =
        threads().map(|thread| format!("vhost-{}\n", thread.file_name().display())).collect();
    let mut all = list("/proc".to_owned()).chain(threads());
    all.any(|entry| {
        // A process that has ended meanwhile has no name.
        std::fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| names.contains(&comm))
    })
}

#[test]
fn vhost_is_used_unless_it_is_off() {
    for (vhost_net, expected) in [("auto", true), ("on", true), ("off", false)] {
        let nets = Nets::joined();
        let bundle = nets.bundle("ping -c 1 -W 20 10.9.0.1 >/dev/null && echo up; read go");
        let bundle = bundle.flag("--vhost-net").flag(vhost_net);
        let mut run = bundle.start();
        run.wait_for("up");
        assert_eq!(has_vhost_worker(run.pid()), expected, "{vhost_net}");
        run.write(b"\n");
        run.finish().code(0).stderr("");
        assert_eq!(nets.traces(), "");
    }
}

#[test]
fn datagrams_arrive_in_both_directions() {
    let nets = Nets::joined();
    let mut server = nets.end(&["echo", "10.9.0.1:7"]);
    server.wait_for("ready");
    nets.guest("datagrams 10.9.0.1:7").run().code(0).stdout("ok\n").stderr("");
    server.signal("KILL");
    server.finish();
}

#[test]
fn a_gateway_outside_of_all_subnets_is_reached_and_no_ipv6_is_added() {
    let nets = Nets::new();
    nets.link("eth0", "02:00:00:00:09:05", 1500);
    nets.pod(&["addr", "add", "10.9.5.2/32", "dev", "eth0"]);
    nets.pod(&["route", "add", "169.254.1.1", "dev", "eth0", "scope", "link"]);
    nets.pod(&["route", "add", "default", "via", "169.254.1.1"]);
    nets.pod(&["-6", "addr", "flush", "dev", "eth0"]);
    nets.peer(&["addr", "add", "169.254.1.1/32", "dev", "eth0"]);
    nets.peer(&["addr", "add", "10.99.0.1/32", "dev", "lo"]);
    nets.peer(&["route", "add", "10.9.5.2", "dev", "eth0"]);
    let script = "ping -c 1 -W 20 10.99.0.1 | grep -c ttl; ip -6 addr show dev eth0";
    nets.bundle(script).run().code(0).stdout("1\n").stderr("");
}

#[test]
fn a_machine_that_fails_to_start_leaves_nothing() {
    let nets = Nets::joined();
    nets.bundle("true").flag("--kernel").flag("/bin/busybox").run().code(125);
    assert_eq!(nets.traces(), "");
}

#[test]
fn two_interfaces_keep_their_names() {
    let nets = Nets::new();
    // Created in another order, and one has a name that the kernel does not use by default.
    nets.link("eth1", "02:00:00:00:00:01", 1500);
    nets.link("lan", "02:00:00:00:00:02", 1500);
    nets.link("eth0", "02:00:00:00:00:03", 9000);
    nets.pod(&["addr", "add", "10.9.2.2/24", "dev", "lan"]);
    let script = "for i in eth0 eth1 lan; do cat /sys/class/net/$i/address; done; \
                  ip -o -4 addr | awk '{print $2, $4}'; cat /sys/class/net/eth0/mtu";
    let expected =
        "02:00:00:00:00:03\n02:00:00:00:00:01\n02:00:00:00:00:02\nlo 127.0.0.1/8\nlan 10.9.2.2/24\n9000\n";
    nets.bundle(script).run().code(0).stdout(expected).stderr("");
    assert_eq!(nets.traces(), "");
}

#[test]
fn a_namespace_without_interfaces_gives_the_guest_none() {
    let nets = Nets::new();
    nets.bundle("ls /sys/class/net").run().code(0).stdout("lo\n").stderr("");
}

#[test]
fn the_hosts_own_network_is_refused() {
    let run = in_namespace(Bundle::sh("true"), "/proc/1/ns/net").run().code(125);
    run.says(&["join network namespace /proc/1/ns/net: the host's own network cannot be the guest's"]);
    let run = in_namespace(Bundle::sh("true"), "/run/netns/none").run().code(125);
    run.says(&["join network namespace /run/netns/none: no such file"]);
}

#[test]
fn the_next_run_works_after_a_killed_one() {
    let nets = Nets::joined();
    let bundle = nets.bundle("echo up; read go");
    let mut run = bundle.start();
    run.wait_for("up");
    assert!(nets.traces().contains("vmm"), "{}", nets.traces());
    run.signal("KILL");
    run.finish();
    assert!(!nets.traces().contains("vmm"), "{}", nets.traces());
    nets.bundle("ping -c 1 -W 20 10.9.0.1 | grep -c ttl").run().code(0).stdout("1\n").stderr("");
    assert_eq!(nets.traces(), "");
}

#[test]
fn delete_removes_what_a_killed_container_left() {
    let nets = Nets::joined();
    let container = Container::new(nets.bundle("sleep 1000"));
    let pid = container.create();
    assert!(nets.traces().contains("ingress"), "{}", nets.traces());
    kill_process(pid, Signal::KILL).expect("kill the container's process");
    assert!(reap(pid).is_err());
    assert!(nets.traces().contains("ingress"), "{}", nets.traces());
    // A queueing discipline of another program remains.
    nets.pod(&["link", "add", "other", "type", "dummy"]);
    let tc = ["netns", "exec", &nets.pod, "tc", "qdisc", "add", "dev", "other", "ingress"];
    ip(&tc);
    container.out(&["delete", "c"]);
    assert_eq!(nets.traces().matches("ingress").count(), 1, "{}", nets.traces());
}

/// An engine deletes a container whose start failed only if it has seen the container's process end.
#[test]
fn a_failed_start_returns_after_the_end_of_the_monitor() {
    let nets = Nets::joined();
    let mount = json!({"destination": "/etc", "type": "bind", "source": "/bin/busybox", "options": ["bind"]});
    let bundle = nets.bundle("true").mount(mount);
    std::fs::create_dir_all(bundle.rootfs().join("etc")).expect("create a directory");
    let container = Container::new(bundle);
    let pid = container.create();
    let error = container.error(1, &["start", "c"]);
    assert!(error.contains("mount /etc: not a directory"), "{error}");
    let ended = waitpid(Some(pid), WaitOptions::NOHANG).expect("the monitor is a child");
    assert!(ended.is_some());
    container.out(&["delete", "c"]);
    assert_eq!(nets.traces(), "");
}

#[test]
fn a_second_machine_in_a_namespace_is_refused_and_the_first_continues() {
    let nets = Nets::joined();
    let bundle = nets.bundle("echo up; read go; ping -c 1 -W 20 10.9.0.1 | grep -c ttl");
    let mut run = bundle.start();
    run.wait_for("up");
    nets.bundle("true").run().code(125).says(&["another virtual machine is in this namespace"]);
    run.write(b"\n");
    run.finish().code(0).stdout("\n1\n");
}

#[test]
fn network_devices_of_the_host_become_the_container_s_with_their_addresses() {
    let nets = Nets::joined();
    let name = format!("d{}", std::process::id() % 100_000);
    let pair = ["link", "add", &name, "address", "02:00:00:00:0a:02", "mtu", "1400", "type", "veth"];
    ip(&[&pair[..], &["peer", "name", "lan", "netns", &nets.peer]].concat());
    ip(&["addr", "add", "10.10.0.2/24", "dev", &name]);
    nets.peer(&["addr", "add", "10.10.0.1/24", "dev", "lan"]);
    nets.peer(&["link", "set", "lan", "up"]);
    let script = "cat /sys/class/net/data/address /sys/class/net/data/mtu; \
                  ip -o -4 addr show dev data | awk '{print $4}'; ping -c 1 -W 20 10.10.0.1 > /dev/null && echo answered";
    let with = |devices| nets.bundle(script).with(|c| c["linux"]["netDevices"] = devices);
    let run = with(json!({&name: {"name": "data"}})).run();
    run.code(0).stdout("02:00:00:00:0a:02\n1400\n10.10.0.2/24\nanswered\n");
    // It stays in the namespace, which is not the container's own.
    nets.pod(&["link", "show", "data"]);
    let missing = with(json!({&name: {}})).run().code(125);
    missing.says(&[&format!("find network interface {name}: No such device")]);
    assert_eq!(nets.traces(), "");
}
