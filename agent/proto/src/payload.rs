//! The control channel's JSON. Keys that API 4244 does not have belong to the extension; they are omitted when empty,
//! so that a peer that speaks only API 4244 never sees them.
//!
//! Unknown keys in API 4244's objects are ignored: its hosts send additional keys, and in the base form the
//! agent cannot report which key it refuses. Unknown keys in the extension's objects (`oci`, EXTEND) are refused: the
//! extension's version defines the keys, and a container must not run without a restriction that its host relies on.

pub mod clock;
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
pub use network::{Connect, Interface, IpAddress, Neighbour, Resolver, Route, Routes};
use object::object;
pub use oci::{
    Capabilities, ContainerLimits, DEVICE_RULES_MAX, Device, HOST_SOCKET, IdMap, IdMaps, Mount, Namespace,
    OWN_DEVICE, OciContainer, OciProcess, POD_SHM, Scheduler,
};

/// Name of the guest itself as a container: what runs in it is in no container.
pub const GUEST: &str = "hyperstart";

/// Payload of READY: the extension that the agent offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Version of API 4244.
    pub api: u32,
    /// Version of the extension.
    pub extension: u32,
    /// Window: bytes that a sender may have outstanding in one stream.
    pub window: u32,
}

/// Payload of EXTEND: the extension that the host accepts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extend {
    /// Version of the extension.
    pub extension: u32,
}

/// Payload of an extended ERROR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// Kind of failure, for the host's decisions.
    pub code: ErrorCode,
    /// Text for the user: step, operand, cause.
    pub message: String,
}

/// The kinds of failure that the host distinguishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ErrorCode {
    /// The agent has no such command.
    Unsupported,
    /// The payload could not be understood.
    BadRequest,
    /// No container, process or file has that name.
    NotFound,
    /// The name is already in use.
    Exists,
    /// The container's program does not exist (exit code 127).
    NotExecutableMissing,
    /// The container's program cannot be executed (exit code 126).
    NotExecutable,
    /// Any other failure in the guest.
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
    /// The share's mount tag. Empty if there is no share.
    pub share_dir: String,
    /// Extension: the share's file system, `virtiofs` or `9p`. The default is 9p.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub share_type: String,
    /// Interfaces that are set up when the pod starts. SETUPINTERFACE does the same later.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Routes that are set up when the pod starts. SETUPROUTE does the same later.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Containers that are started with the pod, in this order. NEWCONTAINER does the same later.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<Container>,
    /// Networks that may reach the pod's ports (`internalNetworks`, `externalNetworks`). Refused unless all lists are
    /// empty, because the guest does not map ports.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub portmapping_white_lists: BTreeMap<String, Vec<String>>,
    /// Ignored, as API 4244 does.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub restart_policy: String,
    /// Extension: the kernel counts what each container uses, for STATS.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub accounting: bool,
    /// Extension: a loopback address at which the agent accepts name queries for the host, over the port
    /// [`RESOLVER_PORT`](crate::command::RESOLVER_PORT).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resolver: String,
    /// Extension: the host carries connections of sockets in shared directories, over the port
    /// [`SOCKETS_PORT`](crate::command::SOCKETS_PORT).
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub sockets: bool,
    /// Extension: kernel parameters as files below /proc/sys or /sys, and the text to write. The agent skips a file that its
    /// kernel does not have or does not accept.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, String>,
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
    "sockets": sockets,
    "parameters": parameters,
});

/// NEWCONTAINER.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// Name of the container, unique in the pod.
    pub id: String,
    /// Name of the root directory in the image.
    pub rootfs: String,
    /// Directory of the image in the share.
    pub image: String,
    /// Files and directories of the share that are bind-mounted in the container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fsmap: Vec<FsMap>,
    /// SCSI address of a block device. Refused, because the machine has no block devices.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub addr: String,
    /// File system of a block device with the root. Refused.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fstype: String,
    /// Block devices to mount. Refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Present>,
    /// Mapped ports. Refused, because the guest does not map ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Present>,
    /// Kernel parameters (sysctl): name in the form `a.b.c`, and value.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctl: BTreeMap<String, String>,
    /// The container's init process.
    pub process: Process,
    /// Ignored, as API 4244 does.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub restart_policy: String,
    /// Create the working directory, resolv.conf, hosts, hostname and mtab.
    pub initialize: bool,
    /// Mount the root read-only.
    pub read_only: bool,
    /// Extension: the rest of an OCI container. Without it the container gets API 4244's defaults.
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

