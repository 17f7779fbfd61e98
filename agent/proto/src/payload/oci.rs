//! The extension's part of containers and processes: what OCI has and API 4244 does not.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::object::object;

use super::filter::Filter;

/// Limit of [`OciContainer::device_rules`].
pub const DEVICE_RULES_MAX: usize = 1024;

/// The OCI part of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OciContainer {
    /// The container's own namespaces. The others are the pod's, except that each container has its own mount
    /// namespace.
    pub namespaces: Vec<Namespace>,
    /// Namespaces of other containers that this one uses: `ipc`, `network`, `pid` or `uts`, and the name of a container,
    /// which must run.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub joined: BTreeMap<String, String>,
    /// Host name of the container, if it has its own UTS namespace.
    pub hostname: String,
    /// Domain name of the container, if it has its own UTS namespace.
    pub domainname: String,
    /// All mounts in order. The agent adds only the nodes and links in `/dev`.
    pub mounts: Vec<Mount>,
    /// Absolute paths that are hidden by /dev/null or an empty read-only tmpfs.
    pub masked_paths: Vec<String>,
    /// Absolute paths that are remounted read-only.
    pub readonly_paths: Vec<String>,
    /// Device nodes in addition to the default ones in `/dev`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// Rules for the kernel's devices controller, in the order in which they are written. Each is `allow` or `deny`, a
    /// space, and a line for the file `devices.allow` or `devices.deny`
    /// (Documentation/admin-guide/cgroup-v1/devices.rst). Without rules the container can use all devices. Limit:
    /// [`DEVICE_RULES_MAX`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub device_rules: Vec<String>,
    /// Files of the container's cgroup (version 2) and the text to write, for example `memory.max` and `1048576`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cgroup: BTreeMap<String, String>,
    /// The container's user namespace, if it has its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_namespace: Option<IdMaps>,
    /// Text for /proc/self/timens_offsets, if the container has its own time namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub time_offsets: String,
    /// Propagation of the root mount, like [`Mount::propagation`].
    #[serde(skip_serializing_if = "is_zero")]
    pub root_propagation: u64,
}

object!(OciContainer, Refused, {
    "namespaces": namespaces,
    "joined": joined,
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

/// UPDATE: new limits for a container. Limits that are not listed stay unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ContainerLimits {
    /// Name of the container.
    pub container: String,
    /// Like [`OciContainer::cgroup`].
    pub cgroup: BTreeMap<String, String>,
}

object!(ContainerLimits, Refused, {
    "container": container,
    "cgroup": cgroup,
});

/// ID mappings of a user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IdMaps {
    /// User ID mappings.
    pub users: Vec<IdMap>,
    /// Group ID mappings.
    pub groups: Vec<IdMap>,
}

object!(IdMaps, Refused, {
    "users": users,
    "groups": groups,
});

/// A range of mapped IDs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IdMap {
    /// First ID inside the namespace.
    pub inside: u32,
    /// First ID outside the namespace.
    pub outside: u32,
    /// Number of IDs.
    pub size: u32,
}

object!(IdMap, Refused, {
    "inside": inside,
    "outside": outside,
    "size": size,
});

impl IdMap {
    /// Returns the ID outside that corresponds to `id` inside, from the first range that contains it.
    pub fn outside(maps: &[IdMap], id: u32) -> Option<u32> {
        let there = |map: &&IdMap| id.checked_sub(map.inside).is_some_and(|at| at < map.size);
        maps.iter().find(there).and_then(|map| map.outside.checked_add(id - map.inside))
    }
}

/// A namespace type that a container may have for itself.
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
    /// Network, with only a loopback interface.
    Network,
    /// The clocks that count from the boot.
    Time,
}

/// [`Mount::kind`] of a bind mount of the pod's shared /dev/shm. The source is ignored.
pub const POD_SHM: &str = "podshm";

/// [`Mount::kind`] of a bind mount of a device of the guest. The source is `c` or `b`, a space, and `major:minor`.
pub const OWN_DEVICE: &str = "device";

/// [`Mount::kind`] of a listening socket of the host. The source is its number, and the data its mode in octal digits, its
/// user and its group.
pub const HOST_SOCKET: &str = "socket";

/// One mount of an OCI container, with its options as arguments of mount(2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// Absolute path in the container.
    pub destination: String,
    /// File-system type; `bind` for a bind mount, [`POD_SHM`] for the pod's own /dev/shm, [`OWN_DEVICE`] for a
    /// device, [`HOST_SOCKET`] for a socket.
    #[serde(rename = "type")]
    pub kind: String,
    /// For a bind: the path in the share (`/<container>/mounts/0`). Otherwise the device's name.
    pub source: String,
    /// MS_* flags of mount(2) without propagation flags.
    pub flags: u64,
    /// MS_SHARED, MS_SLAVE, MS_PRIVATE or MS_UNBINDABLE, with or without MS_REC; 0 for none. Applied after mounting.
    #[serde(skip_serializing_if = "is_zero")]
    pub propagation: u64,
    /// MOUNT_ATTR_* of mount_setattr(2) to set on the mount and all mounts below it.
    #[serde(skip_serializing_if = "is_zero")]
    pub recursive_set: u64,
    /// MOUNT_ATTR_* of mount_setattr(2) to clear on the mount and all mounts below it.
    #[serde(skip_serializing_if = "is_zero")]
    pub recursive_clear: u64,
    /// Copy the content of the directory into the file system that is mounted on it.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub copy_up: bool,
    /// File-system specific options.
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
    /// File type and permissions, as for mknod(2).
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

/// The OCI part of a process. With it, the process gets exactly the given environment variables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OciProcess {
    /// Capability sets; `None` keeps all capabilities.
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
    /// Arguments of sched_setattr(2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<Scheduler>,
    /// Class and priority of ioprio_set(2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_priority: Option<u16>,
    /// Execution domain of personality(2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub personality: Option<u32>,
    /// Seccomp filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<Filter>,
    /// Cgroup of an exec process, below the container's. Empty means the container's cgroup, or that of the init
    /// process if the container's cgroup does not accept processes any more.
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

/// Arguments of sched_setattr(2).
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
    /// In nanoseconds, for SCHED_DEADLINE.
    pub runtime: u64,
    /// In nanoseconds, for SCHED_DEADLINE.
    pub deadline: u64,
    /// In nanoseconds, for SCHED_DEADLINE.
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

/// The five capability sets as bit masks, with the bit numbers of capability.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// Limit of the capabilities that execve(2) can give.
    pub bounding: u64,
    /// Capabilities that the kernel checks.
    pub effective: u64,
    /// Capabilities that execve(2) keeps if the file has them as inheritable.
    pub inheritable: u64,
    /// Limit of the effective set.
    pub permitted: u64,
    /// Capabilities that execve(2) of a file without capabilities keeps.
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
