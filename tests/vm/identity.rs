//! Attributes of the init process: environment, user, limits, capabilities, host name, scheduling.

use std::process::Command;

use serde_json::json;
use tests::Bundle;

#[test]
fn the_environment_is_the_configured_one() {
    let bundle =
        Bundle::new(&["env"]).with(|c| c["process"]["env"] = json!(["PATH=/bin", "A=b c", "EMPTY="]));
    let run = bundle.run().code(0);
    let mut lines: Vec<String> = run.text().lines().map(str::to_owned).collect();
    lines.sort();
    lines.retain(|l| !l.starts_with("HOME="));
    assert_eq!(lines, ["A=b c", "EMPTY=", "PATH=/bin"]);
}

#[test]
fn the_working_directory_is_the_configured_one() {
    Bundle::new(&["pwd"]).with(|c| c["process"]["cwd"] = json!("/tmp")).run().code(0).stdout("/tmp\n");
}

#[test]
fn a_missing_working_directory_is_created() {
    let bundle = Bundle::new(&["pwd"]).with(|c| c["process"]["cwd"] = json!("/srv/new"));
    bundle.run().code(0).stdout("/srv/new\n");
}

#[test]
fn user_and_groups_are_set() {
    let bundle = Bundle::sh("id -u; id -g; id -G").with(|c| {
        c["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [10, 20]});
    });
    bundle.run().code(0).stdout("1000\n1000\n1000 10 20\n");
}

#[test]
fn the_umask_is_set() {
    let bundle = Bundle::sh("umask").with(|c| c["process"]["user"]["umask"] = json!(0o27));
    bundle.run().code(0).stdout("0027\n");
}

#[test]
fn the_host_name_is_set() {
    let bundle =
        Bundle::sh("hostname; cat /proc/sys/kernel/hostname").with(|c| c["hostname"] = json!("kiste"));
    bundle.run().code(0).stdout("kiste\nkiste\n");
}

#[test]
fn an_empty_host_name_is_the_host_s() {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    for share in [false, true] {
        let bundle = Bundle::sh("hostname").with(|c| c["hostname"] = json!(""));
        let bundle = if share { bundle.share("uts") } else { bundle };
        bundle.run().code(0).stdout(&host);
    }
}

#[test]
fn resource_limits_are_set() {
    let bundle = Bundle::sh("ulimit -n; ulimit -Hn; ulimit -c").with(|c| {
        c["process"]["rlimits"] = json!([
            {"type": "RLIMIT_NOFILE", "soft": 777, "hard": 1234},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ]);
    });
    bundle.run().code(0).stdout("777\n1234\n0\n");
}

#[test]
fn limits_that_the_bundle_does_not_name_are_the_caller_s() {
    let script = "cat /proc/self/limits";
    let caller = tests::check_output(Command::new("/bin/busybox").args(["sh", "-c", script]));
    let bundle = Bundle::sh(script).with(|c| c["process"]["rlimits"] = json!([]));
    bundle.run().code(0).stdout(&caller).stderr("");
}

#[test]
fn a_limit_of_open_files_may_exceed_the_kernel_s_default_maximum() {
    let bundle = Bundle::sh("ulimit -Sn; ulimit -Hn; cat /proc/sys/fs/nr_open").with(|c| {
        c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 1_500_000, "hard": 1_500_000}]);
    });
    let run = bundle.run().code(0);
    let numbers: Vec<u64> = run.text().lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(numbers[..2], [1_500_000, 1_500_000]);
    assert!(numbers[2] >= 1_500_000, "{numbers:?}");
}

#[test]
fn kernel_parameters_that_programs_check_are_the_host_s() {
    let files = "vm/max_map_count vm/swappiness kernel/pid_max kernel/threads-max fs/file-max fs/aio-max-nr \
                 fs/inotify/max_user_watches fs/inotify/max_user_instances net/core/somaxconn \
                 kernel/dmesg_restrict fs/pipe-max-size fs/protected_regular fs/protected_symlinks \
                 kernel/core_uses_pid net/ipv4/ip_forward net/ipv4/tcp_max_orphans net/ipv4/tcp_max_syn_backlog \
                 net/ipv4/tcp_max_tw_buckets vm/mmap_min_addr";
    let script = format!("cd /proc/sys; for file in {files}; do echo $file $(cat $file); done");
    let host = tests::check_output(Command::new("/bin/busybox").args(["sh", "-c", &script]));
    Bundle::sh(&script).run().code(0).stdout(&host).stderr("");
    let bundle = Bundle::sh("cat /proc/sys/vm/max_map_count")
        .with(|c| c["linux"]["sysctl"] = json!({"vm.max_map_count": "77777"}));
    bundle.run().code(0).stdout("77777\n");
}

