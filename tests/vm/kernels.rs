//! The two kernels: what containers with privileges find in theirs, and that others boot the smaller one.

use serde_json::json;
use tests::Bundle;

/// A bundle whose process has these capabilities besides the default ones.
fn with_capabilities(script: &str, names: &[&str]) -> Bundle {
    Bundle::sh(script).with(|c| {
        for set in ["bounding", "effective", "permitted"] {
            c["process"]["capabilities"][set]
                .as_array_mut()
                .unwrap()
                .extend(names.iter().map(|name| json!(name)));
        }
    })
}

/// A module of the full kernel, which the base kernel lacks.
const IS_FULL: &str = "if [ -e /proc/net/ip_tables_names ]; then echo full; else echo base; fi";

#[test]
fn capabilities_choose_the_kernel() {
    Bundle::sh(IS_FULL).run().code(0).stdout("base\n");
    for name in ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"] {
        with_capabilities(IS_FULL, &[name]).run().code(0).stdout("full\n");
    }
}

#[test]
fn a_network_administrator_finds_bridges_tunnels_and_packet_filters() {
    let script = "set -e; ip link add br0 type bridge; ip link add d0 type dummy; ip link set d0 master br0; \
                  ip link add link d0 name v7 type vlan id 7; ip link add m0 link v7 type macvlan; \
                  ip link add wg0 type wireguard; ip link set br0 up; ip link set d0 up; ls /sys/class/net; \
                  grep -c . /proc/net/ip_tables_matches > /dev/null";
    let run = with_capabilities(script, &["CAP_NET_ADMIN"]).run().code(0);
    let text = run.text();
    let interfaces: Vec<&str> = text.lines().collect();
    for name in ["br0", "d0", "lo", "m0", "v7", "wg0"] {
        assert!(interfaces.contains(&name), "{interfaces:?}");
    }
}

#[test]
fn an_administrator_finds_file_systems_swap_and_accounting() {
    let script = "for f in squashfs nfs4 cifs vfat overlay; do grep -qw $f /proc/filesystems && echo $f; done; \
                  ls /sys/block | grep zram; dd if=/dev/zero of=/swap bs=1M count=8 2>/dev/null; test -e /proc/swaps && \
                  echo swaps; zcat /proc/config.gz | grep ^CONFIG_BPF_SYSCALL";
    let bundle = with_capabilities(script, &["CAP_SYS_ADMIN"]);
    let expected = "squashfs\nnfs4\ncifs\nvfat\noverlay\nzram0\nswaps\nCONFIG_BPF_SYSCALL=y\n";
    bundle.run().code(0).stdout(expected);
}
