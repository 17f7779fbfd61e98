//! Annotations by which the CRI plugins of containerd and CRI-O say that a container belongs to a Kubernetes pod. A pod has a
//! first container, which only waits and keeps its namespaces, and members.

use crate::Spec;

/// For each engine: the type of a container, and the id of its pod's first container.
const ANNOTATIONS: [(&str, &str); 2] = [
    ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", CRIO_POD),
];

/// CRI-O's annotation for the id of a pod, which may have no container with that id: by default (`drop_infra_ctr`) CRI-O makes
/// none that only waits.
pub const CRIO_POD: &str = "io.kubernetes.cri-o.SandboxID";

/// The part of a container in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    First,
    Member {
        /// Id of the pod's first container.
        first: &'a str,
        /// The annotation that names it.
        annotation: &'static str,
    },
}

/// Returns the container's part; `None` if it belongs to no pod of Kubernetes.
pub fn part(spec: &Spec) -> Option<Part<'_>> {
    ANNOTATIONS.into_iter().find_map(|(kind, annotation)| match spec.annotations.get(kind)?.as_str() {
        "sandbox" => Some(Part::First),
        "container" => Some(Part::Member { first: spec.annotations.get(annotation)?, annotation }),
        _ => None,
    })
}

/// Whether a machine that is made for the container is one for containers that follow: the container is the first of its
/// pod, or that of a CRI-O pod of which no other runs.
pub fn makes_machine(spec: &Spec) -> bool {
    match part(spec) {
        Some(Part::First) => true,
        Some(Part::Member { annotation, .. }) => annotation == CRIO_POD && !names_podman_s_pod(spec),
        None => false,
    }
}

/// Whether the engine is Podman, whose pods without an infra container have no first container: there the annotation has the
/// id of the pod itself.
pub fn names_podman_s_pod(spec: &Spec) -> bool {
    spec.annotations.get("io.container.manager").is_some_and(|manager| manager == "libpod")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_engines_name_the_part_of_a_container() {
        let of = |kind: &str, key: &str, id: &str| {
            let text = format!(r#"{{"annotations":{{"{key}":"{kind}","{id}":"p"}}}}"#);
            let spec: Spec = serde_json::from_str(&text).unwrap();
            part(&spec).map(|part| match part {
                Part::First => "first".to_owned(),
                Part::Member { first, .. } => format!("member of {first}"),
            })
        };
        for (key, id) in ANNOTATIONS {
            assert_eq!(of("container", key, id).as_deref(), Some("member of p"));
            assert_eq!(of("sandbox", key, id).as_deref(), Some("first"));
            assert_eq!(of("other", key, id), None);
        }
        assert_eq!(of("container", ANNOTATIONS[0].0, ANNOTATIONS[1].1), None);
    }
}
