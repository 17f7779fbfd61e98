//! Each field of config.json null, missing and empty: generated, with runc and with `vmm`. Both accept it, and the program
//! finds the same, or both refuse it.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};

use serde_json::{Value, json};
use tests::Bundle;

/// A bundle with every field that runc 1.1 knows and can honour on any host.
pub fn full() -> Bundle {
    Bundle::sh(SCRIPT).with(|c| {
        let set = |c: &mut Value, path: &str, value: Value| {
            let (parent, name) = path.rsplit_once('/').expect("a path");
            c.pointer_mut(parent).expect("the parent")[name] = value;
        };
        let hook = json!([{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 5}]);
        for (path, value) in [
            ("/process/user", json!({"uid": 0, "gid": 0, "umask": 23, "additionalGids": [5, 6], "username": "u"})),
            ("/process/env", json!(["PATH=/bin", "A=b"])),
            ("/process/cwd", json!("/tmp")),
            ("/process/consoleSize", json!({"height": 24, "width": 80})),
            ("/process/commandLine", json!("x")),
            ("/process/apparmorProfile", json!("")),
            ("/process/selinuxLabel", json!("")),
            ("/process/oomScoreAdj", json!(100)),
            ("/process/rlimits", json!([{"type": "RLIMIT_CORE", "hard": 2048, "soft": 1024}])),
            ("/annotations", json!({"org.example.key": "value"})),
            ("/hooks", json!({"prestart": hook, "createRuntime": hook, "createContainer": hook, "poststart": hook, "poststop": hook})),
            ("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"})),
            ("/linux/cgroupsPath", json!("/vmm-schema")),
            ("/linux/rootfsPropagation", json!("rprivate")),
            ("/linux/mountLabel", json!("")),
            ("/linux/uidMappings", json!([])),
            ("/linux/gidMappings", json!([])),
            ("/linux/devices", json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 5, "gid": 6}])),
            ("/linux/resources", json!({
                "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}],
                "memory": {"limit": 268_435_456, "reservation": 134_217_728, "swap": 268_435_456, "disableOOMKiller": false},
                "cpu": {"shares": 512, "quota": 100_000, "period": 100_000},
                "pids": {"limit": 100},
                "network": {},
                "hugepageLimits": [],
                "rdma": {},
                "unified": {"memory.high": "200000000"},
            })),
            ("/linux/seccomp", json!({
                "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "flags": [], "listenerPath": "", "listenerMetadata": "",
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38,
                              "args": [{"index": 2, "value": 7, "valueTwo": 0, "op": "SCMP_CMP_EQ"}]}],
            })),
        ] {
            set(c, path, value);
        }
    })
}

/// What the program prints. Left out is what a guest's kernel has otherwise: the root's file system, files of /proc that it
/// does not have, swap; and the weight of CPU shares, which runc computes in another way since version 1.3.
const SCRIPT: &str = "id -u; id -G; umask; pwd; echo $A; hostname; \
    grep -e Cap -e NoNew -e Seccomp: -e Groups /proc/self/status; cat /proc/self/oom_score_adj; \
    ulimit -c; ulimit -H -c; cat /proc/sys/net/ipv4/ip_forward; ls -l /dev/fuse 2>/dev/null | cut -c1-40; \
    cd /sys/fs/cgroup && cat memory.max memory.low memory.high cpu.max pids.max; \
    grep -v -e ' / ' -e ' /proc/' -e ' /sys/firmware' /proc/mounts | cut -d' ' -f2-3 | sort; stat -c %F /proc/keys; \
    touch /f 2>/dev/null && echo writable; echo 1 >/proc/sys/kernel/sysrq || echo protected";

/// One way to leave a field out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Variant {
    Null,
    Missing,
    /// "", [], {}, 0 or false.
    Empty,
}

/// Returns the paths (RFC 6901) of all fields below `value`.
fn fields(value: &Value, at: &str) -> Vec<String> {
    let below: Vec<(String, bool, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, field)| (name.clone(), true, field)).collect(),
        Value::Array(items) => {
            items.iter().enumerate().map(|(index, item)| (index.to_string(), false, item)).collect()
        }
        _ => Vec::new(),
    };
    let of = |(name, named, value): (String, bool, &Value)| {
        let path = format!("{at}/{name}");
        let deeper = fields(value, &path);
        named.then_some(path).into_iter().chain(deeper).collect::<Vec<_>>()
    };
    below.into_iter().flat_map(of).collect()
}

