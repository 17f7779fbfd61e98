//! A container's limits, which its cgroup in the guest enforces.

use serde_json::{Value, json};
use tests::Bundle;

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
