//! Every optional field of config.json (runtime specification 1.0 to 1.3) is accepted as null, missing and empty, like
//! runc does, and unknown fields are ignored. schema.json has every field; the tests make the variants of each.

use serde_json::{Value, json};

use super::*;

const FULL: &str = include_str!("schema.json");

/// One way to leave a field out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Null,
    Missing,
    /// "", [], {}, 0 or false.
    Empty,
}

const VARIANTS: [Variant; 3] = [Variant::Null, Variant::Missing, Variant::Empty];

/// Null and empty, which for an item of a list are the same for runc.
const CONTENTS: [Variant; 2] = [Variant::Null, Variant::Empty];

/// Fields without which runc refuses the bundle as well, with its error: that of runc 1.1.5, and of runc 1.4 for fields
/// that runc 1.1.5 does not know. `*` stands for each name.
const REQUIRED: &[(&str, &[Variant], &str)] = &[
    ("/process", &VARIANTS, "process property must not be empty"),
    ("/process/args", &VARIANTS, "args must not be empty"),
    ("/process/args/0", &CONTENTS, "exec: \"\": executable file not found in $PATH"),
    ("/process/cwd", &VARIANTS, "Cwd property must not be empty"),
    ("/process/env/*", &CONTENTS, "invalid environment variable: \"\""),
    ("/process/rlimits/0", &CONTENTS, "wrong rlimit value: "),
    ("/process/rlimits/0/type", &VARIANTS, "wrong rlimit value: "),
    ("/process/scheduler", &[Variant::Empty], "scheduler policy is required"),
    ("/process/scheduler/policy", &VARIANTS, "scheduler policy is required"),
    ("/process/scheduler/flags/0", &CONTENTS, "invalid scheduler flag: "),
    ("/process/ioPriority", &[Variant::Empty], "invalid ioPriority.Class: \"\""),
    ("/process/ioPriority/class", &VARIANTS, "invalid ioPriority.Class: \"\""),
    ("/root", &[Variant::Null, Variant::Missing], "root must be specified"),
    ("/mounts/*", &CONTENTS, "error mounting \"\" to rootfs at \"\""),
    (
        "/mounts/*/destination",
        &VARIANTS,
        "the mount hides the root directory: mkdir: no such file or directory",
    ),
    ("/mounts/0/type", &VARIANTS, "error mounting \"proc\" to rootfs at \"/proc\""),
    ("/mounts/1/type", &VARIANTS, "error mounting \"tmpfs\" to rootfs at \"/dev\": no such device"),
    ("/linux/uidMappings", &VARIANTS, "User namespaces enabled, but no uid mappings found."),
    ("/linux/uidMappings/0", &VARIANTS, "User namespaces enabled, but no user mapping found."),
    ("/linux/uidMappings/0/size", &VARIANTS, "User namespaces enabled, but no user mapping found."),
    ("/linux/gidMappings", &VARIANTS, "User namespaces enabled, but no gid mappings found."),
    ("/linux/gidMappings/0", &VARIANTS, "User namespaces enabled, but no group mapping found."),
    ("/linux/gidMappings/0/size", &VARIANTS, "User namespaces enabled, but no group mapping found."),
    ("/linux/resources/memory/limit", &VARIANTS, "unable to set swap limit without memory limit"),
    ("/linux/namespaces", &VARIANTS, "time namespace offsets specified, but time namespace isn't enabled"),
    ("/linux/namespaces/*", &CONTENTS, "namespace {\"\" \"\"} does not exist"),
    ("/linux/namespaces/*/type", &VARIANTS, "namespace {\"\" \"\"} does not exist"),
    ("/linux/namespaces/7", &[Variant::Missing], "time namespace offsets specified, but it isn't enabled"),
    ("/linux/devices/0/type", &VARIANTS, "invalid device type \"\""),
    ("/linux/seccomp/defaultAction", &VARIANTS, "string  is not a valid action for seccomp"),
    ("/linux/seccomp/architectures/0", &CONTENTS, "string  is not a valid arch for seccomp"),
    ("/linux/seccomp/flags/0", &CONTENTS, "seccomp flag \"\" is not known to runc"),
    ("/linux/seccomp/syscalls/0", &CONTENTS, "string  is not a valid action for seccomp"),
    ("/linux/seccomp/syscalls/0/action", &VARIANTS, "string  is not a valid action for seccomp"),
    ("/linux/seccomp/syscalls/0/args/0", &CONTENTS, "string  is not a valid operator for seccomp"),
    ("/linux/seccomp/syscalls/0/args/0/op", &VARIANTS, "string  is not a valid operator for seccomp"),
    ("/linux/personality", &[Variant::Empty], "invalid personality domain "),
    ("/linux/personality/domain", &VARIANTS, "invalid personality domain "),
    // runc creates a node without a device behind it. The guest's devices are known, so the number is refused.
    ("/linux/devices/0/major", &VARIANTS, "refused here: no device of the guest"),
    ("/linux/devices/0/minor", &VARIANTS, "refused here: no device of the guest"),
];

