//! Container engines and an init system in a privileged container.

use std::process::Command;

use tests::check_output;

use crate::case::{Case, case};
use crate::engine::Engine;
use crate::images;

pub const CASES: &[Case] = &[
    case!(docker_runs_and_builds),
    case!(podman_runs_a_container),
    case!(systemd_is_process_1),
    case!(iptables_has_its_matches_and_targets),
];

/// Runs `script` in a privileged container that has its own file system at `folder`, where overlays can be. Returns its
/// output.
#[track_caller]
fn privileged(engine: &Engine, folder: &str, script: &str) -> String {
    images::import_nested(engine);
    let mount = format!("type=tmpfs,destination={folder}");
    let flags = ["run", "--rm", "--privileged", "-m", "1g", "--mount", &mount];
    engine.ok(&[&flags[..], &["nested", "sh", "-ec", script]].concat())
}

fn docker_runs_and_builds(engine: &Engine) {
    images::import_nested(engine);
    let script = "exec 2>/tmp/log; containerd >&2 & until ctr version >&2; do kill -0 $!; done; echo ready
        exec dockerd --storage-driver overlay2 --containerd /run/containerd/containerd.sock >&2";
    let flags = ["--privileged", "-m", "1g", "--mount", "type=tmpfs,destination=/var/lib/docker"];
    engine.start_container("outer", &[&flags[..], &["nested", "sh", "-ec", script]].concat(), "ready");
    // Each step is a command of its own, because an emulated host is slow and a command has a deadline.
    let inner = |script: &str| engine.ok(&["exec", "outer", "sh", "-ec", script]);
    inner("until docker info >/dev/null 2>&1; do kill -0 1; done");
    assert_eq!(inner("docker info -f '{{.Driver}} {{.CgroupVersion}}'"), "overlay2 2");
    inner("tar -C / -c bin/busybox | docker import - box");
    assert_eq!(inner("docker run --rm box /bin/busybox echo ran"), "ran");
    inner("docker run -d box /bin/busybox nc -l -p 80 -e /bin/busybox echo through the bridge");
    // Not that of the outer engine's bridge.
    let address = inner("docker inspect -f '{{.NetworkSettings.IPAddress}}' $(docker ps -lq)");
    assert_eq!(inner(&format!("until busybox nc {address} 80; do :; done")), "through the bridge");
    let file = "FROM box\\nRUN [\"/bin/busybox\", \"touch\", \"/made\"]\\n";
    inner(&format!("printf '{file}' | DOCKER_BUILDKIT=0 docker build -t made -"));
    assert_eq!(inner("docker run --rm made /bin/busybox ls /made"), "/made");
}

fn podman_runs_a_container(engine: &Engine) {
    let script = "tar -C / -c bin/busybox | podman import -q - box >/dev/null 2>/tmp/log || cat /tmp/log
        podman --cgroup-manager cgroupfs run --rm --net none box /bin/busybox echo ran
        podman info -f '{{.Store.GraphDriverName}}'";
    assert_eq!(privileged(engine, "/var/lib/containers", script), "ran\noverlay");
}

fn systemd_is_process_1(engine: &Engine) {
    images::import_nested(engine);
    let flags = ["run", "-d", "--name", "init", "--privileged", "--stop-signal", "SIGRTMIN+3", "-m", "512m"];
    engine.ok(&[&flags[..], &["nested", "/sbin/init"]].concat());
    let inner = |words: &[&str]| engine.run(&[&["exec", "init"], words].concat());
    // Fails until systemd answers, and while it starts units.
    let mut state = inner(&["systemctl", "is-system-running", "--wait"]).text();
    while !["running", "degraded"].contains(&state.as_str()) {
        state = inner(&["systemctl", "is-system-running"]).text();
    }
    let failed = inner(&["systemctl", "--failed", "--plain", "--no-legend"]).text();
    assert!(!failed.contains("journald"), "{failed}");
    inner(&["systemd-run", "--wait", "sh", "-c", "echo unit >/tmp/unit"]).code(0);
    assert_eq!(inner(&["cat", "/tmp/unit"]).text(), "unit");
    engine.ok(&["stop", "-t", "60", "init"]);
    assert_ne!(engine.inspect("init", ".State.ExitCode"), "137");
}

