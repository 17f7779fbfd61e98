use serde_json::{Value, json};

use super::*;

/// Returns a folder with an image `root`, a bundle `bundle`, and other paths of the podfile.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for directory in ["root", "bundle/rootfs", "data"] {
        fs::create_dir_all(folder.path().join(directory)).unwrap();
    }
    let config = oci::DEFAULT_CONFIG;
    fs::write(folder.path().join("bundle/config.json"), config).unwrap();
    fs::write(folder.path().join("file"), "from the host").unwrap();
    folder
}

fn plan(folder: &Path, pod: Value) -> Result<(PodPlan, Vec<ContainerSpec>)> {
    PodPlan::new(serde_json::from_value(pod).unwrap(), folder, "generated", &RunConfig::default())
}

fn one(folder: &Path, container: Value) -> ContainerSpec {
    plan(folder, json!({"containers": [container]})).unwrap().1.remove(0)
}

fn mount<'a>(spec: &'a ContainerSpec, destination: &str) -> &'a payload::Mount {
    let mounts = &spec.plan.container.oci.as_ref().unwrap().mounts;
    mounts.iter().find(|mount| mount.destination == destination).unwrap()
}

#[test]
fn a_plain_directory_gets_what_docker_gives() {
    let folder = folder();
    let spec = one(folder.path(), json!({"name": "a", "image": "root", "command": ["sh", "-c", "true"]}));
    let process = &spec.plan.container.process;
    assert_eq!(process.args, ["sh", "-c", "true"]);
    assert_eq!((process.user.as_str(), process.workdir.as_str()), ("0", "/"));
    let capabilities = process.oci.as_ref().unwrap().capabilities.unwrap();
    assert_eq!((capabilities.bounding, capabilities.ambient), (0xa804_25fb, 0));
    assert_eq!((capabilities.effective, capabilities.permitted), (0xa804_25fb, 0xa804_25fb));
    let oci = spec.plan.container.oci.as_ref().unwrap();
    assert_eq!(oci.namespaces, [payload::Namespace::Cgroup]);
    assert!(oci.masked_paths.contains(&"/proc/kcore".to_owned()));
    assert!(oci.readonly_paths.contains(&"/proc/sys".to_owned()));
    assert_eq!(mount(&spec, "/dev/shm").kind, payload::POD_SHM);
    assert_eq!(spec.plan.binds[0].host, folder.path().join("root"));
    assert_eq!((spec.restart, spec.stop_signal), (RestartPolicy::Never, libc::SIGTERM));
}

#[test]
fn a_bundle_s_values_are_the_podfile_s_defaults() {
    let folder = folder();
    let spec = one(folder.path(), json!({"name": "a", "image": "bundle"}));
    assert_eq!(spec.plan.container.process.args, ["sh"]);
    assert!(spec.plan.container.read_only);
    assert_eq!(spec.plan.binds[0].host, folder.path().join("bundle/rootfs"));
    let fields = json!({"name": "a", "image": "bundle", "entrypoint": ["env"], "command": ["-0"], "workdir": "/tmp",
        "envs": [{"env": "PATH", "value": "/x"}, {"env": "A", "value": "b=c"}], "ownPids": true,
        "ulimits": [{"Name": "nofile", "Soft": 7, "Hard": -1}], "sysctl": {"kernel.shmmax": "1"}});
    let spec = one(folder.path(), fields);
    let process = &spec.plan.container.process;
    assert_eq!((process.args.join(" ").as_str(), process.workdir.as_str()), ("env -0", "/tmp"));
    let envs: Vec<_> = process.envs.iter().map(|env| format!("{}={}", env.env, env.value)).collect();
    assert_eq!(envs, ["TERM=xterm", "PATH=/x", "A=b=c"]);
    let limit = &process.rlimits[0];
    assert_eq!((limit.kind.as_str(), limit.soft, limit.hard), ("RLIMIT_NOFILE", 7, u64::MAX));
    assert_eq!(process.rlimits.len(), 1);
    assert_eq!(spec.plan.container.sysctl["kernel.shmmax"], "1");
    let own = &spec.plan.container.oci.as_ref().unwrap().namespaces;
    assert_eq!(own[..], [payload::Namespace::Pid, payload::Namespace::Cgroup]);
}