/// Fields that are refused with this content.
fn refused() -> [(&'static str, Value); 9] {
    [
        ("/process/apparmorProfile", json!("of-my-own")),
        ("/process/selinuxLabel", json!("system_u:system_r:svirt_lxc_net_t:s0")),
        ("/linux/mountLabel", json!("system_u:object_r:svirt_sandbox_file_t:s0")),
        ("/linux/intelRdt", json!({"closID": "a", "enableMonitoring": true})),
        ("/vm/hwConfig/deviceTree", json!("/t")),
        ("/vm/hwConfig/dtDevs", json!(["d"])),
        ("/vm/hwConfig/ioMems", json!([{"firstGFN": 1, "firstMFN": 1, "nrMFNs": 1}])),
        ("/vm/hwConfig/irqs", json!([5])),
        ("/mounts/2/uidMappings", json!([{"containerID": 0, "hostID": 0, "size": 1}])),
    ]
}

fn full() -> Value {
    serde_json::from_str(FULL).unwrap()
}

/// Plans a config.json as text, the way `vmm` reads it.
fn planned(json: &Value) -> std::result::Result<Plan, String> {
    let text = json.to_string();
    let spec = oci::json::from_slice(text.as_bytes()).map_err(|error| error.to_string())?;
    let bundle = Bundle::check(Path::new("/b"), spec).map_err(|error| error.to_string())?;
    Plan::new(&bundle, &config(), None).map_err(|error| error.to_string())
}

/// Returns the paths (RFC 6901) of all values below `value`.
fn paths(value: &Value, at: &str) -> Vec<String> {
    let below: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, field)| (name.clone(), field)).collect(),
        Value::Array(items) => {
            items.iter().enumerate().map(|(index, item)| (index.to_string(), item)).collect()
        }
        _ => Vec::new(),
    };
    let of = |(name, value): (String, &Value)| {
        let path = format!("{at}/{name}");
        let deeper = paths(value, &path);
        std::iter::once(path).chain(deeper).collect::<Vec<_>>()
    };
    below.into_iter().flat_map(of).collect()
}

/// Returns `json` without the value at `path`.
fn without(json: &Value, path: &str, variant: Variant) -> Value {
    let mut json = json.clone();
    let (parent, name) = path.rsplit_once('/').unwrap();
    match (variant, json.pointer_mut(parent).unwrap()) {
        (Variant::Missing, Value::Object(fields)) => _ = fields.remove(name),
        (Variant::Missing, Value::Array(items)) => _ = items.remove(name.parse().unwrap()),
        _ => {
            let value = json.pointer_mut(path).unwrap();
            *value = match (variant, &*value) {
                (Variant::Empty, Value::String(_)) => json!(""),
                (Variant::Empty, Value::Array(_)) => json!([]),
                (Variant::Empty, Value::Object(_)) => json!({}),
                (Variant::Empty, Value::Number(_)) => json!(0),
                (Variant::Empty, Value::Bool(_)) => json!(false),
                _ => Value::Null,
            };
        }
    }
    json
}