/// A file or directory of the share that is bind-mounted in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FsMap {
    /// Path in the share.
    pub source: String,
    /// Path in the container.
    pub path: String,
    /// Mount it read-only.
    pub read_only: bool,
    /// API 4244: the content is in the subdirectory `_data` of the source.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub docker_volume: bool,
}

object!(FsMap, Ignored, {
    "source": source,
    "path": path,
    "readOnly": read_only,
    "dockerVolume": docker_volume,
});

/// An object whose presence alone is refused. Its content is ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Present;

impl<'de> Deserialize<'de> for Present {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Present, D::Error> {
        IgnoredAny::deserialize(from).map(|_| Present)
    }
}

/// A process: the init process of NEWCONTAINER, or the exec process of EXECCMD.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Name, unique in the container.
    pub id: String,
    /// User name or number. Empty means `0`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Group name or number. Empty means the user's group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Supplementary groups, as names or numbers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub additional_groups: Vec<String>,
    /// The process has a pseudo-terminal.
    pub terminal: bool,
    /// Stream of stdin (to the guest) and stdout (from the guest).
    pub stdio: u64,
    /// Stream of stderr. 0 with a terminal means that the stdout stream contains both.
    pub stderr: u64,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Environment variables.
    pub envs: Vec<Env>,
    /// Working directory.
    pub workdir: String,
    /// Resource limits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<Rlimit>,
    /// Rows of the terminal, from API 4242. The extension accepts them too.
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
    /// Hard limit, up to which the process may raise the soft limit.
    pub hard: u64,
    /// Soft limit, which the kernel enforces.
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
    /// Name of the container.
    pub container: String,
    /// The exec process.
    pub process: Process,
}

/// WINSIZE.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Name of the container.
    pub container: String,
    /// Name of the process.
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
    /// Name of the container.
    pub container: String,
    /// Signal number.
    pub signal: i32,
    /// Signal all processes of the container instead of its init process.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub all_processes: bool,
}

/// SIGNALPROCESS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalCommand {
    /// Name of the container.
    pub container: String,
    /// Name of the process.
    pub process: String,
    /// Signal number.
    pub signal: i32,
}

/// REMOVECONTAINER.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerName {
    /// Name of the container.
    pub container: String,
}

/// WRITEFILE and READFILE.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileCommand {
    /// Name of the container.
    pub container: String,
    /// Path in the container.
    pub file: String,
    /// Extension: offset of the data in the file. Without it the file is created or truncated, and written completely.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Extension: limit of bytes that READFILE returns. It returns fewer only at the end of the file. Without it,
    /// READFILE returns the whole file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
}

/// PROCESSASYNCEVENT.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEvent {
    /// Name of the container.
    pub container: String,
    /// Name of the process.
    pub process: String,
    /// [`FINISHED`](Self::FINISHED), or [`OOM`](Self::OOM) in the extended form.
    pub event: String,
    /// API 4244: the exit code, 0 if a signal ended the process.
    pub status: i32,
    /// Extension: how the process ended, and how much it wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
}

impl ProcessEvent {
    /// A process has ended.
    pub const FINISHED: &str = "finished";
    /// The kernel has killed processes of the container for its memory limit. It does not say which: `process` is empty.
    /// If the init process ended, this event comes before that of its end.
    pub const OOM: &str = "oom";
}

/// How a process ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Exit {
    /// Exit code, if the process exited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// Signal number, if a signal killed the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Number of bytes in the stdout stream.
    pub stdout_bytes: u64,
    /// Number of bytes in the stderr stream.
    pub stderr_bytes: u64,
}

fn is_zero_u16(value: &u16) -> bool {
    *value == 0
}
