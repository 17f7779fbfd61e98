//! Size of the machine of a Kubernetes pod: containerd passes the sum of the limits of the pod's containers as annotations
//! of the first one, whose own limits are those of a program that only waits.

use std::borrow::Cow;

use oci::Spec;
use oci::error::{Result, invalid};
use oci::pod::{self, Part};
use oci::spec::resources::Resources;

const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";

/// Returns the limits that determine the size of the container's machine: those of its pod if it is the first container of
/// one, none if it takes the place of the first container, otherwise its own.
///
/// # Errors
///
/// An annotation is not a number.
pub fn resources(spec: &Spec) -> Result<Cow<'_, Resources>> {
    let own = &spec.linux.resources;
    if !pod::makes_machine(spec) {
        return Ok(Cow::Borrowed(own));
    }
    let mut pod = own.clone();
    if pod::part(spec) != Some(Part::First) {
        // Its limits are not those of the pod, which nobody names.
        (pod.memory.limit, pod.cpu.quota) = (0, 0);
        return Ok(Cow::Owned(pod));
    }
    if let Some(memory) = number(spec, MEMORY)? {
        pod.memory.limit = memory;
    }
    if let Some(quota) = number(spec, QUOTA)? {
        pod.cpu.quota = quota;
    }
    if let Some(period) = number(spec, PERIOD)? {
        pod.cpu.period = period.try_into().unwrap_or(0);
    }
    Ok(Cow::Owned(pod))
}

/// Returns the value of an annotation; 0 means no limit, as in the bundle.
fn number(spec: &Spec, name: &str) -> Result<Option<i64>> {
    let Some(text) = spec.annotations.get(name) else { return Ok(None) };
    let number = text.parse().map(Some);
    number.map_err(|_| invalid(&format!("annotations[{name:?}]"), format!("{text:?} is not a number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: &str = "io.kubernetes.cri.container-type";

    fn size(annotations: &str) -> Result<(i64, i64)> {
        let text = format!(
            r#"{{"annotations":{{{annotations}}},"linux":{{"resources":{{"memory":{{"limit":7}}}}}}}}"#
        );
        let spec: Spec = serde_json::from_str(&text).unwrap();
        resources(&spec).map(|it| (it.memory.limit, it.cpu.quota))
    }

    #[test]
    fn the_first_container_of_a_pod_has_a_machine_of_the_pod_s_size() {
        let sandbox = format!(r#""{KIND}":"sandbox""#);
        assert_eq!(size(&sandbox).unwrap(), (7, 0));
        let given = format!(r#"{sandbox},"{MEMORY}":"100","{QUOTA}":"50000","{PERIOD}":"100000""#);
        assert_eq!(size(&given).unwrap(), (100, 50_000));
        assert_eq!(size(&format!(r#"{sandbox},"{MEMORY}":"0""#)).unwrap().0, 0);
        let of_other = format!(r#""{KIND}":"container","io.kubernetes.cri.sandbox-id":"p","{MEMORY}":"100""#);
        assert_eq!(size(&of_other).unwrap(), (7, 0));
        let of_crio =
            r#""io.kubernetes.cri-o.ContainerType":"container","io.kubernetes.cri-o.SandboxID":"p""#;
        assert_eq!(size(of_crio).unwrap(), (0, 0));
        let error = size(&format!(r#"{sandbox},"{MEMORY}":"1g""#)).unwrap_err();
        assert!(error.to_string().contains(MEMORY), "{error}");
    }
}
