//! config.json of an OCI bundle (OCI runtime specification 1.2, `config.md` and `config-linux.md`).
//!
//! Only fields that the runtime acts on are typed. A field that it knows but cannot honour is a [`Given`], which stores
//! only whether the field had content. Fields that are not in the specification are skipped, as the specification
//! demands. [`json`](crate::json) parses the text: every field may be missing or null.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

pub mod resources;
pub mod scheduling;
pub mod seccomp;
pub mod vm;

use resources::Resources;
use scheduling::{IoPriority, Personality, Scheduler};
use seccomp::Seccomp;
use vm::Vm;

/// The root object of config.json.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// Version of the specification that the bundle follows, `1.x`; empty if config.json does not name one.
    #[serde(default)]
    pub oci_version: String,
    /// The init process.
    pub process: Option<Process>,
    pub root: Option<Root>,
    /// Host name; empty for none.
    #[serde(default)]
    pub hostname: String,
    /// NIS domain name; empty for none.
    #[serde(default)]
    pub domainname: String,
    /// Mounts below the root, in order.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Hooks, which run on the host.
    #[serde(default)]
    pub hooks: Hooks,
    #[serde(default)]
    pub linux: Linux,
    #[serde(default)]
    pub vm: Vm,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// An init or exec process.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Process {
    pub terminal: bool,
    pub console_size: Option<ConsoleSize>,
    pub user: User,
    pub args: Vec<String>,
    /// Environment variables, `NAME=value`.
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: String,
    pub capabilities: Option<Capabilities>,
    pub rlimits: Vec<Rlimit>,
    pub no_new_privileges: bool,
    /// The guest's OOM killer prefers processes with a higher value: -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// AppArmor profile. Not honoured, except `unconfined` and defaults of engines, which have no effect.
    pub apparmor_profile: String,
    pub selinux_label: Given,
    pub io_priority: Option<IoPriority>,
    pub scheduler: Option<Scheduler>,
    #[serde(rename = "execCPUAffinity")]
    pub exec_cpu_affinity: Given,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ConsoleSize {
    #[serde(deserialize_with = "low_bits")]
    pub height: u16,
    #[serde(deserialize_with = "low_bits")]
    pub width: u16,
}

/// Deserializes a size as runc does: the kernel's type has 16 bits, and config.json's has more.
fn low_bits<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
    u64::deserialize(from).map(|size| size as u16)
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub umask: Option<u32>,
    pub additional_gids: Vec<u32>,
}

/// The sets of capabilities(7), each with names such as `CAP_KILL`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    pub bounding: Vec<String>,
    pub effective: Vec<String>,
    pub inheritable: Vec<String>,
    pub permitted: Vec<String>,
    pub ambient: Vec<String>,
}

/// A resource limit of a process (setrlimit(2)).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE` and so on.
    #[serde(rename = "type")]
    pub kind: String,
    pub hard: u64,
    pub soft: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Root {
    /// Directory on the host; relative to the bundle unless absolute.
    pub path: PathBuf,
    pub readonly: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mount {
    /// Absolute path in the container.
    pub destination: String,
    /// File-system type, such as `tmpfs`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Host path of a bind (relative to the bundle unless absolute), otherwise the name of the device.
    pub source: String,
    pub options: Vec<String>,
    pub uid_mappings: Given,
    pub gid_mappings: Given,
}

impl Mount {
    /// Whether this binds a file or directory of the host.
    pub fn is_bind(&self) -> bool {
        self.kind == "bind" || self.options.iter().any(|option| option == "bind" || option == "rbind")
    }
}

/// Hooks by type, in the order of execution: the first three before the container is created, `startContainer` before
/// and `poststart` after its program is executed, `poststop` after its deletion.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    pub prestart: Vec<Hook>,
    pub create_runtime: Vec<Hook>,
    pub create_container: Vec<Hook>,
    pub start_container: Vec<Hook>,
    pub poststart: Vec<Hook>,
    pub poststop: Vec<Hook>,
}

impl Hooks {
    pub fn all(&self) -> impl Iterator<Item = &Hook> {
        let before = [&self.prestart, &self.create_runtime, &self.create_container];
        before.into_iter().chain([&self.start_container, &self.poststart, &self.poststop]).flatten()
    }

    /// Whether there are hooks that run before the init process is started.
    pub fn has_first(&self) -> bool {
        [&self.prestart, &self.create_runtime, &self.create_container].iter().any(|hooks| !hooks.is_empty())
    }
}

/// A hook: a program to run on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Hook {
    /// Path of the program, absolute.
    pub path: PathBuf,
    /// Arguments, including argument 0.
    pub args: Vec<String>,
    /// Environment variables, `NAME=value`; `None` to inherit the environment of `vmm`.
    pub env: Option<Vec<String>>,
    /// Timeout in seconds.
    pub timeout: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Linux {
    pub namespaces: Vec<Namespace>,
    /// Device nodes to create.
    pub devices: Vec<Device>,
    pub sysctl: BTreeMap<String, String>,
    pub resources: Resources,
    /// Propagation of the root mount: an option word, or empty for no change.
    pub rootfs_propagation: String,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    /// Path of the machine's cgroup on the host; empty for none.
    pub cgroups_path: String,
    pub uid_mappings: Vec<IdMapping>,
    pub gid_mappings: Vec<IdMapping>,
    pub seccomp: Option<Seccomp>,
    pub mount_label: Given,
    pub intel_rdt: Given,
    pub memory_policy: Given,
    /// Network devices of the host that become the container's, by name.
    pub net_devices: BTreeMap<String, NetDevice>,
    pub personality: Option<Personality>,
    /// Offsets of a time namespace, by clock: `monotonic`, `boottime`.
    pub time_offsets: BTreeMap<String, TimeOffset>,
}

impl Linux {
    /// Whether the container has a namespace of this type, new or joined.
    pub fn has_namespace(&self, kind: &str) -> bool {
        self.namespaces.iter().any(|namespace| namespace.kind == kind)
    }
}

/// A network device of the host.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct NetDevice {
    /// Name in the container; empty for that on the host.
    pub name: String,
}

impl NetDevice {
    /// Returns the name in the container of the device that is called `name` on the host.
    pub fn name_for<'a>(&'a self, name: &'a str) -> &'a str {
        if self.name.is_empty() { name } else { &self.name }
    }
}

/// A range of user or group ids of a user namespace.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct IdMapping {
    /// First id in the container.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// First id in the guest, and therefore in the files that the guest shares with the host.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    pub size: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct TimeOffset {
    pub secs: i64,
    pub nanosecs: u32,
}

/// A namespace to create or join.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// Type: `pid`, `network`, `mount`, `ipc`, `uts`, `user`, `cgroup` or `time`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Path of a namespace of the host to join; empty for a new namespace.
    pub path: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Device {
    pub path: String,
    /// Type as in mknod(1): `c`, `u`, `b` or `p`.
    #[serde(rename = "type")]
    pub kind: String,
    pub major: i64,
    pub minor: i64,
    /// Permissions; 0666 by default.
    pub file_mode: Option<u32>,
    pub uid: u32,
    pub gid: u32,
}

/// Whether a field had content. null, false, 0, an empty text or list, and an object of only such values are no content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given(pub bool);

impl<'de> Deserialize<'de> for Given {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Given, D::Error> {
        Value::deserialize(deserializer).map(|value| Given(has_content(&value)))
    }
}

fn has_content(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => fields.values().any(has_content),
    }
}
