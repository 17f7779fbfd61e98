//! Warnings about fields of a bundle that have no effect, although runc or a host with such a device would apply them.
//! The container runs without them: they distribute resources of the host, or its kernel has one choice only.

use crate::mount_options;
use crate::spec::resources::BlockIo;
use crate::spec::{Process, Spec};

/// Reason for ignoring a limit that only the host can apply.
const NO_CGROUP: &str =
    "the guest has no such controller, and the host applies it only with linux.cgroupsPath";

/// Reason for ignoring a kernel: who writes a bundle does not choose it.
const OWN_FLAGS: &str = "flags and the configuration file choose the kernel";

/// Returns a sentence for each field of `spec` and its init process that has content but no effect.
pub fn of(spec: &Spec, process: &Process) -> Vec<String> {
    let linux = &spec.linux;
    let resources = &linux.resources;
    let on_guest_only = linux.cgroups_path.is_empty();
    let io = &resources.block_io;
    let leaf_weight = io.leaf_weight.0 || io.weight_device.iter().any(|device| device.leaf_weight.0);
    let domain = linux.personality.as_ref().is_some_and(|personality| personality.flags.0);
    let has_users = linux.has_namespace("user");
    let table = [
        ("ociVersion", spec.oci_version.is_empty(), "not given, read as version 1"),
        ("vm.hypervisor", spec.vm.hypervisor.0, "the program is its own"),
        ("vm.kernel", spec.vm.kernel.0, OWN_FLAGS),
        ("vm.image", spec.vm.image.0, "the root is a directory"),
        ("process.execCPUAffinity", process.exec_cpu_affinity.0, "the CPUs of the guest are not the host's"),
        ("linux.uidMappings", !has_users && !linux.uid_mappings.is_empty(), "there is no user namespace"),
        ("linux.gidMappings", !has_users && !linux.gid_mappings.is_empty(), "there is no user namespace"),
        ("linux.memoryPolicy", linux.memory_policy.0, "the guest has one memory node"),
        ("linux.personality.flags", domain, "the specification defines no flags"),
        ("linux.resources.blockIO", on_guest_only && *io != BlockIo::default(), NO_CGROUP),
        ("linux.resources.blockIO.leafWeight", leaf_weight, "current kernels have no leaf weights"),
        ("linux.resources.hugepageLimits", on_guest_only && !resources.hugepage_limits.is_empty(), NO_CGROUP),
        (
            "linux.resources.network",
            resources.network.0,
            "packets of a machine carry no class or priority of a process",
        ),
        ("linux.resources.rdma", on_guest_only && !resources.rdma.is_empty(), NO_CGROUP),
        (
            "linux.resources.memory.disableOOMKiller",
            resources.memory.disable_oom_killer.0,
            "without its OOM killer the guest's kernel would hang",
        ),
        ("linux.resources.cpu.realtimeRuntime", resources.cpu.realtime_runtime.0, "real-time CPU limits"),
        ("linux.resources.cpu.realtimePeriod", resources.cpu.realtime_period.0, "real-time CPU limits"),
    ];
    let fields =
        table.into_iter().filter(|(_, given, _)| *given).map(|(path, _, why)| (path.to_owned(), why));
    fields.chain(copies(spec)).map(|(path, why)| format!("{path}: no effect: {why}")).collect()
}

/// Returns the options `tmpcopyup` of mounts that are no tmpfs. runc ignores them as well.
fn copies(spec: &Spec) -> impl Iterator<Item = (String, &'static str)> {
    let others = spec.mounts.iter().enumerate().filter(|(_, mount)| mount.kind != "tmpfs");
    let words = others.flat_map(|(index, mount)| mount.options.iter().enumerate().map(move |it| (index, it)));
    words
        .filter(|(_, (_, word))| *word == mount_options::COPY_UP)
        .map(|(index, (n, _))| (format!("mounts[{index}].options[{n}]"), "only a tmpfs can copy a directory"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::json;

    #[test]
    fn each_field_without_effect_is_named() {
        for (change, path) in [
            (json!({"ociVersion": null}), "ociVersion"),
            (json!({"vm": {"hypervisor": {"path": "/h"}}}), "vm.hypervisor"),
            (json!({"vm": {"kernel": {"path": "/k"}, "hwConfig": {"vcpus": 2}}}), "vm.kernel"),
            (json!({"vm": {"image": {"path": "/i"}}}), "vm.image"),
            (json!({"process": {"execCPUAffinity": {"initial": "0"}}}), "process.execCPUAffinity"),
            (json!({"linux": {"uidMappings": [{"size": 1}]}}), "linux.uidMappings"),
            (json!({"linux": {"gidMappings": [{"size": 1}]}}), "linux.gidMappings"),
            (json!({"linux": {"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0"}}}), "linux.memoryPolicy"),
            (
                json!({"linux": {"personality": {"domain": "LINUX", "flags": ["X"]}}}),
                "linux.personality.flags",
            ),
            (json!({"linux": {"resources": {"blockIO": {"weight": 10}}}}), "linux.resources.blockIO"),
            (
                json!({"linux": {"cgroupsPath": "/x", "resources": {"blockIO": {"weightDevice": [{"leafWeight": 1}]}}}}),
                "linux.resources.blockIO.leafWeight",
            ),
            (
                json!({"linux": {"resources": {"hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}}}),
                "linux.resources.hugepageLimits",
            ),
            (json!({"linux": {"resources": {"network": {"classID": 1}}}}), "linux.resources.network"),
            (json!({"linux": {"resources": {"rdma": {"mlx5": {"hcaHandles": 1}}}}}), "linux.resources.rdma"),
            (
                json!({"linux": {"resources": {"memory": {"disableOOMKiller": true}}}}),
                "linux.resources.memory.disableOOMKiller",
            ),
            (json!({"mounts": [{"type": "proc", "options": ["ro", "tmpcopyup"]}]}), "mounts[0].options[1]"),
        ] {
            let mut whole = json!({"ociVersion": "1.2.0"});
            whole.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            let spec: Spec = json::from_value(&whole).unwrap();
            let process = spec.process.clone().unwrap_or_default();
            let warnings = of(&spec, &process);
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            assert!(warnings[0].starts_with(&format!("{path}: no effect: ")), "{warnings:?}");
        }
    }

    #[test]
    fn limits_that_the_host_applies_are_not_named() {
        let limits =
            json!({"blockIO": {"weight": 10}, "rdma": {"a": {"hcaHandles": 1}}, "network": {"classID": 0}});
        let whole = json!({"ociVersion": "1.2.0", "linux": {"cgroupsPath": "/x", "resources": limits}});
        assert_eq!(of(&json::from_value(&whole).unwrap(), &Process::default()), [""; 0]);
    }
}
