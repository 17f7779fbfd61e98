//! The contents of `state.json`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use host::cgroup::Cgroup;
use plan::vm::Kernel;
use serde::{Deserialize, Serialize};

/// Status of a container that is being created.
pub const CREATING: &str = "creating";

/// A pod's state, as written to its file or as the pod answers it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodState {
    pub id: String,
    /// `starting`, `running`, `stopping`, `stopped`.
    pub status: String,
    pub pid: u32,
    /// Time of creation, in seconds since 1970.
    pub created: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Seconds that the guest's agent may take to answer.
    pub patience: u64,
    pub memory_mib: u32,
    pub vcpus: u8,
    /// The machine's kernel, unless the user named a file.
    pub kernel: Kernel,
    /// The machine's cgroup on the host, if it has one.
    #[serde(skip_serializing_if = "Cgroup::is_none")]
    pub cgroup: Cgroup,
    /// The containers, in the podfile's order.
    pub containers: Vec<ContainerState>,
    /// The container whose machine this one has joined; empty if it has a machine of its own. The state of that machine
    /// then has this container's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub joined: String,
    /// The process removes its directory at its end. If it was killed, the next command that finds the
    /// directory removes it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub transient: bool,
    /// Additional fields of an OCI container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oci: Option<OciState>,
}

impl PodState {
    /// Returns the state of the OCI container in the machine's.
    pub fn container(&self) -> Option<&ContainerState> {
        self.containers.iter().find(|container| container.name == self.id)
    }

    /// Returns the id of the container for which the machine was made: this one, or the one that it has joined.
    pub fn machine(&self) -> &str {
        if self.joined.is_empty() { &self.id } else { &self.joined }
    }

    /// Returns the state of a container that has joined `machine`. The machine drops a container that has ended.
    pub fn in_machine(self, machine: PodState) -> PodState {
        let own = machine.containers.into_iter().find(|container| container.name == self.id);
        if machine.status == "stopped" || own.is_none() {
            return self.stopped();
        }
        let (containers, status, patience) = (own.into_iter().collect(), machine.status, machine.patience);
        let (memory_mib, vcpus, kernel) = (machine.memory_mib, machine.vcpus, machine.kernel);
        PodState { containers, status, patience, memory_mib, vcpus, kernel, ..self }
    }

    /// Returns the state after the process has ended.
    pub fn stopped(mut self) -> PodState {
        let all = self.containers.iter_mut().map(|container| &mut container.status);
        all.chain([&mut self.status]).for_each(|status| "stopped".clone_into(status));
        self
    }
}

/// What an OCI container's bundle contributes to its state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OciState {
    /// The bundle's directory, absolute.
    pub bundle: PathBuf,
    /// The root file system, absolute.
    pub rootfs: PathBuf,
    /// Time of creation: RFC 3339, with nanoseconds.
    pub created: String,
    /// User id of the process that created the container.
    pub owner: u32,
    /// Path of the container's network namespace, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<PathBuf>,
    /// Paths of the container's other namespaces by kind, for which its machine has some of its own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub namespaces: BTreeMap<String, PathBuf>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerState {
    pub name: String,
    /// `waiting`, `starting`, `running`, `paused`, `stopped`.
    pub status: String,
    /// Exit code of the last run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    pub restarts: u64,
    /// The error of a start that failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<PathBuf>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Processes of the host that represent exec processes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stubs: Vec<u32>,
}