/// Leaves the field at `path` out.
fn leave_out(config: &mut Value, path: &str, variant: Variant) {
    let (parent, name) = path.rsplit_once('/').expect("a path");
    // Another field may have been its parent.
    let Some(Value::Object(fields)) = config.pointer_mut(parent) else { return };
    if variant == Variant::Missing {
        fields.remove(name);
    } else if let Some(value) = fields.get_mut(name) {
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

/// Fields that are left as they are, and those below: without namespaces runc changes the host.
const KEPT: &[&str] = &["/linux/namespaces"];

/// Fields without which runc refuses the bundle. runtime/plan/src/tests/schema.rs has its errors.
const REQUIRED: &[&str] = &[
    "/process",
    "/process/args",
    "/process/cwd",
    "/process/env",
    "/process/capabilities/permitted",
    "/process/rlimits/0/type",
    "/process/rlimits/0/hard",
    "/root",
    "/root/path",
    "/mounts",
    "/mounts/*/destination",
    "/mounts/*/type",
    "/hooks/*/0/path",
    "/hooks/*/0/timeout",
    "/linux",
    "/linux/devices/0/type",
    "/linux/resources/devices/*/access",
    "/linux/resources/memory/limit",
    "/linux/seccomp/defaultAction",
    "/linux/seccomp/syscalls/0/action",
    "/linux/seccomp/syscalls/0/args/0/op",
];

/// Fields that runc ignores if they are left out, and `vmm` refuses by name: a guest has no such device.
const REFUSED: &[&str] = &["/linux/devices/0/major", "/linux/devices/0/minor"];

/// Number of fields that one bundle leaves out.
const FIELDS: usize = 40;

/// A bundle without some of its fields.
#[derive(Clone)]
pub struct Without {
    pub fields: Vec<String>,
    pub variant: Variant,
}

impl Without {
    /// Leaves the fields out of the configuration of a bundle that has them all.
    pub fn apply(&self, config: &Value) -> Value {
        let mut config = config.clone();
        self.fields.iter().for_each(|path| leave_out(&mut config, path, self.variant));
        config
    }

    /// Whether `vmm` refuses it although runc does not.
    pub fn is_refused(&self) -> bool {
        matches!(&self.fields[..], [field] if is_one_of(field, REFUSED))
    }

    /// Returns two that leave a half of the fields out each.
    pub fn halves(&self) -> [Without; 2] {
        let (first, second) = self.fields.split_at(self.fields.len() / 2);
        [first, second].map(|fields| Without { fields: fields.to_vec(), variant: self.variant })
    }
}

impl Display for Without {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.variant, self.fields.join(" "))
    }
}

/// Whether a path is one of these, in which `*` stands for each name.
fn is_one_of(path: &str, patterns: &[&str]) -> bool {
    let is = |pattern: &&str| {
        let (names, patterns) = (path.split('/'), pattern.split('/'));
        names.clone().count() == patterns.clone().count()
            && names.zip(patterns).all(|(name, pattern)| pattern == "*" || pattern == name)
    };
    patterns.iter().any(is)
}

/// Returns all fields in all variants, several of one depth at a time, which do not contain each other.
pub fn all(config: &Value) -> Vec<Without> {
    let kept = |path: &str| KEPT.iter().any(|kept| path.starts_with(kept)) || is_one_of(path, REQUIRED);
    let mut depths: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    let mut made = Vec::new();
    let all = [Variant::Null, Variant::Missing, Variant::Empty];
    for path in fields(config, "").into_iter().filter(|path| !kept(path)) {
        if is_one_of(&path, REFUSED) {
            made.extend(all.map(|variant| Without { fields: vec![path.clone()], variant }));
        } else {
            depths.entry(path.matches('/').count()).or_default().push(path);
        }
    }
    for fields in depths.values().flat_map(|paths| paths.chunks(FIELDS)) {
        made.extend(all.map(|variant| Without { fields: fields.to_vec(), variant }));
    }
    made
}
