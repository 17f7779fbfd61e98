//! What changes in a network namespace while its container runs.

use std::thread;
use std::time::{Duration, Instant};

use super::Nets;
use crate::lifecycle::Container;

const DEADLINE: Duration = Duration::from_secs(60);

/// A container that does nothing, in the pod's namespace, running.
fn running(nets: &Nets) -> Container {
    running_with(nets, "auto")
}

fn running_with(nets: &Nets, vhost_net: &str) -> Container {
    let container = Container::new(nets.bundle("sleep 1000"));
    container.create_with(&[("VMM_VHOST_NET", vhost_net)]);
    container.out(&["start", "c"]);
    container
}

impl Container {
    /// Waits until a line of what `command` says in the guest is like `pattern`.
    #[track_caller]
    fn awaits(&self, command: &str, pattern: &str) {
        self.waits("until", command, pattern);
    }

    /// Waits until there is no such line.
    #[track_caller]
    fn awaits_no(&self, command: &str, pattern: &str) {
        self.waits("while", command, pattern);
    }

    #[track_caller]
    fn waits(&self, how: &str, command: &str, pattern: &str) {
        let script = format!("{how} {command} | grep -q '{pattern}'; do sleep 0.1; done");
        self.out(&["exec", "c", "timeout", &DEADLINE.as_secs().to_string(), "sh", "-c", &script]);
    }

    /// Waits until the container's process has said so on its standard error.
    #[track_caller]
    fn awaits_error(&self, text: &str) {
        let until = Instant::now() + DEADLINE;
        while !self.read("stderr").contains(text) {
            assert!(Instant::now() < until, "{}", self.read("stderr"));
            thread::yield_now();
        }
    }

    #[track_caller]
    fn says(&self, script: &str) -> String {
        self.out(&["exec", "c", "sh", "-c", script])
    }
}

/// More often than the machine has places for interfaces that come later.
fn come_and_go(vhost_net: &str) {
    let nets = Nets::joined();
    let container = running_with(&nets, vhost_net);
    let traces = nets.traces();
    for round in 1..=6 {
        let (network, mac) = (format!("10.10.{round}"), format!("02:00:00:00:10:{round:02}"));
        nets.link("eth1", &mac, 1400);
        nets.peer(&["addr", "add", &format!("{network}.1/24"), "dev", "eth1"]);
        nets.pod(&["addr", "add", &format!("{network}.2/24"), "dev", "eth1"]);
        container.awaits("ip -o addr show dev eth1 2>/dev/null", &format!("{network}.2/24"));
        let has = container.says("cat /sys/class/net/eth1/address /sys/class/net/eth1/mtu");
        assert_eq!(has, format!("{mac}\n1400\n"));
        container.says(&format!("ping -c 1 -W 20 {network}.1"));
        // The first one goes on.
        container.says("ping -c 1 -W 20 10.9.0.1");
        nets.pod(&["link", "del", "eth1"]);
        container.awaits_no("ls /sys/class/net", "eth1");
    }
    assert_eq!(container.says("ls /sys/class/net"), "eth0\nlo\n");
    assert_eq!(nets.traces(), traces);
    container.out(&["delete", "--force", "c"]);
    assert_eq!(nets.traces(), "");
}

#[test]
fn interfaces_come_and_go_while_the_container_runs() {
    come_and_go("off");
}

#[test]
fn interfaces_that_the_kernel_serves_come_and_go() {
    come_and_go("on");
}

#[test]
fn an_interface_of_the_start_goes_and_another_takes_its_place() {
    let nets = Nets::joined();
    let container = running(&nets);
    nets.pod(&["link", "del", "eth0"]);
    container.awaits_no("ls /sys/class/net", "eth0");
    nets.link("lan", "02:00:00:00:09:02", 9000);
    nets.peer(&["addr", "add", "10.9.7.1/24", "dev", "lan"]);
    nets.pod(&["addr", "add", "10.9.7.2/24", "dev", "lan"]);
    nets.pod(&["route", "add", "default", "via", "10.9.7.1"]);
    container.awaits("ip route", "default via 10.9.7.1 dev lan");
    container.says("ping -c 1 -W 20 -s 8000 10.9.7.1");
}

#[test]
fn addresses_and_routes_change_while_the_container_runs() {
    let nets = Nets::joined();
    nets.pod(&["route", "add", "default", "via", "10.9.0.1"]);
    let container = running(&nets);
    nets.peer(&["addr", "add", "10.9.3.1/24", "dev", "eth0"]);
    nets.pod(&["addr", "add", "10.9.3.2/24", "dev", "eth0"]);
    nets.pod(&["route", "replace", "default", "via", "10.9.3.1"]);
    container.awaits("ip route", "default via 10.9.3.1 dev eth0");
    assert_eq!(container.says("ip route | grep -c default"), "1\n");
    container.says("ping -c 1 -W 20 10.9.3.1");
    nets.pod(&["route", "add", "10.77.0.0/16", "via", "10.9.0.9", "metric", "7"]);
    container.awaits("ip route", "10.77.0.0/16 via 10.9.0.9 dev eth0.*metric 7");
    nets.pod(&["route", "del", "10.77.0.0/16"]);
    container.awaits_no("ip route", "10.77.0.0");
    nets.pod(&["addr", "del", "10.9.0.2/24", "dev", "eth0"]);
    container.awaits_no("ip -o addr", "10.9.0.2");
    nets.pod(&["-6", "addr", "add", "fd09::77/64", "dev", "eth0", "nodad"]);
    container.awaits("ip -o addr", "fd09::77/64");
    container.says("ping -c 1 -W 20 fd09::1 && ping -c 1 -W 20 10.9.3.1");
}