/// Rules of iptables, each with a match or a target of its own. Those are left out that need an object of their own, such as an
/// ipset.
const RULES: &str = "
    -A INPUT -m addrtype --src-type LOCAL
    -A INPUT -p ah -m ah --ahspi 1
    -A INPUT -m bpf --bytecode '1,6 0 0 1'
    -A OUTPUT -m cgroup --cgroup 1
    -A INPUT -m cluster --cluster-total-nodes 2 --cluster-local-node 1 --cluster-hash-seed 1
    -A INPUT -m comment --comment text
    -A INPUT -m connbytes --connbytes 1 --connbytes-dir both --connbytes-mode bytes
    -A INPUT -p tcp --syn -m connlimit --connlimit-above 3
    -A INPUT -m connmark --mark 1
    -A INPUT -m conntrack --ctstate NEW
    -A INPUT -m cpu --cpu 0
    -A INPUT -p dccp -m dccp --sport 1
    -A INPUT -m devgroup --src-group 1
    -A INPUT -m dscp --dscp 1
    -A INPUT -p tcp -m ecn --ecn-tcp-cwr
    -A INPUT -p esp -m esp --espspi 1
    -A INPUT -m hashlimit --hashlimit-upto 1/s --hashlimit-name a
    -A INPUT -m helper --helper ftp
    -A INPUT -p icmp --icmp-type 8
    -A INPUT -m iprange --src-range 10.0.0.1-10.0.0.2
    -A INPUT -p ipcomp -m ipcomp --ipcompspi 1
    -A INPUT -m ipvs --ipvs
    -A INPUT -m length --length 1
    -A INPUT -m limit --limit 1/s
    -A INPUT -m mac --mac-source 02:00:00:00:00:01
    -A INPUT -m mark --mark 1
    -A INPUT -p tcp -m multiport --dports 1,2
    -A INPUT -p tcp -m osf --genre Linux
    -A OUTPUT -m owner --uid-owner 0
    -A INPUT -m physdev --physdev-in a
    -A INPUT -m pkttype --pkt-type broadcast
    -A INPUT -m policy --dir in --pol none
    -A INPUT -m quota --quota 1
    -A INPUT -j RATEEST --rateest-name a --rateest-interval 250ms --rateest-ewmalog 500ms
    -A INPUT -m rateest --rateest a --rateest-gt --rateest-bps 8bit
    -A INPUT -m realm --realm 1
    -A INPUT -m recent --name a --set
    -t raw -A PREROUTING -m rpfilter
    -A INPUT -p sctp -m sctp --sport 1
    -t mangle -A PREROUTING -p tcp -m socket
    -A INPUT -m state --state NEW
    -A INPUT -m statistic --mode random --probability 0.5
    -A INPUT -m string --string a --algo bm
    -A INPUT -p tcp --tcp-flags SYN,RST SYN -m tcpmss --mss 1
    -A INPUT -m time --timestart 00:00
    -A INPUT -m ttl --ttl-eq 1
    -A INPUT -m u32 --u32 0=1
    -A INPUT -p udp --sport 1
    -t mangle -A POSTROUTING -p udp -j CHECKSUM --checksum-fill
    -t mangle -A POSTROUTING -j CLASSIFY --set-class 1:1
    -t mangle -A INPUT -j CONNMARK --save-mark
    -t raw -A PREROUTING -j CT --notrack
    -t nat -A PREROUTING -j DNAT --to-destination 10.0.0.1
    -t mangle -A INPUT -j DSCP --set-dscp 1
    -t mangle -A INPUT -p tcp -j ECN --ecn-tcp-remove
    -t mangle -A INPUT -j HMARK --hmark-tuple src --hmark-mod 2 --hmark-rnd 1 --hmark-offset 1
    -A INPUT -j IDLETIMER --timeout 1 --label a
    -A INPUT -j LOG
    -t mangle -A INPUT -j MARK --set-mark 1
    -t nat -A POSTROUTING -j MASQUERADE
    -t nat -A PREROUTING -j NETMAP --to 10.0.0.0/24
    -A INPUT -j NFLOG
    -A INPUT -j NFQUEUE
    -t nat -A PREROUTING -p tcp -j REDIRECT --to-ports 1
    -A INPUT -j REJECT
    -t security -A INPUT -j ACCEPT
    -t nat -A POSTROUTING -j SNAT --to-source 10.0.0.1
    -A INPUT -p tcp -m conntrack --ctstate INVALID -j SYNPROXY --mss 1460
    -A FORWARD -p tcp --syn -j TCPMSS --clamp-mss-to-pmtu
    -t mangle -A INPUT -p tcp -j TCPOPTSTRIP --strip-options mss
    -t mangle -A PREROUTING -j TEE --gateway 10.0.0.1
    -t mangle -A PREROUTING -p tcp -j TPROXY --on-port 1
    -t raw -A PREROUTING -j TRACE
    -t mangle -A POSTROUTING -j TTL --ttl-set 1";

/// Rules of ip6tables that iptables does not have.
const RULES_OF_IPV6: &str = "
    -A INPUT -m eui64
    -A INPUT -m frag --fragid 1
    -A INPUT -m hl --hl-eq 1
    -t mangle -A POSTROUTING -j HL --hl-set 1
    -A INPUT -m ipv6header --header dst --soft
    -A INPUT -p mh -m mh --mh-type 1
    -A INPUT -m rt --rt-type 0
    -t mangle -A POSTROUTING -j SNPT --src-pfx fd00::/64 --dst-pfx fd01::/64
    -t mangle -A PREROUTING -j DNPT --src-pfx fd01::/64 --dst-pfx fd00::/64
    -A INPUT -m srh --srh-next-hdr 17";

fn iptables_has_its_matches_and_targets(engine: &Engine) {
    images::import_nested(engine);
    // With runc the kernel is the host's, which loads these tables for nobody in a container.
    check_output(Command::new("modprobe").args(["-a", "ip6table_filter", "ip6table_mangle"]));
    // A rule that the kernel refuses is printed.
    let script = "try() { while read -r rule; do
            [ -z \"$rule\" ] || eval \"$1 $rule\" 2>/tmp/why || echo \"$1 $rule: $(cat /tmp/why)\"; done; }
        echo \"$RULES\" | try iptables-legacy; echo \"$RULES\" | try iptables-nft
        echo \"$RULES_OF_IPV6\" | try ip6tables-legacy; echo \"$RULES_OF_IPV6\" | try ip6tables-nft; echo end";
    let [rules, of_ipv6] = [format!("RULES={RULES}"), format!("RULES_OF_IPV6={RULES_OF_IPV6}")];
    let words = ["run", "--rm", "--privileged", "-e", &rules, "-e", &of_ipv6, "nested", "sh", "-c", script];
    assert_eq!(engine.ok(&words), "end");
}