/// Returns runc's reason if it refuses a variant of the field at `path`.
fn reason(path: &str, variant: Variant) -> Option<&'static str> {
    let matches = |pattern: &str| {
        let (names, patterns) = (path.split('/'), pattern.split('/'));
        names.clone().count() == patterns.clone().count()
            && names.zip(patterns).all(|(name, pattern)| pattern == "*" || pattern == name)
    };
    let of =
        |(pattern, variants, _): &&(&str, &[Variant], &str)| matches(pattern) && variants.contains(&variant);
    REQUIRED.iter().find(of).map(|(_, _, reason)| *reason)
}

#[test]
fn the_full_configuration_is_accepted() {
    planned(&full()).unwrap();
}

#[test]
fn every_optional_field_is_accepted_as_null_missing_and_empty() {
    let full = full();
    let mut wrong = Vec::new();
    for path in paths(&full, "") {
        for variant in VARIANTS {
            let refused = planned(&without(&full, &path, variant)).err();
            if refused.is_some() != reason(&path, variant).is_some() {
                wrong.push(format!("{path} {variant:?}: {refused:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Objects whose names are content, not fields. Any content of intelRdt is refused.
const MAPS: [&str; 7] = [
    "/annotations",
    "/linux/intelRdt",
    "/linux/sysctl",
    "/linux/resources/rdma",
    "/linux/resources/unified",
    "/linux/netDevices",
    "/linux/timeOffsets",
];

#[test]
fn unknown_fields_of_every_object_are_ignored() {
    let full = full();
    let objects = paths(&full, "").into_iter().chain([String::new()]);
    let objects: Vec<String> = objects
        .filter(|path| full.pointer(path).is_some_and(Value::is_object) && !MAPS.contains(&path.as_str()))
        .collect();
    assert!(objects.len() > 50, "{}", objects.len());
    for path in objects {
        for content in [json!(null), json!("x"), json!(1), json!([1]), json!({"args": 5})] {
            let mut json = full.clone();
            json.pointer_mut(&path).unwrap()["org.example.unknown"] = content.clone();
            planned(&json).unwrap_or_else(|error| panic!("{path} with {content}: {error}"));
        }
    }
}

#[test]
fn every_version_1_is_read() {
    for version in ["1.0.0", "1.0.2", "1.0.2-dev", "1.1.0", "1.1.0+dev", "1.2.1", "1.3.0", "1.9.0-rc.1"] {
        let mut json = full();
        json["ociVersion"] = json!(version);
        planned(&json).unwrap_or_else(|error| panic!("{version}: {error}"));
    }
}

#[test]
fn each_exception_is_one() {
    let full = full();
    let all = paths(&full, "");
    for (pattern, variants, _) in REQUIRED {
        let used = |path: &&String| variants.iter().all(|variant| reason(path, *variant).is_some());
        assert!(all.iter().any(|path| used(&path)), "{pattern}");
    }
}

#[test]
fn fields_that_are_refused_are_accepted_without_content() {
    for (path, content) in refused() {
        let mut json = full();
        let (parent, name) = path.rsplit_once('/').unwrap();
        json.pointer_mut(parent).unwrap()[name] = content;
        let error = planned(&json).unwrap_err();
        let name = path[1..].replace("/2/", "[2].").replace('/', ".");
        assert!(error.starts_with(&format!("config.json {name}: not supported: ")), "{error}");
        for variant in VARIANTS {
            planned(&without(&json, path, variant)).unwrap_or_else(|error| panic!("{path}: {error}"));
        }
    }
}
