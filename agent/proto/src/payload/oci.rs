//! What an OCI container and its processes have above API 4244's: all of it the extension's.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::object::object;

use super::filter::Filter;

/// Limit of [`OciContainer::device_rules`].
pub const DEVICE_RULES_MAX: usize = 1024;

/// What an OCI container has above API 4244's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OciContainer {
    /// The container's own namespaces; what is not here is the pod's. A mount namespace there is always.
    pub namespaces: Vec<Namespace>,
    /// The container's host name, where it has a UTS namespace of its own.
    pub hostname: String,
    /// The container's domain name, likewise.
    pub domainname: String,
    /// Every mount in order; none is added to them but `/dev`'s nodes and links.
    pub mounts: Vec<Mount>,
    /// Absolute paths hidden behind /dev/null or an empty read-only tmpfs.
    pub masked_paths: Vec<String>,
    /// Absolute paths remounted read-only.
    pub readonly_paths: Vec<String>,
    /// Device nodes beside those that every `/dev` has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// Rules for the kernel's devices controller, in the order in which they are written. Each is `allow` or `deny`, a space,
    /// and a line for the file `devices.allow` or `devices.deny` (Documentation/admin-guide/cgroup-v1/devices.rst). Without
    /// rules the container can use all devices. Limit: [`DEVICE_RULES_MAX`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub device_rules: Vec<String>,
    /// Files of the container's cgroup (version 2) and what is written to them, `memory.max` to `1048576`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cgroup: BTreeMap<String, String>,
    /// The container's user namespace, where it has one of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_namespace: Option<IdMaps>,
    /// What is written to /proc/self/timens_offsets, where the container has a time namespace of its own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub time_offsets: String,
    /// The root mount's propagation, as [`Mount::propagation`].
    #[serde(skip_serializing_if = "is_zero")]
    pub root_propagation: u64,
}

object!(OciContainer, Refused, {
    "namespaces": namespaces,
    "hostname": hostname,
    "domainname": domainname,
    "mounts": mounts,
    "maskedPaths": masked_paths,
    "readonlyPaths": readonly_paths,
    "devices": devices,
    "deviceRules": device_rules,
    "cgroup": cgroup,
    "userNamespace": user_namespace,
    "timeOffsets": time_offsets,
    "rootPropagation": root_propagation,
});

/// UPDATE: other limits for a container. Those that are not here stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ContainerLimits {
    /// The container.
    pub container: String,
    /// As [`OciContainer::cgroup`].
    pub cgroup: BTreeMap<String, String>,
}

object!(ContainerLimits, Refused, {
    "container": container,
    "cgroup": cgroup,
});

/// What the users and groups of a user namespace are outside of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IdMaps {
    /// Users.
    pub users: Vec<IdMap>,
    /// Groups.
    pub groups: Vec<IdMap>,
}

object!(IdMaps, Refused, {
    "users": users,
    "groups": groups,
});

/// A range of ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IdMap {
    /// The first inside.
    pub inside: u32,
    /// The first outside.
    pub outside: u32,
    /// How many.
    pub size: u32,
}

object!(IdMap, Refused, {
    "inside": inside,
    "outside": outside,
    "size": size,
});

impl IdMap {
    /// Returns what `id` of the inside is outside, by the first range that has it.
    pub fn outside(maps: &[IdMap], id: u32) -> Option<u32> {
        let there = |map: &&IdMap| id.checked_sub(map.inside).is_some_and(|at| at < map.size);
        maps.iter().find(there).and_then(|map| map.outside.checked_add(id - map.inside))
    }
}

/// A namespace that a container may have of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Namespace {
    /// Process ids.
    Pid,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host and domain name.
    Uts,
    /// The view of the cgroup tree.
    Cgroup,
    /// Network: one with only a loopback interface.
    Network,
    /// The clocks that count from the boot.
    Time,
}

/// The kind of a mount that binds what the pod's containers share: its source is not looked at.
pub const POD_SHM: &str = "podshm";

