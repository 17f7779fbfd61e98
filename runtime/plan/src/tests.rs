use std::path::Path;

use agent_proto::command::Protocol;
use agent_proto::payload::{self, Env, Namespace};
use oci::bundle::Bundle;
use oci::error::Result;
use oci::spec::ConsoleSize;

use super::device_rules::tests::allow;
use super::device_rules::{Kind, access};
use super::vm::{Host, Kernel};
use super::*;

mod engines;
mod schema;

/// Both plans of a bundle.
#[derive(Debug)]
struct Plan {
    vm: VmPlan,
    container: payload::Container,
    binds: Vec<ShareBind>,
    notices: Vec<String>,
}

impl Plan {
    fn new(bundle: &Bundle, settings: &VmSettings, terminal: Option<ConsoleSize>) -> Result<Plan> {
        let vm = VmPlan::for_bundle(bundle, "c1", settings)?;
        let ContainerPlan { container, binds, notices, .. } =
            ContainerPlan::new(bundle, "c1", &vm, terminal)?;
        Ok(Plan { vm, container, binds, notices })
    }
}

fn config() -> VmSettings {
    VmSettings::default()
}

fn plan_of(change: impl FnOnce(&mut serde_json::Value)) -> Result<Plan> {
    plan_with(change, &config(), None)
}

fn plan_with(
    change: impl FnOnce(&mut serde_json::Value),
    config: &VmSettings,
    terminal: Option<ConsoleSize>,
) -> Result<Plan> {
    let mut json: serde_json::Value = serde_json::from_str(oci::DEFAULT_CONFIG).unwrap();
    change(&mut json);
    let bundle = Bundle::check(Path::new("/b"), oci::json::from_value(&json).unwrap())?;
    Plan::new(&bundle, config, terminal)
}

fn bind(path: &str, host: &str, read_only: bool, mount_points: bool) -> ShareBind {
    let (path, host, nodes) = (path.into(), host.into(), Vec::new());
    ShareBind {
        path,
        host,
        read_only,
        read_only_top: false,
        owned: false,
        mount_points,
        nodes,
        later_mounts: false,
        single: false,
        access_time: None,
        admin_xattrs: false,
    }
}

#[test]
fn capabilities_choose_the_kernel() {
    let with = |names: &[&str]| {
        let change =
            |json: &mut serde_json::Value| json["process"]["capabilities"]["bounding"] = names.into();
        plan_of(change).unwrap().vm.kernel
    };
    assert_eq!(plan_of(|_| {}).unwrap().vm.kernel, Kernel::Base, "Docker's default capabilities");
    assert_eq!(with(&["CAP_CHOWN", "CAP_NET_RAW"]), Kernel::Base);
    assert_eq!(with(&["CAP_CHOWN", "CAP_NET_ADMIN"]), Kernel::Full);
    assert_eq!(with(&["CAP_SYS_ADMIN"]), Kernel::Full);
    let none = plan_of(|json| drop(json["process"].as_object_mut().unwrap().remove("capabilities")));
    assert_eq!(none.unwrap().vm.kernel, Kernel::Base);
    let mounts = |kind: &str| {
        let mount = serde_json::json!({"destination": "/huge", "type": kind, "source": kind});
        plan_of(|json| json["mounts"].as_array_mut().unwrap().push(mount)).unwrap().vm.kernel
    };
    assert_eq!([mounts("hugetlbfs"), mounts("tmpfs")], [Kernel::Full, Kernel::Base]);
}

