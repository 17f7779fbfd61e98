//! The machine that a new container joins: which one, and whose namespaces there it uses.
//!
//! Containers of a Kubernetes pod name their pod by annotations. Otherwise the paths of their namespaces decide. They lead
//! to a process of the host that represents a container ([`super::member`]), as runc's lead to a container's process.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use host::cgroup::room;
use oci::error::{BundleError, unsupported};
use oci::pod::{self, Part};
use oci::refusals::JOINED;
use oci::spec::{Namespace, Spec};
use plan::member::Machine;

use crate::state::{PodState, StateDir, StateRoot};

/// A running machine that a container joins.
pub struct Home {
    pub directory: StateDir,
    /// State of the machine's process.
    pub state: PodState,
    /// The kinds of namespaces that the container takes from others, and from which.
    pub joined: BTreeMap<String, String>,
}

impl Home {
    /// Returns what limits of a container are compared with.
    pub fn machine(&self) -> Machine {
        // As with runc, a limit may be above what the host has.
        let whole = room::memory_mib().is_some_and(|host| u64::from(self.state.memory_mib) >= host);
        let PodState { memory_mib, vcpus, kernel, .. } = self.state;
        Machine { memory_mib: (!whole).then_some(memory_mib), vcpus, kernel }
    }
}

/// Returns the machine that the container joins; `None` if it gets one of its own. Looks at other containers only if the
/// bundle mentions one.
///
/// # Errors
///
/// The bundle names a container that is not there, or namespaces that are not those of one machine.
pub fn find(root: &StateRoot, spec: &Spec) -> Result<Option<Home>> {
    let part = pod::part(spec);
    let given = || spec.linux.namespaces.iter().enumerate().filter(|(_, it)| !it.path.is_empty());
    let mentions = |it: &Namespace| it.kind != "network" || process_of(it).is_some();
    if part == Some(Part::First) || part.is_none() && !given().any(|(_, it)| mentions(it)) {
        return Ok(None);
    }
    let all = Living::all(root)?;
    let mut machine = match part {
        Some(Part::Member { first, annotation }) => match all.machine_of(first, annotation) {
            Some(found) => Some((format!("annotations[{annotation:?}]"), found)),
            // The first workload makes the machine.
            None if pod::makes_machine(spec) => return Ok(None),
            None if pod::names_podman_s_pod(spec) => None,
            None => return Err(absent(annotation, first).into()),
        },
        _ => None,
    };
    let mut joined = BTreeMap::new();
    for (index, namespace) in given() {
        let at = format!("linux.namespaces[{index}].path");
        let Some(container) = all.in_namespace(namespace) else {
            if namespace.kind == "network" && machine.is_none() && given().count() == 1 {
                return Ok(None);
            }
            let why = format!("{} is no namespace of a container in a virtual machine", namespace.path);
            return Err(unsupported(at, why).into());
        };
        if !JOINED.contains(&namespace.kind.as_str()) {
            return Err(
                unsupported(at, format!("the {} namespace of another container", namespace.kind)).into()
            );
        }
        if namespace.kind == "ipc" && !container.joined.is_empty() {
            let why = format!("container {} has itself joined a virtual machine", container.id);
            return Err(unsupported(at, why).into());
        }
        let home = container.machine();
        match &machine {
            Some((other, known)) if known != home => {
                let why = format!("{} is in another virtual machine than {other}", namespace.path);
                return Err(unsupported(at, why).into());
            }
            _ => machine = Some((at, home.to_owned())),
        }
        joined.insert(namespace.kind.clone(), container.id.clone());
    }
    let Some((_, machine)) = machine else { return Ok(None) };
    let directory = root.container(&machine)?;
    let state = directory.look()?;
    Ok(Some(Home { directory, state, joined }))
}

fn absent(annotation: &str, pod: &str) -> BundleError {
    unsupported(format!("annotations[{annotation:?}]"), format!("container {pod} is not running"))
}

/// Returns the process whose namespace a path like `/proc/PID/ns/KIND` names.
fn process_of(namespace: &Namespace) -> Option<u32> {
    let (process, kind) = namespace.path.strip_prefix("/proc/")?.split_once("/ns/")?;
    let file = if namespace.kind == "network" { "net" } else { namespace.kind.as_str() };
    process.parse().ok().filter(|_| kind == file)
}

/// The running containers below a root.
struct Living(Vec<PodState>);

impl Living {
    fn all(root: &StateRoot) -> Result<Living> {
        let mut all = Vec::new();
        for directory in root.list()? {
            // A container that ends meanwhile, or whose state is damaged, is no container that others can join.
            let state = directory.look().ok().filter(|state| state.oci.is_some());
            all.extend(state.filter(|state| state.status != "stopped"));
        }
        Ok(Living(all))
    }

    /// Returns the machine of the pod's first container, or without one that of another container of the pod.
    fn machine_of(&self, pod: &str, annotation: &str) -> Option<String> {
        let of_pod = |state: &&PodState| {
            let annotations = state.oci.as_ref().map(|oci| &oci.annotations);
            annotations.and_then(|all| all.get(annotation)).is_some_and(|named| named == pod)
        };
        let others = || self.0.iter().find(of_pod).filter(|_| annotation == pod::CRIO_POD);
        let found = self.0.iter().find(|state| state.id == pod).or_else(others);
        Some(found?.machine().to_owned())
    }

    /// Returns the container that has this namespace: the one whose process the path names, or the first container of a
    /// machine that was created with the same path.
    fn in_namespace(&self, namespace: &Namespace) -> Option<&PodState> {
        if let Some(pid) = process_of(namespace) {
            return self.0.iter().find(|state| state.pid == pid);
        }
        let has_path = |state: &&PodState| {
            let oci = state.oci.as_ref().filter(|_| state.joined.is_empty());
            let path = oci.and_then(|oci| match namespace.kind.as_str() {
                "network" => oci.network.as_deref(),
                kind => oci.namespaces.get(kind).map(PathBuf::as_path),
            });
            path.is_some_and(|path| path.as_os_str() == namespace.path.as_str())
        };
        self.0.iter().find(has_path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_namespace_s_own_file_names_a_process() {
        let of =
            |kind: &str, path: &str| process_of(&Namespace { kind: kind.to_owned(), path: path.to_owned() });
        assert_eq!(of("network", "/proc/12/ns/net"), Some(12));
        assert_eq!(of("ipc", "/proc/12/ns/ipc"), Some(12));
        for (kind, path) in [
            ("ipc", "/proc/12/ns/net"),
            ("network", "/run/netns/12"),
            ("pid", "/proc/self/ns/pid"),
            ("network", "/proc/-1/ns/net"),
            ("network", "/proc/12/ns/network"),
        ] {
            assert_eq!(of(kind, path), None, "{path}");
        }
    }
}
