//! config.json of an OCI bundle (OCI runtime specification 1.2, `config.md` and `config-linux.md`).
//!
//! Only what the runtime acts on is typed. A field that it knows and cannot honour is a [`Given`], which remembers
//! only whether there was something in it; a field that the specification does not know is skipped, as it demands.

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

/// The whole configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// Version of the specification that the bundle follows.
    pub oci_version: String,
    /// The container's first process.
    pub process: Option<Process>,
    /// The root file system.
    pub root: Option<Root>,
    /// Host name.
    #[serde(default)]
    pub hostname: String,
    /// NIS domain name.
    #[serde(default)]
    pub domainname: String,
    /// Mounts below the root, in order.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Programs to run on the host.
    #[serde(default)]
    pub hooks: Hooks,
    /// What is Linux's own.
    #[serde(default)]
    pub linux: Linux,
    /// A virtual machine's parameters.
    #[serde(default)]
    pub vm: Given,
    /// What whoever made the container keeps with it.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// The container's first process.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Process {
    /// It has a terminal.
    pub terminal: bool,
    /// The terminal's first size.
    pub console_size: Option<ConsoleSize>,
    /// Who it is.
    pub user: User,
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// Capability sets by name.
    pub capabilities: Option<Capabilities>,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// No program may gain privileges.
    pub no_new_privileges: bool,
    /// How willingly the guest's kernel kills it when memory is short.
    pub oom_score_adj: Option<i32>,
    /// Not honoured, but for `unconfined`, which asks for nothing.
    pub apparmor_profile: String,
    /// Not honoured.
    pub selinux_label: Given,
    /// Its I/O priority.
    pub io_priority: Option<IoPriority>,
    /// Its scheduling class.
    pub scheduler: Option<Scheduler>,
    /// Not honoured.
    #[serde(rename = "execCPUAffinity")]
    pub exec_cpu_affinity: Given,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ConsoleSize {
    /// Rows.
    pub height: u16,
    /// Columns.
    pub width: u16,
}

/// Who a process is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// Further groups.
    pub additional_gids: Vec<u32>,
}

/// Capability sets by name (`CAP_KILL`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Limits what execve can give.
    pub bounding: Vec<String>,
    /// What the kernel checks.
    pub effective: Vec<String>,
    /// Kept over execve by file capabilities.
    pub inheritable: Vec<String>,
    /// What effective may be raised to.
    pub permitted: Vec<String>,
    /// Kept over execve of a plain file.
    pub ambient: Vec<String>,
}

/// A resource limit.
#[derive(Clone, Debug, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE` and so on.
    #[serde(rename = "type")]
    pub kind: String,
    /// The most that soft may be raised to.
    pub hard: u64,
    /// The limit in force.
    pub soft: u64,
}

/// The root file system.
#[derive(Debug, Deserialize)]
pub struct Root {
    /// Directory; relative to the bundle unless absolute.
    pub path: PathBuf,
    /// The container sees it read-only.
    #[serde(default)]
    pub readonly: bool,
}

/// A mount.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mount {
    /// Absolute path in the container.
    pub destination: String,
    /// File-system type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Host path of a bind (relative to the bundle unless absolute), else the device's name.
    pub source: String,
    /// mount(8)'s option words.
    pub options: Vec<String>,
    /// Not honoured.
    pub uid_mappings: Given,
    /// Not honoured.
    pub gid_mappings: Given,
}

/// Programs to run on the host, in their order.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    /// Before the container is made.
    pub prestart: Vec<Hook>,
    /// Before the container is made, after those.
    pub create_runtime: Vec<Hook>,
    /// Before the container is made, after those.
    pub create_container: Vec<Hook>,
    /// Before its program starts.
    pub start_container: Vec<Hook>,
    /// After that.
    pub poststart: Vec<Hook>,
    /// After the container is deleted.
    pub poststop: Vec<Hook>,
}

impl Hooks {
    /// Every hook.
    pub fn all(&self) -> impl Iterator<Item = &Hook> {
        let before = [&self.prestart, &self.create_runtime, &self.create_container];
        before.into_iter().chain([&self.start_container, &self.poststart, &self.poststop]).flatten()
    }

    /// Whether some of them run before the container's process is started.
    pub fn has_first(&self) -> bool {
        [&self.prestart, &self.create_runtime, &self.create_container].iter().any(|hooks| !hooks.is_empty())
    }
}

/// A program to run on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Hook {
    /// The program, absolute.
    pub path: PathBuf,
    /// Its arguments, its name the first.
    pub args: Vec<String>,
    /// `NAME=value`; none where it has the environment of whoever runs it.
    pub env: Option<Vec<String>>,
    /// Seconds that it may take.
    pub timeout: Option<u64>,
}

/// What is Linux's own.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Linux {
    /// The container's namespaces.
    pub namespaces: Vec<Namespace>,
    /// Device nodes.
    pub devices: Vec<Device>,
    /// Kernel parameters.
    pub sysctl: BTreeMap<String, String>,
    /// Limits.
    pub resources: Resources,
    /// Propagation of the root mount.
    pub rootfs_propagation: String,
    /// Paths that are hidden.
    pub masked_paths: Vec<String>,
    /// Paths that are read-only.
    pub readonly_paths: Vec<String>,
    /// Where the machine's cgroup is on the host; there is none where it is empty.
    pub cgroups_path: String,
    /// Users of a user namespace.
    pub uid_mappings: Vec<IdMapping>,
    /// Groups of a user namespace.
    pub gid_mappings: Vec<IdMapping>,
    /// What the container's processes may ask of their kernel.
    pub seccomp: Option<Seccomp>,
    /// Not honoured.
    pub mount_label: Given,
    /// Not honoured.
    pub intel_rdt: Given,
    /// Not honoured.
    pub memory_policy: Given,
    /// Not honoured.
    pub net_devices: Given,
    /// The execution domain of the container's processes.
    pub personality: Option<Personality>,
    /// What a time namespace adds to its clocks, by their names.
    pub time_offsets: BTreeMap<String, TimeOffset>,
}

/// A range of users or groups of a user namespace.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct IdMapping {
    /// The first in the container.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// The first in the guest, and so in the files that are shared with it.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

/// What is added to a clock.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct TimeOffset {
    /// Seconds.
    pub secs: i64,
    /// Nanoseconds.
    pub nanosecs: u32,
}

/// A namespace.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// `pid`, `network`, `mount`, `ipc`, `uts`, `user`, `cgroup`, `time`.
    #[serde(rename = "type")]
    pub kind: String,
    /// A namespace of the host to join.
    pub path: String,
}

/// A device node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Device {
    /// Absolute path in the container.
    pub path: String,
    /// `c`, `u`, `b` or `p`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Device number.
    pub major: i64,
    /// Device number.
    pub minor: i64,
    /// Permissions; 0666 where there are none.
    pub file_mode: Option<u32>,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Whether a field was given with something in it: null, false, 0, and whatever is empty or holds only such, is nothing.
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
    fn given_tells_something_from_nothing() {
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