#[test]
fn an_annotation_chooses_the_kernel() {
    let with = |value: &str| {
        let change = |json: &mut serde_json::Value| json["annotations"]["vmm.kernel"] = value.into();
        plan_of(change).map(|plan| plan.vm.kernel).map_err(|error| error.to_string())
    };
    assert_eq!([with("full"), with("base")], [Ok(Kernel::Full), Ok(Kernel::Base)]);
    let of_pod = |kernel: Option<&str>| {
        let change = |json: &mut serde_json::Value| {
            json["annotations"]["io.kubernetes.cri.container-type"] = "sandbox".into();
            kernel.iter().for_each(|kernel| json["annotations"]["vmm.kernel"] = (*kernel).into());
        };
        plan_of(change).unwrap().vm.kernel
    };
    assert_eq!([of_pod(None), of_pod(Some("base"))], [Kernel::Full, Kernel::Base]);
    let error = with("").unwrap_err();
    assert!(error.contains(r#"annotations["vmm.kernel"]: "" is neither "base" nor "full""#), "{error}");
}

#[test]
fn an_annotation_enables_the_network_filter() {
    let with = |value: &str, vhost_net| {
        let config = VmSettings { vhost_net, ..config() };
        let change = |json: &mut serde_json::Value| json["annotations"]["vmm.network.filter"] = value.into();
        plan_with(change, &config, None).map(|plan| plan.vm.network_filter).map_err(|error| error.to_string())
    };
    assert!(!plan_of(|_| {}).unwrap().vm.network_filter);
    assert_eq!(with("true", VhostNet::Auto), Ok(true));
    assert_eq!(with("false", VhostNet::On), Ok(false));
    for (value, vhost_net) in [("true", VhostNet::On), ("yes", VhostNet::Auto), ("", VhostNet::Auto)] {
        let error = with(value, vhost_net).unwrap_err();
        assert!(error.contains(r#"annotations["vmm.network.filter"]"#), "{error}");
    }
}

#[test]
fn the_default_configuration_becomes_one_container() {
    let plan = plan_of(|_| {}).unwrap();
    assert_eq!((plan.vm.memory_mib, plan.vm.vcpus, plan.container.process.terminal), (256, 1, true));
    assert_eq!(plan.vm.pod.hostname, "vmm");
    assert_eq!((plan.vm.pod.share_dir.as_str(), plan.vm.pod.share_type.as_str()), ("share", "virtiofs"));
    let container = &plan.container;
    assert_eq!(
        (container.image.as_str(), container.rootfs.as_str(), container.read_only),
        ("c1", "rootfs", true)
    );
    assert_eq!(plan.binds, [bind("/c1/rootfs", "/b/rootfs", true, true)]);

    let process = &container.process;
    assert_eq!((process.user.as_str(), process.group.as_str()), ("0", "0"));
    assert_eq!(process.envs[1], Env { env: "TERM".into(), value: "xterm".into() });
    let oci = process.oci.as_ref().unwrap();
    assert!(oci.no_new_privileges);
    assert_eq!(oci.capabilities.unwrap().bounding, 1 << 29 | 1 << 5 | 1 << 10);
    assert_eq!(oci.capabilities.unwrap().ambient, 0);

    let oci = container.oci.as_ref().unwrap();
    assert_eq!(oci.namespaces, [Namespace::Pid, Namespace::Cgroup]);
    assert_eq!(oci.mounts.len(), 7);
    assert_eq!(oci.mounts[1].data, "mode=755,size=65536k");
    assert_eq!(oci.mounts[6].kind, "cgroup2");
    assert_eq!(oci.readonly_paths.len(), 5);
}

#[test]
fn limits_become_the_vm_s_size() {
    for (limit, memory) in
        [(-1, 256), (0, 256), (1, 64), (100 << 20, 134), ((100 << 20) + 1, 135), (4_i64 << 30, 4192)]
    {
        let plan = plan_of(|json| json["linux"]["resources"]["memory"]["limit"] = limit.into()).unwrap();
        assert_eq!(plan.vm.memory_mib, memory, "{limit}");
    }
    for (quota, period, vcpus) in
        [(-1, 0, 1), (50_000, 100_000, 1), (100_000, 0, 1), (150_000, 100_000, 2), (i64::MAX, 1, 32)]
    {
        let cpu = serde_json::json!({"quota": quota, "period": period});
        let plan = plan_of(|json| json["linux"]["resources"]["cpu"] = cpu).unwrap();
        assert_eq!(plan.vm.vcpus, vcpus, "{quota}/{period}");
    }
}

#[test]
fn flags_override_limits() {
    let config = VmSettings { memory_mib: Some(99), vcpus: Some(3), ..config() };
    let change =
        |json: &mut serde_json::Value| json["linux"]["resources"]["memory"]["limit"] = (1 << 30).into();
    let mut plan = plan_with(change, &config, None).unwrap();
    plan.vm.fill(Host { memory_mib: Some(4096), cpus: 5 });
    assert_eq!((plan.vm.memory_mib, plan.vm.vcpus), (99, 3));
}

#[test]
fn a_machine_without_a_limit_has_the_host_s_memory_up_to_the_maximum() {
    let memory = |limit: i64, config: &VmSettings, host_mib| {
        let change =
            |json: &mut serde_json::Value| json["linux"]["resources"]["memory"]["limit"] = limit.into();
        let mut vm = plan_with(change, config, None).unwrap().vm;
        vm.fill(Host { memory_mib: Some(host_mib), cpus: 1 });
        vm.memory_mib
    };
    let max = VmSettings { max_memory_mib: Some(2048), ..config() };
    let own = VmSettings { own_kernel: true, ..config() };
    let max = VmSettings { own_kernel: true, ..max };
    let default = VmSettings { default_memory_mib: Some(512), ..config() };
    for (limit, config, host_mib, expected) in [
        (-1, &config(), 800, 800),
        (-1, &config(), 8000, limits::UNSET_MEMORY_MIB),
        (-1, &own, 1 << 40, limits::MAX_MEMORY_MIB),
        (-1, &config(), 3, limits::MIN_MEMORY_MIB),
        (100 << 20, &config(), 8000, 134),
        (100 << 30, &config(), 8000, 8000),
        (-1, &max, 8000, 2048),
        (-1, &max, 1000, 1000),
        (4 << 30, &max, 8000, 2048),
        (-1, &default, 8000, 512),
        (100 << 20, &default, 8000, 134),
    ] {
        assert_eq!(memory(limit, config, host_mib), expected, "{limit} {host_mib}");
    }
}

#[test]
fn a_machine_without_a_limit_has_the_host_s_cpus_up_to_the_maximum() {
    let vcpus = |cpu: serde_json::Value, config: &VmSettings, cpus| {
        let mut vm = plan_with(|json| json["linux"]["resources"]["cpu"] = cpu, config, None).unwrap().vm;
        vm.fill(Host { memory_mib: None, cpus });
        assert_eq!(vm.memory_mib, limits::DEFAULT_MEMORY_MIB);
        vm.vcpus
    };
    let max = VmSettings { max_vcpus: Some(3), ..config() };
    let quota = serde_json::json!({"quota": 150_000, "period": 100_000});
    for (cpu, config, cpus, expected) in [
        (serde_json::json!({}), &config(), 4, 4),
        (serde_json::json!({"shares": 100}), &config(), 1000, limits::UNSET_VCPUS),
        (serde_json::json!({}), &max, 4, 3),
        (serde_json::json!({}), &config(), 0, 1),
        (quota.clone(), &config(), 64, 2),
        (quota, &max, 1, 2),
    ] {
        assert_eq!(vcpus(cpu.clone(), config, cpus), expected, "{cpu} {cpus}");
    }
}

#[test]
fn the_command_line_is_quiet_unless_asked() {
    let line = |config: &VmSettings| plan_with(|_| {}, config, None).unwrap().vm.cmdline;
    assert!(line(&config()).starts_with("console=hvc0 quiet reboot=k panic=-1 "));
    assert!(!line(&config()).contains("vmm.marks"));
    let console = |serial| VmSettings { console: Some(Console { serial, to: None }), ..config() };
    assert!(line(&console(false)).starts_with("console=hvc0 reboot=k"));
    assert!(line(&console(true)).starts_with("console=ttyS0 earlyprintk=ttyS0 console=hvc0 reboot=k"));
    let config = VmSettings { cmdline: Some("a=b c".into()), marks: true, ..config() };
    assert!(line(&config).ends_with(" vmm.marks a=b c"));
}

#[test]
fn binds_become_numbered_shares() {
    let mounts = serde_json::json!([
        {"destination": "proc", "type": "proc", "source": "proc"},
        {"destination": "/data", "type": "bind", "source": "data", "options": ["rbind", "ro", "rprivate"]},
        {"destination": "/etc/hosts", "source": "/run/hosts", "options": ["bind"]},
    ]);
    let plan = plan_of(|json| json["mounts"] = mounts).unwrap();
    assert_eq!(
        plan.binds[1..],
        [
            bind("/c1/mounts/0", "/b/data", true, false),
            ShareBind { single: true, ..bind("/c1/mounts/1", "/run/hosts", false, false) },
        ]
    );
    let mounts = &plan.container.oci.as_ref().unwrap().mounts;
    assert_eq!(mounts[0].destination, "/proc");
    assert_eq!((mounts[1].kind.as_str(), mounts[1].source.as_str()), ("bind", "/c1/mounts/0"));
    assert_eq!(mounts[1].flags, libc::MS_BIND | libc::MS_REC | libc::MS_RDONLY);
    assert_eq!(mounts[1].propagation, libc::MS_PRIVATE | libc::MS_REC);
    assert_eq!((mounts[2].kind.as_str(), mounts[2].flags), ("bind", libc::MS_BIND));
}

#[test]
fn only_a_writable_root_belongs_to_its_container() {
    for (read_only, owned) in [(false, [true, false]), (true, [false, false])] {
        let plan = plan_of(|json| {
            json["root"]["readonly"] = serde_json::json!(read_only);
            json["mounts"] = serde_json::json!([{"destination": "/a", "type": "bind", "source": "a", "options": ["bind"]}]);
        });
        let found: Vec<bool> = plan.unwrap().binds.iter().map(|bind| bind.owned).collect();
        assert_eq!(found, owned);
    }
}

#[test]
fn the_share_is_restricted_as_the_bundle_demands() {
    let plan = plan_of(|json| {
        json["process"]["capabilities"] = serde_json::json!({"bounding": ["CAP_MKNOD"]});
        json["linux"]["devices"] =
            serde_json::json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]);
        json["linux"]["resources"] =
            serde_json::json!({"devices": [{"allow": true, "type": "b", "major": 8}]});
        json["mounts"] = serde_json::json!([
            {"destination": "/a", "type": "bind", "source": "a", "options": ["rbind", "rslave"]},
            {"destination": "/b", "type": "bind", "source": "b", "options": ["rbind", "rprivate"]},
            {"destination": "/c", "type": "bind", "source": "c", "options": ["rbind"]},
            {"destination": "/d", "type": "bind", "source": "d", "options": ["rbind", "shared"]},
        ]);
    })
    .unwrap();
    let later: Vec<bool> = plan.binds.iter().map(|bind| bind.later_mounts).collect();
    assert_eq!(later, [false, true, false, false, true]);
    for (index, bind) in plan.binds.iter().enumerate() {
        let makes = |kind, major, minor| allow(&bind.nodes, (kind, major, minor), access::MAKE);
        assert!(makes(Kind::Block, 8, 0) && !makes(Kind::Block, 9, 0));
        // There is no mount at /dev: the agent creates the bundle's nodes in the root directory, and only there.
        assert_eq!(makes(Kind::Character, 10, 229), index == 0);
    }
}

#[test]
fn the_size_of_the_terminal_overrides_config_json() {
    let size = |height, width| ConsoleSize { height, width };
    let in_file = |json: &mut serde_json::Value| {
        json["process"]["consoleSize"] = serde_json::json!({"height": 10, "width": 20});
    };
    let rows = |plan: Plan| (plan.container.process.rows, plan.container.process.columns);
    assert_eq!(rows(plan_with(in_file, &config(), Some(size(30, 40))).unwrap()), (30, 40));
    assert_eq!(rows(plan_with(in_file, &config(), None).unwrap()), (10, 20));
    let no_terminal = |json: &mut serde_json::Value| json["process"]["terminal"] = false.into();
    let plan = plan_with(no_terminal, &config(), Some(size(30, 40))).unwrap();
    assert_eq!(rows(plan), (0, 0));
}

#[test]
fn users_limits_and_missing_capabilities() {
    let process = serde_json::json!({
        "user": {"uid": 1000, "gid": 100, "umask": 0o27, "additionalGids": [5, 6]},
        "args": ["id"], "cwd": "/tmp", "oomScoreAdj": -5,
        "rlimits": [{"type": "RLIMIT_CORE", "hard": 18446744073709551615u64, "soft": 0}],
    });
    let plan = plan_of(|json| json["process"] = process).unwrap();
    let process = plan.container.process;
    assert_eq!((process.user.as_str(), process.group.as_str()), ("1000", "100"));
    assert_eq!(process.additional_groups, ["5", "6"]);
    assert_eq!((process.rlimits[0].hard, process.rlimits[0].soft), (u64::MAX, 0));
    let oci = process.oci.unwrap();
    assert_eq!((oci.umask, oci.oom_score_adj), (Some(0o27), Some(-5)));
    assert_eq!(oci.capabilities, Some(payload::Capabilities::default()));

    let limits = serde_json::json!([{"type": "RLIMIT_WONDER", "hard": 1, "soft": 1}]);
    let error = plan_of(|json| json["process"]["rlimits"] = limits).unwrap_err();
    assert_eq!(error.to_string(), r#"config.json process.rlimits[0].type: "RLIMIT_WONDER""#);
}

#[test]
fn clocks_of_a_time_namespace() {
    let offsets = |namespaces: serde_json::Value, offsets: serde_json::Value| {
        plan_of(|json| {
            json["linux"]["namespaces"] = namespaces;
            json["linux"]["timeOffsets"] = offsets;
        })
        .map(|plan| plan.container.oci.unwrap().time_offsets)
        .map_err(|error| error.to_string())
    };
    let time = || serde_json::json!([{"type": "time"}]);
    let both = serde_json::json!({"monotonic": {"secs": -5, "nanosecs": 7}, "boottime": {"secs": 86400}});
    assert_eq!(offsets(time(), both.clone()).unwrap(), "boottime 86400 0\nmonotonic -5 7\n");
    assert_eq!(offsets(time(), serde_json::json!({})).unwrap(), "");
    let message = "config.json linux.timeOffsets: requires a time namespace";
    assert_eq!(offsets(serde_json::json!([]), both).unwrap_err(), message);
    let other = serde_json::json!({"realtime": {"secs": 1}});
    let message = r#"config.json linux.timeOffsets: "realtime" is not a clock of a time namespace"#;
    assert_eq!(offsets(time(), other).unwrap_err(), message);
}

#[test]
fn api_4244_gets_only_its_own_keys_and_a_notice_names_the_rest() {
    let config = VmSettings { protocol: Protocol::Api4244, ..config() };
    let change = |json: &mut serde_json::Value| {
        let mounts = json["mounts"].as_array_mut().unwrap();
        mounts.push(
            serde_json::json!({"destination": "/data", "type": "bind", "source": "/d", "options": ["ro"]}),
        );
        mounts.push(serde_json::json!({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs"}));
    };
    let plan = plan_with(change, &config, Some(ConsoleSize { height: 24, width: 80 })).unwrap();
    let json = serde_json::to_string(&(&plan.vm.pod, &plan.container)).unwrap();
    for word in ["oci", "shareType", "rlimits", "rows", "columns", "accounting"] {
        assert!(!json.contains(&format!("\"{word}\"")), "{word} in {json}");
    }
    let bound = payload::FsMap {
        source: "c1/mounts/0".into(),
        path: "/data".into(),
        read_only: true,
        docker_volume: false,
    };
    assert_eq!(plan.container.fsmap, [bound]);
    assert!(plan.container.read_only);

    let mut container = plan_with(change, &self::config(), None).unwrap().container;
    let left_out = api4244::reduce(&mut container).unwrap();
    let notice = &plan.notices[0];
    assert!(
        notice.starts_with("API 4244: the container runs without ")
            && notice.contains("the tmpfs at /scratch")
    );
    for name in
        ["the tmpfs at /scratch", "capabilities", "namespaces", "noNewPrivileges", "rlimits", "maskedPaths"]
    {
        assert!(left_out.iter().any(|left| left == name), "{name} in {left_out:?}");
    }
    assert!(!left_out.iter().any(|left| left.contains("/proc") || left == "hostname" || left == "umask"));
}

#[test]
fn the_last_value_of_a_duplicate_variable_counts() {
    let variables = ["A=1", "B=2", "nonsense", "A=3=4"].map(str::to_owned);
    let envs: Vec<_> = process::environment(&variables).into_iter().map(|env| (env.env, env.value)).collect();
    assert_eq!(envs, [("A".to_owned(), "3=4".to_owned()), ("B".to_owned(), "2".to_owned())]);
}
