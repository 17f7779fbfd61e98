//! The two kernels: what containers with privileges find in theirs, and that others boot the smaller one.

use serde_json::json;
use tests::Bundle;

/// A bundle of busybox whose process has these capabilities besides the default ones.
pub(crate) fn with_capabilities(script: &str, names: &[&str]) -> Bundle {
    capable(Bundle::sh(script), names)
}

/// The bundle, whose process has these capabilities besides the default ones.
fn capable(bundle: Bundle, names: &[&str]) -> Bundle {
    bundle.with(|c| {
        for set in ["bounding", "effective", "permitted"] {
            c["process"]["capabilities"][set]
                .as_array_mut()
                .unwrap()
                .extend(names.iter().map(|name| json!(name)));
        }
    })
}

/// A module of the full kernel, which the base kernel lacks.
pub(crate) const IS_FULL: &str = "if [ -e /proc/net/ip_tables_names ]; then echo full; else echo base; fi";

#[test]
fn capabilities_choose_the_kernel() {
    Bundle::sh(IS_FULL).run().code(0).stdout("base\n");
    for name in ["CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_NICE"] {
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

/// A script that prints those of `files` that do not exist.
fn missing(files: &str) -> String {
    format!("for file in {files}; do test -e $file || echo no $file; done; echo end")
}

#[test]
fn every_container_finds_accounting_and_pressure() {
    let files = "/proc/self/io /proc/pressure/cpu /proc/pressure/memory /proc/pressure/io \
                 /sys/kernel/mm/transparent_hugepage/enabled /proc/sys/kernel/seccomp \
                 /proc/sys/kernel/perf_event_paranoid";
    Bundle::sh(&missing(files)).run().code(0).stdout("end\n");
    let numbers = "head -c 100000 /dev/zero >/dev/null; grep -c '^rchar: [1-9]' /proc/self/io";
    Bundle::sh(numbers).run().code(0).stdout("1\n");
}

#[test]
fn every_container_opens_sockets_of_the_usual_protocols() {
    Bundle::guest("protocols").run().code(0).stdout("ok\n");
}

#[test]
fn huge_pages_are_used_as_on_the_host() {
    let script = "cat /sys/kernel/mm/transparent_hugepage/enabled";
    let host = tests::check_output(std::process::Command::new("/bin/busybox").args(["sh", "-c", script]));
    Bundle::sh(script).run().code(0).stdout(&host);
}

#[test]
fn an_administrator_finds_what_iptables_uses() {
    let script = "cat /proc/net/ip_tables_matches /proc/net/ip6_tables_matches | sort -u; echo; \
                  cat /proc/net/ip_tables_targets | sort -u";
    let text = with_capabilities(script, &["CAP_NET_ADMIN"]).run().code(0).text();
    let (matches, targets) = text.split_once("\n\n").unwrap();
    let lacks = |all: &str, names: &str| -> Vec<String> {
        let has = |name: &&str| !all.lines().any(|line| line == *name);
        names.split_whitespace().filter(has).map(str::to_owned).collect()
    };
    let wanted = "addrtype comment connlimit connmark conntrack dccp dscp ecn hashlimit hl icmp ipcomp iprange l2tp \
                  length limit mac mark multiport owner physdev pkttype policy quota rateest recent set socket state \
                  statistic string tcp tcpmss time ttl udp";
    assert_eq!(lacks(matches, wanted), [""; 0], "{matches}");
    let wanted = "CONNMARK CT DNAT DSCP LOG MARK MASQUERADE NETMAP NFLOG NFQUEUE RATEEST REDIRECT REJECT SNAT TCPMSS TPROXY \
         TRACE TTL";
    assert_eq!(lacks(targets, wanted), [""; 0], "{targets}");
}

#[test]
fn an_administrator_finds_the_usual_queueing_disciplines_and_file_systems() {
    let options = "NET_SCH_NETEM NET_SCH_HTB NET_SCH_TBF NET_SCH_FQ NET_SCH_FQ_CODEL NET_SCH_SFQ NET_SCH_PRIO NET_SCH_INGRESS \
                   NET_SCH_CAKE NET_SCH_DRR NET_SCH_PIE VXLAN L2TP PPPOE MPLS_ROUTING OPENVSWITCH BONDING IP_DCCP CAN_VCAN \
                   ISO9660_FS AUTOFS_FS IP_SET XFRM_USER HUGETLBFS EROFS_FS BINFMT_MISC TASKSTATS FHANDLE SECURITY_LANDLOCK CGROUP_BPF";
    let script = format!(
        "zcat /proc/config.gz >/tmp/config; for o in {options}; do grep -q ^CONFIG_$o=y /tmp/config || echo no $o; done; echo end"
    );
    with_capabilities(&script, &["CAP_SYS_ADMIN"]).run().code(0).stdout("end\n");
}

#[test]
fn memory_policies_are_those_of_one_node() {
    let script = "ls -d /sys/devices/system/node/node*; grep -c N0= /proc/self/numa_maps | grep -v '^0$' >/dev/null && echo maps";
    let run = with_capabilities(script, &["CAP_SYS_NICE"]).run().code(0);
    run.stdout("/sys/devices/system/node/node0\nmaps\n");
}

/// The kernel tests the processor as a source of random numbers when one is asked for, not at each boot.
#[test]
fn a_network_administrator_has_the_random_numbers_of_the_processor_for_ipsec() {
    // 38 is AF_ALG; bind(2) creates the generator, whose address is a sockaddr_alg.
    let script = "socket(my $s, 38, 5, 0) or die $!; \
                  bind($s, pack('Sa14LLa64', 38, 'rng', 0, 0, 'jitterentropy_rng')) or die $!; print 'usable'";
    let bundle = capable(Bundle::debian(&["perl", "-e", script]), &["CAP_NET_ADMIN"]);
    bundle.run().code(0).stdout("usable");
}
