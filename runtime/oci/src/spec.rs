//! config.json of an OCI bundle (OCI runtime specification 1.2, `config.md` and `config-linux.md`).
//!
//! Only fields that the runtime acts on are typed. A field that it knows but cannot honour is a [`Given`], which stores
//! only whether the field had content. Fields that are not in the specification are skipped, as the specification
//! demands. [`json`](crate::json) parses the text: every field may be missing or null.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

pub mod resources;
pub mod scheduling;
pub mod seccomp;

use resources::Resources;
use scheduling::{IoPriority, Personality, Scheduler};
use seccomp::Seccomp;

/// The root object of config.json.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// Version of the specification that the bundle follows, `1.x`; empty if config.json does not name one.
    #[serde(default)]
    pub oci_version: String,
    /// The init process.
    pub process: Option<Process>,
    /// The root file system.
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
    /// Linux-specific configuration.
    #[serde(default)]
    pub linux: Linux,
    /// Parameters of a virtual machine. Not honoured.
    #[serde(default)]
    pub vm: Given,
    /// Key-value pairs that the container's creator stores with it.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// An init or exec process.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Process {
    /// Whether the process has a terminal.
    pub terminal: bool,
    /// Initial size of the terminal.
    pub console_size: Option<ConsoleSize>,
    /// User, groups and umask.
    pub user: User,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Environment variables, `NAME=value`.
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// Capability sets by name.
    pub capabilities: Option<Capabilities>,
    /// Resource limits (setrlimit(2)).
    pub rlimits: Vec<Rlimit>,
    /// Whether no_new_privs is set: execve(2) grants no privileges.
    pub no_new_privileges: bool,
    /// The guest's OOM killer prefers processes with a higher value: -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// AppArmor profile. Not honoured, except `unconfined` and defaults of engines, which have no effect.
    pub apparmor_profile: String,
    /// SELinux label. Not honoured.
    pub selinux_label: Given,
    /// I/O priority.
    pub io_priority: Option<IoPriority>,
    /// Scheduling class.
    pub scheduler: Option<Scheduler>,
    /// CPU affinity of exec processes. Not honoured.
    #[serde(rename = "execCPUAffinity")]
    pub exec_cpu_affinity: Given,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ConsoleSize {
    /// Rows.
    #[serde(deserialize_with = "low_bits")]
    pub height: u16,
    /// Columns.
    #[serde(deserialize_with = "low_bits")]
    pub width: u16,
}

/// Deserializes a size as runc does: the kernel's type has 16 bits, and config.json's has more.
fn low_bits<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
    u64::deserialize(from).map(|size| size as u16)
}

/// User, groups and umask of a process.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
}

/// Capability sets by name (`CAP_KILL`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Bounding set: limits the capabilities that execve(2) can grant.
    pub bounding: Vec<String>,
    /// Effective set: the capabilities that the kernel checks.
    pub effective: Vec<String>,
    /// Inheritable set: kept across execve(2) of a file with matching inheritable capabilities.
    pub inheritable: Vec<String>,
    /// Permitted set: upper limit of the effective set.
    pub permitted: Vec<String>,
    /// Ambient set: kept across execve(2) of an unprivileged file.
    pub ambient: Vec<String>,
}

/// A resource limit of a process (setrlimit(2)).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE` and so on.
    #[serde(rename = "type")]
    pub kind: String,
    /// Hard limit: maximum of `soft`.
    pub hard: u64,
    /// Soft limit: the limit in force.
    pub soft: u64,
}

/// The root file system.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Root {
    /// Directory on the host; relative to the bundle unless absolute.
    pub path: PathBuf,
    /// Whether the container sees it read-only.
    pub readonly: bool,
}

/// A mount.
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
    /// Option words of mount(8).
    pub options: Vec<String>,
    /// Mapped user ids. Not honoured.
    pub uid_mappings: Given,
    /// Mapped group ids. Not honoured.
    pub gid_mappings: Given,
}

impl Mount {
    /// Whether this binds a file or directory of the host.
    pub fn is_bind(&self) -> bool {
        self.kind == "bind" || self.options.iter().any(|option| option == "bind" || option == "rbind")
    }
}

/// Hooks by type, each list in the order of execution.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    /// Run before the container is created.
    pub prestart: Vec<Hook>,
    /// Run before the container is created, after `prestart`.
    pub create_runtime: Vec<Hook>,
    /// Run before the container is created, after `createRuntime`.
    pub create_container: Vec<Hook>,
    /// Run before the container's program is executed.
    pub start_container: Vec<Hook>,
    /// Run after the container's program was executed.
    pub poststart: Vec<Hook>,
    /// Run after the container was deleted.
    pub poststop: Vec<Hook>,
}

