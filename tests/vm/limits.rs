//! A container's limits, which its cgroup in the guest enforces.

use serde_json::{Value, json};
use tests::{Bundle, Running};

fn limited(bundle: Bundle, resources: Value) -> Bundle {
    bundle.with(|c| c["linux"]["resources"] = resources)
}

#[test]
fn a_process_over_the_memory_limit_is_killed() {
    // tail(1) keeps the endless line in memory.
    let limit = json!({"memory": {"limit": 32 << 20}});
    limited(Bundle::new(&["tail", "-n", "1", "/dev/zero"]), limit.clone())
        .run()
        .code(137)
        .stdout("")
        .stderr("");
    let run = limited(Bundle::sh("tail -n 1 /dev/zero; echo $?"), limit).run().code(0);
    assert_eq!(run.text(), "137", "{run}");
}

#[test]
fn a_container_may_use_its_memory_up_to_the_limit() {
    let bundle = Bundle::sh("head -c 40m /dev/zero | tail -c 36m | wc -c");
    limited(bundle, json!({"memory": {"limit": 64 << 20}})).run().code(0).stdout("37748736\n").stderr("");
}

#[test]
fn a_container_at_its_process_limit_cannot_fork() {
    let script = "for i in 1 2 3 4 5 6 7 8; do sleep 100 & done; echo unreachable";
    let run = limited(Bundle::sh(script), json!({"pids": {"limit": 5}})).run();
    assert!(!run.text().contains("unreachable"), "{run}");
    assert!(
        String::from_utf8_lossy(&run.stderr).contains("can't fork: Resource temporarily unavailable"),
        "{run}"
    );
}

#[test]
fn each_limit_is_written_to_its_cgroup_file() {
    let script = "cd /sys/fs/cgroup; cat memory.max memory.low memory.oom.group cpu.weight cpu.max pids.max cpuset.cpus; \
                  grep Cpus_allowed_list /proc/self/status";
    let resources = json!({
        "memory": {"limit": 64 << 20, "reservation": 16 << 20, "swap": 64 << 20},
        "cpu": {"shares": 2048, "quota": 50_000, "period": 200_000, "cpus": "1"},
        "pids": {"limit": 100},
        "unified": {"memory.oom.group": "1"},
    });
    let expected = "67108864\n16777216\n1\n174\n50000 200000\n100\n1\nCpus_allowed_list:\t1\n";
    limited(Bundle::sh(script), resources).run().code(0).stdout(expected).stderr("");
}

#[test]
fn a_container_cannot_raise_its_limits() {
    let script = "echo max > /sys/fs/cgroup/pids.max; cat /sys/fs/cgroup/pids.max";
    let bundle = limited(Bundle::sh(script), json!({"pids": {"limit": 100}})).with(|c| {
        let mounts = c["mounts"].as_array_mut().unwrap();
        let cgroup = mounts.iter_mut().find(|mount| mount["destination"] == "/sys/fs/cgroup").unwrap();
        cgroup["options"] = json!(["nosuid", "noexec", "nodev", "rw"]);
        for set in ["bounding", "effective", "permitted"] {
            c["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_SYS_ADMIN"));
        }
    });
    let run = bundle.run().code(0);
    assert_eq!(run.text(), "100", "{run}");
    assert!(String::from_utf8_lossy(&run.stderr).contains("Operation not permitted"), "{run}");
}

#[test]
fn a_limit_that_the_guest_lacks_is_an_error() {
    let run = limited(Bundle::sh("true"), json!({"unified": {"memory.wonder": "1"}})).run().code(125);
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(errors.contains("set limit memory.wonder to 1: no such file or directory"), "{run}");
}

/// Returns a field of a /proc/meminfo in KiB.
fn kib(meminfo: &str, field: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_else(|| panic!("no {field}"))
}

#[test]
fn memory_that_was_never_used_is_free_and_can_be_allocated() {
    let write = |file: &str| format!("dd if=/dev/zero of=/data/{file} bs=1M count=300 2>/dev/null");
    let script = format!(
        "cat /proc/meminfo; {} & {} & wait; cat /data/a /data/b >/dev/null; stat -c %s /data/a /data/b; \
         rm /data/a /data/b; echo after; cat /proc/meminfo",
        write("a"),
        write("b")
    );
    let tmpfs = json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["size=700m"]});
    let bundle = Bundle::sh(&script).mount(tmpfs).flag("--memory").flag("4G").flag("--cpus").flag("2");
    let text = bundle.run().code(0).text();
    let (before, after) = text.split_once("after").expect("both outputs");
    assert!(before.contains("\n314572800\n314572800\n"), "{text}");
    for meminfo in [before, after] {
        let total = kib(meminfo, "MemTotal");
        assert!((3900 << 10..=4096 << 10).contains(&total), "{text}");
        for field in ["MemFree", "MemAvailable"] {
            let value = kib(meminfo, field);
            assert!(value <= total && value > total * 9 / 10, "{field} {text}");
        }
    }
}

#[test]
fn a_container_without_a_limit_has_the_host_s_memory_up_to_the_maximum() {
    let host = kib(&std::fs::read_to_string("/proc/meminfo").unwrap(), "MemTotal");
    let show = Bundle::new(&["cat", "/proc/meminfo"]);
    for (max, expected) in [(None, host), (Some("1G"), host.min(1 << 20)), (Some("64G"), host.min(64 << 20))]
    {
        let mut command = show.command();
        command.envs(max.map(|size| ("VMM_MAX_MEMORY", size)));
        let guest = kib(&Running::start(command).finish().code(0).text(), "MemTotal");
        assert!(guest < expected && guest > expected * 9 / 10, "{guest} of {expected} KiB");
    }
}