/// One mount of an OCI container, its options already turned into mount(2)'s arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// Absolute path in the container.
    pub destination: String,
    /// File-system type; `bind` for a bind mount, [`POD_SHM`] for the pod's own /dev/shm.
    #[serde(rename = "type")]
    pub kind: String,
    /// For a bind: the path in the share (`/<container>/mounts/0`). Otherwise the device's name.
    pub source: String,
    /// MS_* flags of mount(2), propagation flags not included.
    pub flags: u64,
    /// MS_SHARED, MS_SLAVE, MS_PRIVATE, MS_UNBINDABLE with MS_REC or not; 0 for none. Applied after mounting.
    #[serde(skip_serializing_if = "is_zero")]
    pub propagation: u64,
    /// MOUNT_ATTR_* of mount_setattr(2) to set on the mount and everything below it, and those to clear.
    #[serde(skip_serializing_if = "is_zero")]
    pub recursive_set: u64,
    /// See `recursive_set`.
    #[serde(skip_serializing_if = "is_zero")]
    pub recursive_clear: u64,
    /// The directory's content is copied into what is mounted on it.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub copy_up: bool,
    /// The file system's own options.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub data: String,
}

object!(Mount, Refused, {
    "destination": destination,
    "type": kind,
    "source": source,
    "flags": flags,
    "propagation": propagation,
    "recursiveSet": recursive_set,
    "recursiveClear": recursive_clear,
    "copyUp": copy_up,
    "data": data,
});

/// A device node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// Absolute path in the container.
    pub path: String,
    /// File type and permissions, as mknod(2) takes them.
    pub mode: u32,
    /// Device number.
    pub major: u32,
    /// Device number.
    pub minor: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

object!(Device, Refused, {
    "path": path,
    "mode": mode,
    "major": major,
    "minor": minor,
    "uid": uid,
    "gid": gid,
});

/// What an OCI process has above API 4244's. With it the environment is exactly the given one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OciProcess {
    /// Capability sets, one bit each as in capability.h; `None` keeps them all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privileges: bool,
    /// File mode creation mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
    /// /proc/self/oom_score_adj.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Its scheduling class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<Scheduler>,
    /// ioprio_set(2)'s class and priority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_priority: Option<u16>,
    /// personality(2)'s execution domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub personality: Option<u32>,
    /// What it may ask of its kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<Filter>,
    /// Of a further process: its cgroup, below the container's. Empty is the container's, or where its first process is if
    /// that one takes no process any more.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cgroup: String,
}

object!(OciProcess, Refused, {
    "capabilities": capabilities,
    "noNewPrivileges": no_new_privileges,
    "umask": umask,
    "oomScoreAdj": oom_score_adj,
    "scheduler": scheduler,
    "ioPriority": io_priority,
    "personality": personality,
    "seccomp": seccomp,
    "cgroup": cgroup,
});

/// sched_setattr(2)'s argument.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Scheduler {
    /// SCHED_*.
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    /// For SCHED_OTHER and SCHED_BATCH.
    pub nice: i32,
    /// For SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// Nanoseconds, for SCHED_DEADLINE.
    pub runtime: u64,
    /// Likewise.
    pub deadline: u64,
    /// Likewise.
    pub period: u64,
}

object!(Scheduler, Refused, {
    "policy": policy,
    "flags": flags,
    "nice": nice,
    "priority": priority,
    "runtime": runtime,
    "deadline": deadline,
    "period": period,
});

/// The five capability sets as bit masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// Limits what execve can give.
    pub bounding: u64,
    /// What the kernel checks.
    pub effective: u64,
    /// Kept over execve by file capabilities.
    pub inheritable: u64,
    /// What effective may be raised to.
    pub permitted: u64,
    /// Kept over execve of a plain file.
    pub ambient: u64,
}

object!(Capabilities, Refused, {
    "bounding": bounding,
    "effective": effective,
    "inheritable": inheritable,
    "permitted": permitted,
    "ambient": ambient,
});

fn is_zero(value: &u64) -> bool {
    *value == 0
}
