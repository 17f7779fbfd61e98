//! What `state.json` holds.

use std::collections::BTreeMap;
use std::path::PathBuf;

use host::cgroup::Cgroup;
use serde::{Deserialize, Serialize};

/// A pod as the last state of it says, or as it says itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodState {
    /// Its name.
    pub id: String,
    /// `starting`, `running`, `stopping`, `stopped`.
    pub status: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since 1970.
    pub created: u64,
    /// Its labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Seconds that its guest may take for an answer.
    pub patience: u64,
    /// The machine's memory.
    pub memory_mib: u32,
    /// The machine's cgroup on the host, where it has one of its own.
    #[serde(skip_serializing_if = "Cgroup::is_none")]
    pub cgroup: Cgroup,
    /// Its containers, in the podfile's order.
    pub containers: Vec<ContainerState>,
    /// Processes of the host that stand for further processes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stubs: Vec<u32>,
    /// Its process removes its directory when it has ended; if it was killed, whoever finds the directory does.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub transient: bool,
    /// What an OCI container has beside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oci: Option<OciState>,
}

impl PodState {
    /// What it is once its process is gone.
    pub fn stopped(mut self) -> PodState {
        let all = self.containers.iter_mut().map(|container| &mut container.status);
        all.chain([&mut self.status]).for_each(|status| "stopped".clone_into(status));
        self
    }
}

/// What is known of an OCI container from its bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OciState {
    /// The bundle's directory, absolute.
    pub bundle: PathBuf,
    /// The root file system, absolute.
    pub rootfs: PathBuf,
    /// When it was made: RFC 3339, to the nanosecond.
    pub created: String,
    /// Who had it made, by number.
    pub owner: u32,
    /// The network namespace that it is in, if that has a path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<PathBuf>,
    /// The bundle's own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerState {
    /// Its name.
    pub name: String,
    /// `waiting`, `starting`, `running`, `paused`, `stopped`.
    pub status: String,
    /// How it ended last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// How often it was started again.
    pub restarts: u64,
    /// Why it could not be started.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// Where its output is; nowhere where it is not kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<PathBuf>,
    /// Its labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}