impl Hooks {
    /// Returns all hooks.
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

/// Linux-specific configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Linux {
    /// The container's namespaces.
    pub namespaces: Vec<Namespace>,
    /// Device nodes to create.
    pub devices: Vec<Device>,
    /// Kernel parameters (sysctl(8)), name to value.
    pub sysctl: BTreeMap<String, String>,
    /// Resource limits of the container's cgroup.
    pub resources: Resources,
    /// Propagation of the root mount: an option word, or empty for no change.
    pub rootfs_propagation: String,
    /// Paths that are hidden from the container.
    pub masked_paths: Vec<String>,
    /// Paths that are read-only in the container.
    pub readonly_paths: Vec<String>,
    /// Path of the machine's cgroup on the host; empty for none.
    pub cgroups_path: String,
    /// User ids of a user namespace.
    pub uid_mappings: Vec<IdMapping>,
    /// Group ids of a user namespace.
    pub gid_mappings: Vec<IdMapping>,
    /// Filter for system calls of the container's processes.
    pub seccomp: Option<Seccomp>,
    /// SELinux label of the mounts. Not honoured.
    pub mount_label: Given,
    /// Cache and memory bandwidth allocation. Not honoured.
    pub intel_rdt: Given,
    /// NUMA memory policy. Not honoured.
    pub memory_policy: Given,
    /// Network devices of the host. Not honoured.
    pub net_devices: Given,
    /// Execution domain of the container's processes.
    pub personality: Option<Personality>,
    /// Offsets of a time namespace, by clock: `monotonic`, `boottime`.
    pub time_offsets: BTreeMap<String, TimeOffset>,
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
    /// Number of ids.
    pub size: u32,
}

/// Offset of a clock.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct TimeOffset {
    /// Whole seconds; may be negative.
    pub secs: i64,
    /// Additional nanoseconds.
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

/// A device node to create.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Device {
    /// Absolute path in the container.
    pub path: String,
    /// Type as in mknod(1): `c`, `u`, `b` or `p`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Major device number.
    pub major: i64,
    /// Minor device number.
    pub minor: i64,
    /// Permissions; 0666 by default.
    pub file_mode: Option<u32>,
    /// User id of the owner.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Whether a field had content. null, false, 0, empty values, and lists and objects of only such values are no content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given(pub bool);

impl<'de> Deserialize<'de> for Given {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Given, D::Error> {
        deserializer.deserialize_any(GivenVisitor)
    }
}

struct GivenVisitor;

impl<'de> Visitor<'de> for GivenVisitor {
    type Value = Given;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_unit<E>(self) -> Result<Given, E> {
        Ok(Given(false))
    }
    fn visit_bool<E>(self, value: bool) -> Result<Given, E> {
        Ok(Given(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Given, E> {
        Ok(Given(value != 0))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Given, E> {
        Ok(Given(value != 0))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Given, E> {
        Ok(Given(value != 0.0))
    }
    fn visit_str<E>(self, value: &str) -> Result<Given, E> {
        Ok(Given(!value.is_empty()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Given, A::Error> {
        let mut any = false;
        while items.next_element::<IgnoredAny>()?.is_some() {
            any = true;
        }
        Ok(Given(any))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Given, A::Error> {
        let mut any = false;
        while let Some((IgnoredAny, Given(given))) = entries.next_entry()? {
            any |= given;
        }
        Ok(Given(any))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_distinguishes_content_from_empty_values() {
        for (json, given) in [
            ("null", false),
            ("false", false),
            ("0", false),
            ("\"\"", false),
            ("[]", false),
            ("{}", false),
            (r#"{"weight":0,"inner":{"list":[]}}"#, false),
            ("true", true),
            ("-1", true),
            ("0.5", true),
            ("\"x\"", true),
            ("[0]", true),
            (r#"{"weight":0,"inner":{"list":[{}]}}"#, true),
        ] {
            assert_eq!(serde_json::from_str::<Given>(json).unwrap(), Given(given), "{json}");
        }
    }

    #[test]
    fn fields_that_the_specification_does_not_know_are_skipped() {
        let spec: Spec =
            serde_json::from_str(r#"{"ociVersion":"1.0.2","annotations":{"a":"b"},"later":[1]}"#).unwrap();
        assert_eq!(spec.oci_version, "1.0.2");
        assert!(spec.process.is_none());
    }
}