#[test]
fn the_kernel_s_settings_are_read_only_without_sys_admin() {
    let folder = folder();
    let config = folder.path().join("bundle/config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    spec["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
    let paths = |spec: &serde_json::Value| {
        std::fs::write(&config, spec.to_string()).unwrap();
        let plan = one(folder.path(), json!({"name": "a", "image": "bundle"}));
        plan.plan.container.oci.unwrap().readonly_paths
    };
    let all = ["/proc/sys", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sysrq-trigger"];
    assert_eq!(paths(&spec), all);
    spec["process"]["capabilities"]["bounding"] = json!(["CAP_KILL", "CAP_SYS_ADMIN"]);
    assert_eq!(paths(&spec), ["/proc/sys"]);
}

#[test]
fn users_are_looked_up_in_the_container_and_have_no_capabilities() {
    let folder = folder();
    let user = json!({"name": "ann", "additionalGroups": ["wheel", "7"]});
    let spec = one(folder.path(), json!({"name": "a", "image": "root", "command": ["id"], "user": user}));
    let process = &spec.plan.container.process;
    assert_eq!((process.user.as_str(), process.group.as_str()), ("ann", ""));
    assert_eq!(process.additional_groups, ["wheel", "7"]);
    let capabilities = process.oci.as_ref().unwrap().capabilities.unwrap();
    assert_eq!((capabilities.effective, capabilities.permitted, capabilities.bounding), (0, 0, 0xa804_25fb));
}

#[test]
fn volumes_and_files_are_in_the_share() {
    let folder = folder();
    let uri = format!("file://{}", folder.path().join("file").display());
    let pod = json!({
        "id": "web", "dns": ["1.1.1.1"], "dnsSearch": ["example"],
        "volumes": [{"name": "data", "source": "data", "format": "vfs"}],
        "files": [{"name": "text", "content": "aGVsbG8=", "encoding": "base64"}, {"name": "host", "uri": uri}],
        "containers": [{"name": "a", "image": "root", "command": ["true"],
            "volumes": [{"path": "/data", "volume": "data", "readOnly": true}, {"path": "/f", "detail": {"source": "file"}}],
            "files": [{"path": "/text", "filename": "text", "perm": "0600", "user": "5", "group": "root"},
                {"path": "/host", "filename": "host"}, {"path": "/etc/hosts", "detail": {"content": "own"}}]}]
    });
    let (pod, plans) = plan(folder.path(), pod).unwrap();
    let spec = &plans[0];
    assert_eq!((pod.id.as_str(), pod.hostname.as_str()), ("web", "web"));
    let data = spec.plan.binds.iter().find(|bind| bind.host == folder.path().join("data")).unwrap();
    assert!(data.read_only);
    assert_eq!(mount(spec, "/data").source, data.path);
    assert_eq!(mount(spec, "/f").kind, "bind");
    let content = |path: &str| {
        let source = &mount(spec, path).source;
        spec.plan.contents.iter().find(|content| content.path == *source).unwrap()
    };
    assert_eq!(content("/text").bytes, b"hello");
    assert_eq!((content("/text").mode, content("/text").owner), (0o600, (5, 0)));
    assert_eq!((content("/host").bytes.as_slice(), content("/host").mode), (&b"from the host"[..], 0o755));
    assert_eq!(content("/etc/hosts").bytes, b"own");
    assert_eq!(content("/etc/hostname").bytes, b"web\n");
    assert_eq!(content("/etc/resolv.conf").bytes, b"nameserver 1.1.1.1\nsearch example\n");
}

#[test]
fn errors_on_host_paths_name_the_field() {
    let folder = folder();
    let container = |fields: Value| {
        let mut all = json!({"name": "a", "image": "root", "command": ["x"]});
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        plan(folder.path(), json!({"containers": [all]})).unwrap_err().to_string()
    };
    for (fields, wanted) in [
        (json!({"image": "busybox:latest"}), "podfile containers[0].image: not supported: "),
        (json!({"command": []}), "podfile containers[0].command: no program"),
        (
            json!({"ulimits": [{"Name": "wonder"}]}),
            "podfile containers[0].ulimits[0].Name: \"wonder\" is not a limit",
        ),
        (
            json!({"volumes": [{"path": "/v", "volume": "v"}]}),
            "podfile containers[0].volumes[0].volume: the pod has",
        ),
        (
            json!({"files": [{"path": "/v", "filename": "v"}]}),
            "podfile containers[0].files[0].filename: the pod has",
        ),
        (
            json!({"volumes": [{"path": "/v", "detail": {"source": "none"}}]}),
            "open containers[0].volumes[0].detail.source ",
        ),
        (
            json!({"volumes": [{"path": "/v", "detail": {"source": "/dev/null"}}]}),
            "podfile containers[0].volumes[0]",
        ),
        (
            json!({"files": [{"path": "/v", "detail": {"content": "?", "encoding": "base64"}}]}),
            "podfile containers[0].files[0].content: not base64",
        ),
    ] {
        let error = container(fields);
        assert!(error.starts_with(wanted), "{error:?} {wanted:?}");
    }
    let size = |resource: Value| plan(folder.path(), json!({"resource": resource})).unwrap_err().to_string();
    assert!(size(json!({"memory": 63})).starts_with("podfile resource.memory: "));
    assert!(size(json!({"vcpu": 0})).starts_with("podfile resource.vcpu: "));
}

#[test]
fn the_machine_has_the_podfile_s_size_unless_flags_override_it() {
    let folder = folder();
    let size = |config: &RunConfig| {
        let file = serde_json::from_value(json!({"resource": {"vcpu": 2, "memory": 300}})).unwrap();
        let (pod, containers) = PodPlan::new(file, folder.path(), "a_b", config).unwrap();
        assert_eq!((containers.len(), pod.hostname.as_str()), (0, "pod"));
        (pod.machine.vcpus, pod.machine.memory_mib)
    };
    assert_eq!(size(&RunConfig::default()), (2, 300));
    assert_eq!(
        size(&RunConfig {
            vm: VmSettings { memory_mib: Some(64), ..VmSettings::default() },
            ..RunConfig::default()
        }),
        (2, 64)
    );
}

#[test]
fn base64_has_the_rfc_s_vectors_and_refuses_other_text() {
    for (text, wanted) in [
        ("", Some("")),
        ("Zg==", Some("f")),
        ("Zm8=", Some("fo")),
        ("Zm9v", Some("foo")),
        ("Zm9vYg==", Some("foob")),
        ("Zm9v\nYmFy\n", Some("foobar")),
        ("Zm9", None),
        ("Zg=a", None),
        ("Zh==", None),
        ("====", None),
        ("Zm9-", None),
    ] {
        assert_eq!(
            decoded(text.as_bytes().to_vec()),
            wanted.map(|text| text.as_bytes().to_vec()),
            "{text:?}"
        );
    }
    assert_eq!(decoded(b"+/+/".to_vec()).unwrap(), [0xfb, 0xff, 0xbf]);
}
