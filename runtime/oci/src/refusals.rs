//! Refuses fields of a bundle that cannot be honoured.
//!
//! Not in the table, because a VM implies them: `linux.namespaces` (the VM is one) and swap limits (the guest has no
//! swap). Annotations, except the one that `plan/vm.rs` reads, and sections of other platforms are skipped, as the
//! specification demands. Filters, devices and limits are checked where crate `plan` translates them.

use crate::bundle::is_bind;
use crate::error::{Result, invalid, unsupported};
use crate::mount_options;
use crate::spec::resources::BlockIo;
use crate::spec::{Given, Mount, Process, Spec};

/// File systems that the guest mounts.
const MOUNT_KINDS: [&str; 8] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "bind"];

/// Namespaces that a VM implies or that the agent creates.
pub const NAMESPACES: [&str; 8] = ["pid", "network", "mount", "ipc", "uts", "cgroup", "user", "time"];

/// Reason for refusing a limit that only the host can apply.
const NO_CGROUP: &str =
    "the guest has no such controller, and the host applies it only with linux.cgroupsPath";

/// Options that need more than mount(2) in the guest.
pub const MOUNT_OPTIONS: [&str; 2] = ["idmap", "ridmap"];

/// Refuses the first field of `spec` that cannot be honoured.
pub fn check(spec: &Spec) -> Result<()> {
    let linux = &spec.linux;
    let resources = &linux.resources;
    // Controllers that the guest does not have are used on the host, if the machine has a cgroup there.
    let on_host = |given: bool| Given(given && linux.cgroups_path.is_empty());
    let io = &resources.block_io;
    let leaf_weight = Given(io.leaf_weight.0 || io.weight_device.iter().any(|device| device.leaf_weight.0));
    let table = [
        ("vm", spec.vm, "flags and the configuration file configure the machine"),
        ("linux.mountLabel", linux.mount_label, "the guest has no SELinux"),
        ("linux.intelRdt", linux.intel_rdt, "cache allocation"),
        ("linux.memoryPolicy", linux.memory_policy, "the guest has one memory node"),
        ("linux.netDevices", linux.net_devices, "devices of the host"),
        ("linux.resources.blockIO", on_host(resources.block_io != BlockIo::default()), NO_CGROUP),
        ("linux.resources.blockIO.leafWeight", leaf_weight, "current kernels have no leaf weights"),
        ("linux.resources.hugepageLimits", on_host(!resources.hugepage_limits.is_empty()), NO_CGROUP),
        (
            "linux.resources.network",
            resources.network,
            "packets of a machine carry no class or priority of a process",
        ),
        ("linux.resources.rdma", on_host(!resources.rdma.is_empty()), NO_CGROUP),
        (
            "linux.resources.memory.disableOOMKiller",
            resources.memory.disable_oom_killer,
            "without its OOM killer the guest's kernel would hang",
        ),
        ("linux.resources.cpu.realtimeRuntime", resources.cpu.realtime_runtime, "real-time CPU limits"),
        ("linux.resources.cpu.realtimePeriod", resources.cpu.realtime_period, "real-time CPU limits"),
    ];
    if let Some((path, _, why)) = table.iter().find(|(_, field, _)| field.0) {
        return Err(unsupported(*path, *why));
    }
    check_linux(spec)?;
    spec.mounts.iter().enumerate().try_for_each(|(index, mount)| check_mount(index, mount))
}

/// Refuses the first field of `process`, an init or exec process, that cannot be honoured.
pub fn check_process(process: &Process) -> Result<()> {
    // "If the runtime is unable to create the environment specified in the config.json, it MUST generate an error"
    // (runtime.md): a profile or label without its security module is such a case, unless it has no effect.
    let profile = process.apparmor_profile.as_str();
    let apparmor = Given(!is_default_profile(profile));
    if !apparmor.0 && !matches!(profile, "" | "unconfined") {
        log::info!("process.apparmorProfile {profile:?}: not loaded, the guest has no AppArmor");
    }
    let table = [
        ("process.apparmorProfile", apparmor, "the guest has no AppArmor"),
        ("process.selinuxLabel", process.selinux_label, "the guest has no SELinux"),
        ("process.execCPUAffinity", process.exec_cpu_affinity, "CPU affinity"),
    ];
    match table.iter().find(|(_, field, _)| field.0) {
        Some((path, _, why)) => Err(unsupported(*path, *why)),
        None => Ok(()),
    }
}

