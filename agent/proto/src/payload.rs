//! The control channel's JSON. The names are the wire's; keys that API 4244 does not have are the extension's and are
//! left out when empty, so that a peer of API 4244 alone never sees one.
//!
//! A key that is not here is ignored in API 4244's own objects: every host of it has sent some of its own, and the agent
//! has no way to say in the base form what displeased it. It is refused in the extension's objects (`oci`, EXTEND): their
//! version says which keys there are, and a container must not run without a restriction that its host believes in.

mod filter;
pub mod network;
mod object;
mod oci;
pub mod usage;

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};

pub use filter::{FILTER_MAX, Filter, Program, instruction};
pub use network::{Interface, IpAddress, Neighbour, Resolver, Route, Routes};
use object::object;
pub use oci::{
    Capabilities, ContainerLimits, DEVICE_RULES_MAX, Device, IdMap, IdMaps, Mount, Namespace, OciContainer,
    OciProcess, POD_SHM, Scheduler,
};

/// READY's payload: what the agent offers above API 4244.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The API version.
    pub api: u32,
    /// The extension's version.
    pub extension: u32,
    /// Bytes that a sender may have outstanding in one stream.
    pub window: u32,
}

/// EXTEND's payload: what the host takes of the offer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extend {
    /// The extension's version.
    pub extension: u32,
}

/// An extended ERROR's payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// What to branch on.
    pub code: ErrorCode,
    /// What to show: step, operand, cause.
    pub message: String,
}

/// The kinds of failure that the host tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ErrorCode {
    /// The agent has no such command.
    Unsupported,
    /// The payload could not be understood.
    BadRequest,
    /// No container, process or file of that name.
    NotFound,
    /// The name is taken.
    Exists,
    /// The container's program is not there (exit code 127).
    NotExecutableMissing,
    /// The container's program cannot be executed (exit code 126).
    NotExecutable,
    /// Anything else that failed in the guest.
    Failed,
}

/// STARTPOD.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// The pod's host name.
    pub hostname: String,
    /// `nameserver` lines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<String>,
    /// `search` line.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns_search: Vec<String>,
    /// `options` line.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns_options: Vec<String>,
    /// The share's mount tag; none when empty.
    pub share_dir: String,
    /// Extension: the share's file system, `virtiofs` or `9p`; 9p where it is not given.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub share_type: String,
    /// Interfaces that are set up with the pod; SETUPINTERFACE does the same later.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Routes, likewise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Containers that are started with the pod, in this order; NEWCONTAINER does the same later.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<Container>,
    /// The networks that reach the pod's ports (`internalNetworks`, `externalNetworks`): refused unless all lists are empty,
    /// the guest maps no ports.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub portmapping_white_lists: BTreeMap<String, Vec<String>>,
    /// Ignored, as API 4244 does.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub restart_policy: String,
    /// Extension: the kernel counts what each container uses, for STATS.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub accounting: bool,
    /// Extension: a loopback address at which name queries are taken for the host, over the port
    /// [`RESOLVER_PORT`](crate::command::RESOLVER_PORT).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resolver: String,
}

object!(Pod, Ignored, {
    "hostname": hostname,
    "dns": dns,
    "dnsSearch": dns_search,
    "dnsOptions": dns_options,
    "shareDir": share_dir,
    "shareType": share_type,
    "interfaces": interfaces,
    "routes": routes,
    "containers": containers,
    "portmappingWhiteLists": portmapping_white_lists,
    "restartPolicy": restart_policy,
    "accounting": accounting,
    "resolver": resolver,
});

/// NEWCONTAINER.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// The container's name, unique in the pod.
    pub id: String,
    /// The root directory's name inside the image.
    pub rootfs: String,
    /// The image's directory in the share.
    pub image: String,
    /// Files and directories of the share that are bound into the container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fsmap: Vec<FsMap>,
    /// A block device's SCSI address: refused, the machine has none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub addr: String,
    /// The file system of a block device that is the root: refused.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fstype: String,
    /// Block devices that are mounted: refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Present>,
    /// Mapped ports: refused, the guest maps none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Present>,
    /// Kernel parameters, `a.b.c` to value.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctl: BTreeMap<String, String>,
    /// The container's first process.
    pub process: Process,
    /// Ignored, as API 4244 does.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub restart_policy: String,
    /// Make the working directory, resolv.conf, hosts, hostname and mtab.
    pub initialize: bool,
    /// The root is mounted read-only.
    pub read_only: bool,
    /// Extension: the rest of an OCI container. Without it the container gets API 4244's surroundings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oci: Option<OciContainer>,
}

