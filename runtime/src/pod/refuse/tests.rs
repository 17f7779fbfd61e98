use serde_json::{Value, json};

use super::*;

fn error(pod: Value) -> String {
    let pod = serde_json::from_value(pod).unwrap();
    check(&pod).map_or_else(|error| error.to_string(), |()| String::new())
}

fn of_container(fields: Value) -> String {
    let mut container = json!({"name": "a", "image": "i"});
    container.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    error(json!({"containers": [container]}))
}

#[test]
fn an_empty_pod_is_valid() {
    assert_eq!(error(json!({})), "");
    assert_eq!(of_container(json!({})), "");
}

#[test]
fn errors_in_a_pod_name_the_path() {
    for (pod, wanted) in [
        (json!({"id": "../x"}), "podfile id: \"../x\" must have"),
        (json!({"type": "kubernetes"}), "podfile type: not supported: \"kubernetes\""),
        (json!({"hostname": "a.b"}), "podfile hostname: \"a.b\" is not a host name"),
        (json!({"hostname": "-a"}), "podfile hostname: "),
        (json!({"hostname": "x".repeat(64)}), "podfile hostname: "),
        (json!({"interfaces": [{"ip": "1.2.3.4"}]}), "podfile interfaces: not supported: "),
        (json!({"services": [{"servicePort": 1}]}), "podfile services: not supported: "),
        (json!({"portmappings": [{"hostPort": "1"}]}), "podfile portmappings: not supported: "),
        (json!({"portmappingWhiteLists": {"internalNetworks": ["1"]}}), "podfile portmappingWhiteLists: "),
        (json!({"log": {"type": "syslog"}}), "podfile log.type: not supported: \"syslog\""),
        (json!({"log": {"config": {"tag": "x"}}}), "podfile log.config.tag: not supported: "),
        (json!({"files": [{"content": "x"}]}), "podfile files[0].name: missing"),
        (json!({"files": [{"name": "a"}, {"name": "a"}]}), "podfile files[1].name: duplicate \"a\""),
        (json!({"files": [{"name": "a", "encoding": "hex"}]}), "podfile files[0].encoding: \"hex\" is not"),
        (json!({"files": [{"name": "a", "uri": "http://x/y"}]}), "podfile files[0].uri: not supported: "),
        (json!({"files": [{"name": "a", "uri": "file://x"}]}), "podfile files[0].uri: \"x\" is not absolute"),
        (
            json!({"files": [{"name": "a", "uri": "file:///x", "content": "y"}]}),
            "podfile files[0].uri: uri and content",
        ),
        (
            json!({"volumes": [{"name": "v", "source": "/s", "format": "qcow2"}]}),
            "podfile volumes[0].format: not",
        ),
        (
            json!({"volumes": [{"name": "v", "source": "/s", "cache": "none"}]}),
            "podfile volumes[0].cache: not",
        ),
        (json!({"volumes": [{"name": "v"}]}), "podfile volumes[0].source: missing"),
        (
            json!({"containers": [{"name": "a", "image": "i"}, {"name": "a", "image": "i"}]}),
            "podfile containers[1].name: duplicate \"a\"",
        ),
        (
            json!({"containers": vec![json!({"name": "a", "image": "i"}); 129]}),
            "podfile containers: limit of 128",
        ),
    ] {
        let error = error(pod);
        assert!(error.starts_with(wanted), "{error:?} {wanted:?}");
    }
}

#[test]
fn errors_in_a_container_name_the_path() {
    for (fields, wanted) in [
        (json!({"name": ""}), "podfile containers[0].name: "),
        (json!({"name": "a/b"}), "podfile containers[0].name: "),
        (json!({"image": ""}), "podfile containers[0].image: missing"),
        (json!({"id": "x"}), "podfile containers[0].id: not supported: "),
        (json!({"ports": [{"hostPort": 1}]}), "podfile containers[0].ports: not supported: "),
        (json!({"cache": "none"}), "podfile containers[0].cache: not supported: "),
        (json!({"workdir": "a"}), "podfile containers[0].workdir: \"a\" is not absolute"),
        (json!({"StopSignal": "WONDER"}), "podfile containers[0].StopSignal: \"WONDER\" is not a signal"),
        (json!({"envs": [{"env": "A=B"}]}), "podfile containers[0].envs[0].env: \"A=B\" is not a name"),
        (json!({"envs": [{"env": "A"}, {"env": "A"}]}), "podfile containers[0].envs[1].env: duplicate \"A\""),
        (json!({"command": ["a\0"]}), "podfile containers[0].command: \"a\\0\" contains a NUL"),
        (
            json!({"ulimits": [{"Name": "nofile", "Soft": 2, "Hard": 1}]}),
            "podfile containers[0].ulimits[0].Soft: ",
        ),
        (
            json!({"ulimits": [{"Name": "a"}, {"Name": "a"}]}),
            "podfile containers[0].ulimits[1].Name: duplicate \"a\"",
        ),
        (
            json!({"volumes": [{"path": "x", "volume": "v"}]}),
            "podfile containers[0].volumes[0].path: \"x\" is",
        ),
        (json!({"volumes": [{"path": "/x"}]}), "podfile containers[0].volumes[0].volume: missing"),
        (
            json!({"volumes": [{"path": "/x", "detail": {"format": "rbd", "source": "/y"}}]}),
            "podfile containers[0].volumes[0].detail.format: not supported: ",
        ),
        (
            json!({"files": [{"path": "/x", "filename": "f", "perm": "9"}]}),
            "podfile containers[0].files[0].perm: ",
        ),
        (
            json!({"files": [{"path": "/x", "filename": "f", "user": "ann"}]}),
            "podfile containers[0].files[0].user: ",
        ),
        (json!({"files": [{"path": "/x"}]}), "podfile containers[0].files[0].filename: missing"),
        (
            json!({"files": [{"path": "/x", "filename": "f"}], "volumes": [{"path": "/x/", "volume": "v"}]}),
            "podfile containers[0]: two mounts on /x",
        ),
    ] {
        let error = of_container(fields);
        assert!(error.starts_with(wanted), "{error:?} {wanted:?}");
    }
}

#[test]
fn modes_are_octal() {
    for (perm, wanted) in [("", 0o755), ("0644", 0o644), ("4755", 0o4755), ("0", 0)] {
        assert_eq!(mode("f", perm).unwrap(), wanted, "{perm}");
    }
    for perm in ["8", "+7", "0x1", "10000", " 7"] {
        assert!(mode("f", perm).is_err(), "{perm}");
    }
}