/// Whether an AppArmor profile is a default of an engine, which protects the host's /proc and /sys from every
/// container. The guest has its own /proc and /sys, so nothing is lost without such a profile. A profile that a user
/// chose is refused.
fn is_default_profile(profile: &str) -> bool {
    let of_version =
        |prefix| profile.strip_prefix(prefix).is_some_and(|version: &str| !version.contains('/'));
    let names =
        ["", "unconfined", "docker-default", "cri-containerd.apparmor.d", "nerdctl-default", "crio-default"];
    names.contains(&profile) || of_version("containers-default-")
}

/// Refuses missing namespaces, which `vmm run` accepts: for an engine, a container without a namespace uses the host's.
pub fn check_engine(spec: &Spec) -> Result<()> {
    let table = [
        ("network", "no network namespace: the host's own network cannot be the guest's"),
        ("pid", "no pid namespace: the host's processes are not in the guest"),
        ("ipc", "no ipc namespace: the host's IPC objects are not in the guest"),
    ];
    let has = |kind: &str| spec.linux.namespaces.iter().any(|namespace| namespace.kind == kind);
    match table.iter().find(|(kind, _)| !has(kind)) {
        Some((_, why)) => Err(unsupported("linux.namespaces", *why)),
        None => Ok(()),
    }
}

fn check_linux(spec: &Spec) -> Result<()> {
    let namespaces = &spec.linux.namespaces;
    for (index, namespace) in namespaces.iter().enumerate() {
        if !NAMESPACES.contains(&namespace.kind.as_str()) {
            return Err(unsupported(
                format!("linux.namespaces[{index}].type"),
                format!("a {} namespace", namespace.kind),
            ));
        }
        // "Duplicated type namespace entries MUST generate an error" (config-linux.md, "Namespaces").
        if namespaces[..index].iter().any(|earlier| earlier.kind == namespace.kind) {
            let path = format!("linux.namespaces[{index}].type");
            return Err(invalid(&path, format!("duplicate {} namespace", namespace.kind)));
        }
        if !namespace.path.is_empty() && namespace.kind != "network" {
            return Err(unsupported(
                format!("linux.namespaces[{index}].path"),
                "a VM can join only network namespaces of the host",
            ));
        }
    }
    match spec.linux.rootfs_propagation.as_str() {
        "" => Ok(()),
        word if mount_options::propagation(word).is_some() => Ok(()),
        other => Err(invalid("linux.rootfsPropagation", format!("{other:?}"))),
    }
}

fn check_mount(index: usize, mount: &Mount) -> Result<()> {
    let at = |field: &str| format!("mounts[{index}].{field}");
    if !is_bind(mount) && !MOUNT_KINDS.contains(&mount.kind.as_str()) {
        return Err(unsupported(at("type"), format!("file system {:?}", mount.kind)));
    }
    if mount.uid_mappings.0 {
        return Err(unsupported(at("uidMappings"), "mounts with mapped ids"));
    }
    if mount.gid_mappings.0 {
        return Err(unsupported(at("gidMappings"), "mounts with mapped ids"));
    }
    // A bind mount has no file system that could check an unknown word; mount(2) would ignore it silently.
    let refused = |option: &&str| {
        MOUNT_OPTIONS.contains(option)
            || is_bind(mount) && !mount_options::is_known(option)
            || *option == mount_options::COPY_UP && mount.kind != "tmpfs"
    };
    match mount.options.iter().map(String::as_str).enumerate().find(|(_, option)| refused(option)) {
        Some((n, option)) => Err(unsupported(at(&format!("options[{n}]")), option)),
        None => Ok(()),
    }
}