object!(Container, Ignored, {
    "id": id,
    "rootfs": rootfs,
    "image": image,
    "fsmap": fsmap,
    "addr": addr,
    "fstype": fstype,
    "volumes": volumes,
    "ports": ports,
    "sysctl": sysctl,
    "process": process,
    "restartPolicy": restart_policy,
    "initialize": initialize,
    "readOnly": read_only,
    "oci": oci,
});

/// A file or directory of the share that is bound into a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FsMap {
    /// Path in the share.
    pub source: String,
    /// Path in the container.
    pub path: String,
    /// Mounted read-only.
    pub read_only: bool,
    /// API 4244: the source holds `_data`.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub docker_volume: bool,
}

object!(FsMap, Ignored, {
    "source": source,
    "path": path,
    "readOnly": read_only,
    "dockerVolume": docker_volume,
});

/// Something of which it only matters that it is there: it is refused whatever it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Present;

impl<'de> Deserialize<'de> for Present {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Present, D::Error> {
        IgnoredAny::deserialize(from).map(|_| Present)
    }
}

/// A process: NEWCONTAINER's first and EXECCMD's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Name, unique in the container.
    pub id: String,
    /// User name or number; `0` where it is empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Group name or number; the user's where it is empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Further groups, names or numbers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub additional_groups: Vec<String>,
    /// The process has a pseudo-terminal.
    pub terminal: bool,
    /// Stream of stdin (to the guest) and stdout (from it).
    pub stdio: u64,
    /// Stream of stderr; 0 with a terminal means that stdout carries both.
    pub stderr: u64,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Environment.
    pub envs: Vec<Env>,
    /// Working directory.
    pub workdir: String,
    /// Resource limits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<Rlimit>,
    /// API 4242's rows of the terminal; the extension takes them too.
    #[serde(skip_serializing_if = "is_zero_u16")]
    pub rows: u16,
    /// Columns of the terminal.
    #[serde(skip_serializing_if = "is_zero_u16")]
    pub columns: u16,
    /// Extension: the rest of an OCI process. Without it the process keeps every capability, as in API 4244.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oci: Option<OciProcess>,
}

object!(Process, Ignored, {
    "id": id,
    "user": user,
    "group": group,
    "additionalGroups": additional_groups,
    "terminal": terminal,
    "stdio": stdio,
    "stderr": stderr,
    "args": args,
    "envs": envs,
    "workdir": workdir,
    "rlimits": rlimits,
    "rows": rows,
    "columns": columns,
    "oci": oci,
});

/// An environment variable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Env {
    /// Name.
    pub env: String,
    /// Value.
    pub value: String,
}

object!(Env, Ignored, {
    "env": env,
    "value": value,
});

/// A resource limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE` and so on.
    #[serde(rename = "type")]
    pub kind: String,
    /// The most that soft may be raised to.
    pub hard: u64,
    /// The limit in force.
    pub soft: u64,
}

object!(Rlimit, Ignored, {
    "type": kind,
    "hard": hard,
    "soft": soft,
});

/// EXECCMD.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecCommand {
    /// The container to run in.
    pub container: String,
    /// What to run.
    pub process: Process,
}

/// WINSIZE.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// The container.
    pub container: String,
    /// The process.
    pub process: String,
    /// Rows.
    pub row: u16,
    /// Columns.
    pub column: u16,
}

/// KILLCONTAINER.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KillCommand {
    /// The container.
    pub container: String,
    /// Signal number.
    pub signal: i32,
    /// Every process of the container instead of its first.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub all_processes: bool,
}

/// SIGNALPROCESS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalCommand {
    /// The container.
    pub container: String,
    /// The process.
    pub process: String,
    /// Signal number.
    pub signal: i32,
}

/// REMOVECONTAINER.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerName {
    /// The container.
    pub container: String,
}

/// WRITEFILE and READFILE.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileCommand {
    /// The container.
    pub container: String,
    /// Path in the container.
    pub file: String,
    /// Extension: where in the file the data begin. A file is written as a whole, from nothing, where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Extension: the most bytes that READFILE answers; fewer are there only at the file's end. All of it where it is not
    /// given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
}

/// PROCESSASYNCEVENT.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEvent {
    /// The container.
    pub container: String,
    /// The process.
    pub process: String,
    /// `finished`.
    pub event: String,
    /// API 4244: the exit code, 0 where a signal ended the process.
    pub status: i32,
    /// Extension: how the process ended and what it wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
}

/// How a process ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Exit {
    /// Its exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// The signal that killed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Bytes that its stdout stream carried.
    pub stdout_bytes: u64,
    /// Bytes that its stderr stream carried.
    pub stderr_bytes: u64,
}

fn is_zero_u32(value: &u32) -> bool {
    *value == 0
}

fn is_zero_u16(value: &u16) -> bool {
    *value == 0
}
