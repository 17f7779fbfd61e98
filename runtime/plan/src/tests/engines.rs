//! config.json as written by the engines of Debian 12: Docker 20.10, containerd 1.6's `ctr`, Podman 4.3 and runc 1.1's
//! `runc spec`. All are accepted, and the plan contains what they ask for.

use super::*;

/// Plans a config.json of an engine, without hooks and host namespaces, which do not affect a plan.
fn plan(text: &str) -> Plan {
    let mut json: serde_json::Value = serde_json::from_str(text).unwrap();
    json["hooks"] = serde_json::json!({});
    for namespace in json["linux"]["namespaces"].as_array_mut().unwrap() {
        namespace["path"] = "".into();
    }
    let bundle = Bundle::check(Path::new("/b"), oci::json::from_value(&json).unwrap()).unwrap();
    Plan::new(&bundle, &config(), None).unwrap()
}

macro_rules! plan_of {
    ($name:literal) => {
        plan(include_str!(concat!("engines/", $name, ".json")))
    };
}

/// Returns the paths of the additional device nodes.
fn devices(plan: &Plan) -> Vec<&str> {
    plan.container.oci.as_ref().unwrap().devices.iter().map(|device| device.path.as_str()).collect()
}

fn limit<'a>(plan: &'a Plan, file: &str) -> Option<&'a str> {
    plan.container.oci.as_ref().unwrap().cgroup.get(file).map(String::as_str)
}

fn bounding(plan: &Plan) -> u64 {
    plan.container.process.oci.as_ref().unwrap().capabilities.unwrap().bounding
}

#[test]
fn docker_s_default_is_accepted() {
    let plan = plan_of!("docker-default");
    assert!(plan.vm.cgroup.is_some());
    assert_eq!((plan.vm.memory_mib, plan.vm.vcpus, plan.container.process.terminal), (256, 1, false));
    assert!(plan.container.oci.as_ref().unwrap().cgroup.is_empty());
    assert!(plan.container.process.oci.as_ref().unwrap().seccomp.is_some());
    assert_eq!(bounding(&plan).count_ones(), 14);
    // The binds: root, resolv.conf, hostname and hosts.
    assert_eq!(plan.binds.len(), 4);
    assert!(plan_of!("docker-tty").container.process.terminal);
}

#[test]
fn docker_s_options_are_accepted() {
    let plan = plan_of!("docker-options");
    assert_eq!((plan.vm.memory_mib, plan.vm.vcpus), (128 + 2 + 32, 2));
    assert!(plan.container.read_only);
    assert_eq!(limit(&plan, "pids.max"), Some("64"));
    assert_eq!(limit(&plan, "memory.max"), Some("134217728"));
    assert_eq!(limit(&plan, "cpu.max"), Some("150000 100000"));
    assert_eq!(devices(&plan), ["/dev/fuse"]);
    assert_eq!(plan.container.sysctl["net.ipv4.ip_forward"], "1");
    let process = &plan.container.process;
    assert_eq!((process.user.as_str(), process.group.as_str()), ("5", "6"));
    assert_eq!((process.rlimits[0].soft, process.rlimits[0].hard), (512, 1024));
    assert!(process.oci.as_ref().unwrap().no_new_privileges);
}

#[test]
fn docker_s_limits_apply_to_guest_and_host() {
    let plan = plan_of!("docker-limits");
    // A set of one host CPU, to which the cgroup restricts the machine.
    assert_eq!((plan.vm.vcpus, limit(&plan, "cpuset.cpus")), (1, None));
    let resources = &plan.vm.cgroup.as_ref().unwrap().resources;
    assert_eq!((resources.block_io.weight, resources.cpu.cpus.as_str()), (500, "0"));
    assert_eq!(limit(&plan, "memory.low"), Some("33554432"));
    assert_eq!(plan.container.process.oci.as_ref().unwrap().oom_score_adj, Some(100));
}

#[test]
fn a_privileged_container_gets_all_devices_of_the_guest() {
    for plan in [plan_of!("docker-privileged"), plan_of!("ctr-privileged"), plan_of!("podman-privileged")] {
        let devices = devices(&plan);
        for path in ["/dev/fuse", "/dev/net/tun", "/dev/loop-control", "/dev/loop0", "/dev/kmsg"] {
            assert!(devices.contains(&path), "{path}");
        }
        assert!(!devices.iter().any(|path| ["/dev/kvm", "/dev/mem", "/dev/tty1"].contains(path)));
        assert!(bounding(&plan) & 1 << 21 != 0, "SYS_ADMIN");
        assert!(plan.container.process.oci.as_ref().unwrap().seccomp.is_none());
    }
}

#[test]
fn the_other_engines_are_accepted() {
    let plan = plan_of!("docker-unconfined");
    assert!(plan.container.process.oci.as_ref().unwrap().seccomp.is_none());
    plan_of!("docker-net-container");
    let plan = plan_of!("ctr-default");
    assert_eq!(limit(&plan, "cpu.weight"), Some("100"));
    let plan = plan_of!("podman-default");
    assert_eq!(limit(&plan, "pids.max"), Some("2048"));
    plan_of!("podman-bridge");
    let plan = plan_of!("podman-options");
    assert_eq!((plan.vm.vcpus, limit(&plan, "pids.max")), (2, Some("64")));
    assert_eq!(devices(&plan), ["/dev/fuse"]);
}

#[test]
fn runc_s_own_starting_points_are_accepted_without_their_ambient_capabilities() {
    for plan in [plan_of!("runc-spec"), plan_of!("runc-spec-rootless")] {
        let capabilities = plan.container.process.oci.as_ref().unwrap().capabilities.unwrap();
        assert_eq!((capabilities.permitted.count_ones(), capabilities.ambient), (3, 0));
        let dropped = |name: &str| {
            plan.notices.contains(&format!(
                "can't raise ambient capability {name}: not both permitted and inheritable"
            ))
        };
        assert!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"].into_iter().all(dropped));
        assert_eq!(plan.notices.len(), 3, "{:?}", plan.notices);
    }
    assert!(plan_of!("runc-spec-rootless").container.oci.unwrap().user_namespace.is_some());
}