#[test]
fn what_an_interface_may_send_from_follows_its_addresses() {
    let nets = Nets::joined();
    let container = Container::new(super::filtered(nets.bundle("sleep 1000")));
    container.create_with(&[]);
    container.out(&["start", "c"]);
    let answered = |from: &str, to: &str, seconds: u32| {
        container
            .says(&format!("ping -c 1 -W {seconds} -I {from} {to} >/dev/null 2>&1 && echo yes || echo no"))
    };
    assert_eq!(answered("10.9.0.2", "10.9.0.1", 20), "yes\n");
    container.says("ip addr add 10.9.0.66/24 dev eth0");
    assert_eq!(answered("10.9.0.66", "10.9.0.1", 3), "no\n");
    // What the host gives it may be used, and no more when it is taken.
    nets.peer(&["addr", "add", "10.9.3.1/24", "dev", "eth0"]);
    nets.pod(&["addr", "add", "10.9.3.2/24", "dev", "eth0"]);
    container.awaits("ip -o addr", "10.9.3.2/24");
    assert_eq!(answered("10.9.3.2", "10.9.3.1", 20), "yes\n");
    nets.pod(&["addr", "del", "10.9.3.2/24", "dev", "eth0"]);
    container.awaits_no("ip -o addr", "10.9.3.2/24");
    container.says("ip addr add 10.9.3.2/24 dev eth0");
    assert_eq!(answered("10.9.3.2", "10.9.3.1", 3), "no\n");
    // An interface that comes is held to its own, too.
    nets.link("eth1", "02:00:00:00:10:01", 1400);
    nets.peer(&["addr", "add", "10.10.1.1/24", "dev", "eth1"]);
    nets.pod(&["addr", "add", "10.10.1.2/24", "dev", "eth1"]);
    container.awaits("ip -o addr show dev eth1 2>/dev/null", "10.10.1.2/24");
    assert_eq!(answered("10.10.1.2", "10.10.1.1", 20), "yes\n");
    container.says("ip addr add 10.10.1.66/24 dev eth1");
    assert_eq!(answered("10.10.1.66", "10.10.1.1", 3), "no\n");
}

/// There is nobody to refuse it to but whoever reads the log.
#[test]
fn what_a_running_machine_cannot_have_is_logged_and_the_rest_goes_on() {
    let nets = Nets::joined();
    let container = running(&nets);
    for number in 1..=5 {
        nets.link(&format!("eth{number}"), &format!("02:00:00:00:10:{number:02}"), 1500);
        if number < 5 {
            container.awaits("ls /sys/class/net", &format!("eth{number}"));
        }
    }
    let no_place = "eth5: not added to the guest: a running machine is limited to 5 network interfaces";
    container.awaits_error(no_place);
    // A place that is given up is the next one's.
    nets.pod(&["link", "del", "eth2"]);
    container.awaits("ls /sys/class/net", "eth5");
    // Its driver takes packets no longer than those of its start.
    nets.peer(&["link", "set", "eth0", "mtu", "9000"]);
    nets.pod(&["link", "set", "eth0", "mtu", "9000"]);
    nets.pod(&["addr", "add", "10.9.4.2/24", "dev", "eth0"]);
    container.awaits_error("change a network interface: set MTU of interface eth0: invalid argument");
    container.awaits("ip -o addr", "10.9.4.2");
    nets.pod(&["link", "add", "twin", "address", "02:00:00:00:09:02", "type", "dummy"]);
    nets.pod(&["link", "set", "twin", "up"]);
    container
        .awaits_error("another interface has the same hardware address; the guest's network is not updated");
    container.says("ping -c 1 -W 20 10.9.0.1");
    container.out(&["delete", "--force", "c"]);
    assert_eq!(nets.traces(), "");
}

/// A namespace that has nothing but its loopback when the machine is made.
#[test]
fn the_first_interface_comes_while_the_container_runs() {
    let nets = Nets::new();
    let container = running(&nets);
    nets.link("eth0", "02:00:00:00:09:02", 1400);
    nets.peer(&["addr", "add", "10.9.0.1/24", "dev", "eth0"]);
    nets.pod(&["addr", "add", "10.9.0.2/24", "dev", "eth0"]);
    container.awaits("ip -o addr", "10.9.0.2/24");
    container.says("ping -c 1 -W 20 10.9.0.1");
}
