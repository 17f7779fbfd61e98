//! Tests with the real kernel, each in a new network namespace.

use agent_proto::payload::IpAddress;

use super::*;
use crate::sys::{self, Fork, namespace};

/// Runs `test` in a child process in a new user and network namespace, and fails with its error. Passes if the kernel
/// does not permit a user namespace.
fn in_new_network(test: impl FnOnce() -> Result<(), Error>) {
    const USER: u64 = 0x1000_0000;
    let (read, write) = rustix::pipe::pipe().unwrap();
    match sys::fork(USER | namespace::NETWORK, None) {
        Ok(Fork::Child) => {
            let said = test().err().map_or_else(|| "well".into(), |error| error.text);
            let _ = rustix::io::write(&write, said.as_bytes());
            sys::exit(0)
        }
        Ok(Fork::Parent { pid, .. }) => {
            drop(write);
            let mut said = [0; 512];
            let count = rustix::io::read(&read, &mut said).unwrap();
            assert_eq!(str::from_utf8(&said[..count]), Ok("well"));
            rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap();
        }
        Err(Errno::PERM | Errno::NOSPC | Errno::NOSYS) => {
            std::eprintln!("skipped: the kernel does not permit user namespaces");
        }
        Err(errno) => panic!("{errno}"),
    }
}

fn expect(is: bool, what: &str) -> Result<(), Error> {
    if is { Ok(()) } else { Err(Error::failed(format!("expected: {what}"))) }
}

fn interface(addresses: &[(&str, &str)]) -> Interface {
    let entry = |(address, mask): &(&str, &str)| IpAddress {
        ip_address: (*address).into(),
        net_mask: (*mask).into(),
        ..IpAddress::default()
    };
    Interface {
        device: "lo".into(),
        ip_addresses: addresses.iter().map(entry).collect(),
        ..Interface::default()
    }
}

fn route(dest: &str, gateway: &str, device: &str) -> Result<(), Error> {
    set_route(&Route {
        dest: dest.into(),
        gateway: gateway.into(),
        device: device.into(),
        ..Route::default()
    })
}

#[test]
fn interface_gets_addresses_mtu_and_routes_and_loses_them() {
    in_new_network(|| {
        let twice = Interface {
            mtu: 9000,
            ip_address: "10.7.0.1".into(),
            net_mask: "255.255.0.0".into(),
            ..interface(&[("10.5.0.2", "24"), ("fd00:5::2", "64")])
        };
        set_up(&twice)?;
        set_up(&twice)?;
        route("default", "10.5.0.1", "lo")?;
        route("10.9.0.0/16", "", "lo")?;
        route("fd00:9::/48", "", "lo")?;
        route("all", "10.7.0.9", "")?;
        let far = route("10.8.0.0/16", "192.168.1.1", "lo");
        let gone =
            Route { dest: "10.9.0.0/16".into(), device: "lo".into(), removed: true, ..Route::default() };
        let is_there = || std::fs::read_to_string("/proc/self/net/route").unwrap().contains("0000090A");
        expect(is_there(), "a route to 10.9.0.0/16")?;
        set_route(&Route { metric: 9, ..gone.clone() })?;
        expect(is_there(), "the route to 10.9.0.0/16 of another metric")?;
        set_route(&gone)?;
        set_route(&gone)?;
        expect(!is_there(), "no route to 10.9.0.0/16")?;
        expect(
            far.is_err_and(|error| error.text.starts_with("add route to 10.8.0.0/16: ")),
            "gateway is unreachable",
        )?;
        set_up(&interface(&[("-10.5.0.2", "24"), ("-fd00:5::2", "64")]))?;
        let gone = set_up(&interface(&[("-10.5.0.2", "24"), ("10.6.0.2", "24")])).unwrap_err();
        let text = "remove address 10.5.0.2 of interface lo: cannot assign requested address";
        expect(gone.text == text, &gone.text)?;
        // The address after the one that failed has been added.
        set_up(&interface(&[("-10.6.0.2", "24")]))
    });
}

#[test]
fn interface_is_renamed_and_found_by_its_hardware_address() {
    in_new_network(|| {
        set_up(&Interface { new_device_name: "inner".into(), ..interface(&[]) })?;
        let missing = set_up(&interface(&[])).unwrap_err();
        expect(missing.text == "no such interface: lo", &missing.text)?;
        set_up(&Interface {
            mac_addr: "00:00:00:00:00:00".into(),
            new_device_name: "lo".into(),
            ..Interface::default()
        })?;
        set_up(&interface(&[]))?;
        let kept = delete(&interface(&[])).unwrap_err();
        expect(kept.text.starts_with("delete interface lo: "), &kept.text)
    });
}

#[test]
fn invalid_routes_and_interfaces_are_refused_by_name() {
    let text = |result: Result<(), Error>| result.unwrap_err().text;
    assert_eq!(
        text(route("10.0.0.0/8", "fd00::1", "lo")),
        "route to 10.0.0.0/8 via fd00::1: address families differ"
    );
    assert_eq!(text(route("nowhere", "", "lo")), "invalid IP address \"nowhere\"");
    assert_eq!(text(route("default", "", "no-such-link")), "no such interface: no-such-link");
    assert_eq!(text(set_up(&Interface::default())), "interface has neither a name nor a hardware address");
}
