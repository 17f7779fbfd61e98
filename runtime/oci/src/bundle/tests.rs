use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Command;

use super::*;
use crate::DEFAULT_CONFIG;

/// Loads the default config.json, in which the keys of the object `change` replace those of the default.
fn check_with(change: &str) -> Result<Bundle> {
    let mut json: serde_json::Value = serde_json::from_str(DEFAULT_CONFIG).unwrap();
    overlay(&mut json, serde_json::from_str(change).unwrap());
    Bundle::check(Path::new("/bundle"), json::from_value(&json).unwrap())
}

fn overlay(base: &mut serde_json::Value, change: serde_json::Value) {
    match (base, change) {
        (serde_json::Value::Object(base), serde_json::Value::Object(change)) => {
            for (key, value) in change {
                overlay(base.entry(key).or_insert(serde_json::Value::Null), value);
            }
        }
        (base, change) => *base = change,
    }
}

#[test]
fn the_default_configuration_is_valid() {
    let bundle = check_with("{}").unwrap();
    assert_eq!(bundle.rootfs, Path::new("/bundle/rootfs"));
    assert!(bundle.readonly);
    assert_eq!(bundle.process.args, ["sh"]);
}

#[test]
fn unsupported_fields_are_refused_by_their_path() {
    for (change, path) in [
        (r#"{"process":{"apparmorProfile":"of-my-own"}}"#, "process.apparmorProfile"),
        (r#"{"process":{"apparmorProfile":"containers-default-0/x"}}"#, "process.apparmorProfile"),
        (r#"{"process":{"selinuxLabel":"x"}}"#, "process.selinuxLabel"),
        (r#"{"linux":{"namespaces":[{"type":"dream"}]}}"#, "linux.namespaces[0].type"),
        (r#"{"linux":{"intelRdt":{"closID":"x"}}}"#, "linux.intelRdt"),
        (r#"{"mounts":[{"destination":"/n","type":"nfs","source":"a:/b"}]}"#, "mounts[0].type"),
        (r#"{"mounts":[{"destination":"/n","source":"/x"}]}"#, "mounts[0].type"),
        (
            r#"{"mounts":[{"destination":"/n","type":"bind","source":"/","options":["bind","size=1m"]}]}"#,
            "mounts[0].options[1]",
        ),
        (
            r#"{"mounts":[{"destination":"/n","type":"bind","source":"/","options":["idmap"]}]}"#,
            "mounts[0].options[0]",
        ),
        (
            r#"{"mounts":[{"destination":"/n","type":"bind","source":"/","uidMappings":[{"size":1}]}]}"#,
            "mounts[0].uidMappings",
        ),
    ] {
        match check_with(change) {
            Err(BundleError::Unsupported { path: found, .. }) => assert_eq!(found, path, "{change}"),
            other => panic!("{change}: {other:?}"),
        }
    }
}

#[test]
fn an_engine_container_in_a_host_namespace_is_refused_by_the_name_of_the_namespace() {
    let judged = |change: &str| refusals::check_engine(&check_with(change).unwrap().spec);
    let (network, pid) = (r#"{"type":"network","path":"/run/netns/a"}"#, r#"{"type":"pid"}"#);
    judged(&format!(r#"{{"linux":{{"namespaces":[{network},{pid},{{"type":"ipc"}}]}}}}"#)).unwrap();
    for (given, named) in
        [(pid.to_owned(), "network"), (network.to_owned(), "pid"), (format!("{network},{pid}"), "ipc")]
    {
        match judged(&format!(r#"{{"linux":{{"namespaces":[{given}]}}}}"#)) {
            Err(BundleError::Unsupported { path, why }) => {
                assert_eq!(path, "linux.namespaces");
                assert!(why.starts_with(&format!("no {named} namespace")), "{why}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_machine_joins_no_namespace_but_a_network() {
    let judged = |kind: &str| {
        let text = format!(r#"{{"linux":{{"namespaces":[{{"type":"{kind}","path":"/proc/1/ns/a"}}]}}}}"#);
        refusals::check_paths(&check_with(&text).unwrap().spec)
    };
    judged("network").unwrap();
    for kind in ["ipc", "pid", "uts", "mount", "user", "cgroup", "time"] {
        match judged(kind) {
            Err(BundleError::Unsupported { path, .. }) => assert_eq!(path, "linux.namespaces[0].path"),
            other => panic!("{kind}: {other:?}"),
        }
    }
}

#[test]
fn a_duplicate_namespace_is_refused() {
    match check_with(
        r#"{"linux":{"namespaces":[{"type":"network","path":"/a"},{"type":"network","path":"/b"}]}}"#,
    ) {
        Err(BundleError::Invalid { path, .. }) => assert_eq!(path, "linux.namespaces[1].type"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn fields_without_effect_or_implied_by_a_vm_are_accepted() {
    for change in [
        r#"{"hooks":{"prestart":[]}}"#,
        r#"{"linux":{"seccomp":null}}"#,
        r#"{"process":{"apparmorProfile":"unconfined"}}"#,
        r#"{"process":{"apparmorProfile":"docker-default"}}"#,
        r#"{"process":{"apparmorProfile":"containers-default-0.50.1"}}"#,
        r#"{"linux":{"rootfsPropagation":"rslave"}}"#,
        r#"{"linux":{"rootfsPropagation":"shared"}}"#,
        r#"{"mounts":[{"destination":"/n","type":"tmpfs","options":["ro","tmpcopyup","size=1m"]}]}"#,
        r#"{"linux":{"resources":{"cpu":{"shares":512},"pids":{"limit":-1},"blockIO":{"weight":0}}}}"#,
        r#"{"linux":{"cgroupsPath":"/x","resources":{"blockIO":{"weight":10},"rdma":{"a":{"hcaHandles":1}}}}}"#,
        r#"{"linux":{"resources":{"blockIO":null,"hugepageLimits":null,"rdma":null,"devices":null}}}"#,
        r#"{"linux":{"resources":{"memory":{"limit":1000000,"swap":1000000,"swappiness":3}}}}"#,
        r#"{"annotations":{"a":"b"},"windows":{"x":1},"unheardOf":true}"#,
        r#"{"mounts":[{"destination":"/n","options":["bind",""]}]}"#,
        r#"{"ociVersion":null,"vm":{"kernel":{"path":"/k"}}}"#,
        r#"{"mounts":[{"destination":"/n","type":"proc","options":["ro","tmpcopyup"]}]}"#,
    ] {
        check_with(change).unwrap_or_else(|error| panic!("{change}: {error}"));
    }
}

#[test]
fn values_that_the_specification_forbids_are_refused_by_their_path() {
    for (change, message) in [
        (r#"{"ociVersion":"2.0.0"}"#, r#"config.json ociVersion: "2.0.0" is not 1.x"#),
        (
            r#"{"linux":{"namespaces":[{"type":"network"}],"netDevices":{"eth0":{"name":"a/b"}}}}"#,
            r#"config.json linux.netDevices["eth0"]: "a/b" is no name of a device, or taken"#,
        ),
        (
            r#"{"linux":{"namespaces":[{"type":"network"}],"netDevices":{"a":{"name":"b"},"b":{}}}}"#,
            r#"config.json linux.netDevices["b"]: "b" is no name of a device, or taken"#,
        ),
        (
            r#"{"linux":{"namespaces":[{"type":"pid"}],"netDevices":{"eth0":{}}}}"#,
            "config.json linux.netDevices: no network namespace",
        ),
        (r#"{"process":{"args":[]}}"#, "config.json process.args: no program"),
        (r#"{"process":{"args":["a\u0000b"]}}"#, r#"config.json process.args: "a\0b" contains a NUL byte"#),
        (r#"{"process":{"cwd":"tmp"}}"#, r#"config.json process.cwd: "tmp" is not absolute"#),
        (r#"{"process":{"env":["A=b","C"]}}"#, r#"config.json process.env[1]: "C" is not NAME=value"#),
        (
            r#"{"process":{"rlimits":[{"type":"RLIMIT_AS","hard":1,"soft":1},{"type":"RLIMIT_AS","hard":1,"soft":1}]}}"#,
            "config.json process.rlimits[1].type: duplicate RLIMIT_AS",
        ),
        (r#"{"mounts":[{"type":"proc"}]}"#, "config.json mounts[0].destination: missing"),
        (r#"{"linux":{"rootfsPropagation":"open"}}"#, r#"config.json linux.rootfsPropagation: "open""#),
        (r#"{"root":null}"#, "config.json root: missing"),
        (r#"{"process":null}"#, "config.json process: missing"),
    ] {
        assert_eq!(check_with(change).unwrap_err().to_string(), message);
    }
}

#[test]
fn files_missing_on_the_host_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let load = || Bundle::load(at).map_err(|error| format!("{:#}", anyhow::Error::from(error)));

    assert!(load().unwrap_err().ends_with("config.json: No such file or directory (os error 2)"));

    fs::write(at.join("config.json"), "{\n  \"ociVersion\": \"1.0.2\",\n  \"root\": 5\n}").unwrap();
    assert!(load().unwrap_err().ends_with("at line 3 column 11"), "{:?}", load());

    fs::write(at.join("config.json"), DEFAULT_CONFIG).unwrap();
    assert!(load().unwrap_err().contains("open root.path"), "{:?}", load());
    fs::write(at.join("rootfs"), "").unwrap();
    assert!(load().unwrap_err().ends_with("Not a directory (os error 20)"), "{:?}", load());
    fs::remove_file(at.join("rootfs")).unwrap();
    fs::create_dir(at.join("rootfs")).unwrap();
    load().unwrap();

    let mut json: serde_json::Value = serde_json::from_str(DEFAULT_CONFIG).unwrap();
    json["mounts"] = serde_json::json!([{"destination": "/s", "type": "bind", "source": "s"}]);
    fs::write(at.join("config.json"), json.to_string()).unwrap();
    assert!(load().unwrap_err().contains("open mounts[0].source"));
    json["mounts"][0]["source"] = "/dev/zero".into();
    fs::write(at.join("config.json"), json.to_string()).unwrap();
    let zero = DeviceNode { is_block: false, major: 1, minor: 5 };
    assert_eq!(load().unwrap().device_sources, [(0, zero)].into());
    json["mounts"][0]["source"] = "s".into();
    fs::write(at.join("config.json"), json.to_string()).unwrap();
    let _listener = UnixListener::bind(at.join("s")).unwrap();
    fs::set_permissions(at.join("s"), fs::Permissions::from_mode(0o640)).unwrap();
    let file = fs::metadata(at.join("s")).unwrap();
    let socket = SocketFile { mode: 0o640, uid: file.uid(), gid: file.gid() };
    assert_eq!(load().unwrap().socket_sources, [(0, socket)].into());
    json["mounts"][0]["source"] = "p".into();
    fs::write(at.join("config.json"), json.to_string()).unwrap();
    assert!(Command::new("mkfifo").arg(at.join("p")).status().unwrap().success());
    assert_eq!(load().unwrap().pipe_sources, [0].into());
}