#[test]
fn each_capability_set_is_the_configured_one() {
    let set = |names: &[&str]| json!(names);
    let bundle =
        Bundle::sh("grep ^Cap /proc/self/status | cut -f2; grep NoNewPrivs /proc/self/status").with(|c| {
            c["process"]["user"] = json!({"uid": 1000, "gid": 1000});
            c["process"]["noNewPrivileges"] = json!(true);
            c["process"]["capabilities"] = json!({
                "bounding": set(&["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"]),
                "effective": set(&["CAP_KILL"]),
                "inheritable": set(&["CAP_KILL"]),
                "permitted": set(&["CAP_KILL"]),
                "ambient": set(&["CAP_KILL"]),
            });
        });
    let kill = "0000000000000020\n";
    let expected = format!("{kill}{kill}{kill}0000000000000421\n{kill}NoNewPrivs:\t1\n");
    bundle.run().code(0).stdout(&expected);
}

#[test]
fn an_operation_without_its_capability_is_denied() {
    let bundle = Bundle::sh("chown 5:5 /tmp && echo changed").with(|c| {
        for kind in ["bounding", "effective", "permitted"] {
            c["process"]["capabilities"][kind] = json!(["CAP_KILL"]);
        }
    });
    let run = bundle.run().code(1).stdout("");
    assert!(String::from_utf8_lossy(&run.stderr).contains("Operation not permitted"), "{run}");
}

#[test]
fn an_inheritable_capability_outside_of_the_bounding_set_is_an_error() {
    let bundle = Bundle::sh("grep ^Cap /proc/self/status").with(|c| {
        let set = json!(["CAP_SYS_ADMIN"]);
        c["process"]["capabilities"] = json!({"effective": set, "inheritable": set, "permitted": set});
    });
    bundle.run().code(125).says(&["set capabilities: operation not permitted"]);
}

#[test]
fn the_oom_score_is_set() {
    let bundle =
        Bundle::sh("cat /proc/self/oom_score_adj").with(|c| c["process"]["oomScoreAdj"] = json!(500));
    bundle.run().code(0).stdout("500\n");
}

#[test]
fn scheduling_and_execution_domain_are_set() {
    let script = "awk '{print $19, $41}' /proc/self/stat; ionice -p $$; uname -m";
    let bundle = Bundle::sh(script).with(|c| {
        c["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
        c["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
        c["linux"]["personality"] = json!({"domain": "LINUX32"});
    });
    bundle.run().code(0).stdout("5 3\nbest-effort: prio 6\ni686\n");
    let bundle = Bundle::sh("awk '{print $40, $41}' /proc/self/stat")
        .with(|c| c["process"]["scheduler"] = json!({"policy": "SCHED_FIFO", "priority": 3}));
    bundle.run().code(0).stdout("3 1\n");
}

#[test]
fn a_time_namespace_has_its_offsets() {
    let bundle = Bundle::sh("cut -d . -f 1 /proc/uptime").with(|c| {
        c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
        c["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1_000_000}, "monotonic": {"secs": 5}});
    });
    let run = bundle.run().code(0);
    let up: u64 = run.text().parse().unwrap();
    assert!((1_000_000..1_001_000).contains(&up), "{run}");
}

#[test]
fn kernel_parameters_are_set() {
    let bundle = Bundle::sh("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni").with(|c| {
        c["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.shmmni": "111"});
    });
    bundle.run().code(0).stdout("1\n111\n");
}

#[test]
fn only_the_standard_streams_are_open() {
    Bundle::sh("ls /proc/self/fd | head -n 3 | tr '\\n' ' '; ls /proc/self/fd | wc -l")
        .run()
        .code(0)
        .stdout("0 1 2 4\n");
}
