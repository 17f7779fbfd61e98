//! What a bundle may ask for and cannot get, field by field.
//!
//! Honoured because a VM implies it, and so not in the table: `linux.namespaces` (the VM is one), swap limits (the guest has
//! no swap). Annotations, except the one that `plan.rs` reads, and the sections of other platforms are skipped, as the
//! specification says. Filters, devices and
//! limits are judged where they are translated (`plan/`).

use crate::bundle::{Result, invalid, is_bind, unsupported};
use crate::mount_options;
use crate::spec::resources::BlockIo;
use crate::spec::{Given, Mount, Process, Spec};

/// File systems that the guest mounts.
const MOUNT_KINDS: [&str; 8] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "bind"];

/// Namespaces that a VM has, or that the agent makes.
pub const NAMESPACES: [&str; 8] = ["pid", "network", "mount", "ipc", "uts", "cgroup", "user", "time"];

/// Why a limit of the host's is refused.
const NO_CGROUP: &str =
    "the guest has nothing that it would limit, and without linux.cgroupsPath the host neither";

/// Options that ask for more than mount(2) in the guest.
pub const MOUNT_OPTIONS: [&str; 2] = ["idmap", "ridmap"];

/// Refuses the first thing in `spec` that cannot be honoured.
pub fn check(spec: &Spec) -> Result<()> {
    let linux = &spec.linux;
    let resources = &linux.resources;
    // What a guest has nothing of is limited on the host, where there is a cgroup for it.
    let on_host = |given: bool| Given(given && linux.cgroups_path.is_empty());
    let io = &resources.block_io;
    let leaf_weight = Given(io.leaf_weight.0 || io.weight_device.iter().any(|device| device.leaf_weight.0));
    let table = [
        ("vm", spec.vm, "the machine is set by flags and configuration file"),
        ("linux.mountLabel", linux.mount_label, "the guest has no SELinux"),
        ("linux.intelRdt", linux.intel_rdt, "cache allocation"),
        ("linux.memoryPolicy", linux.memory_policy, "the guest has one memory node"),
        ("linux.netDevices", linux.net_devices, "devices of the host"),
        ("linux.resources.blockIO", on_host(resources.block_io != BlockIo::default()), NO_CGROUP),
        ("linux.resources.blockIO.leafWeight", leaf_weight, "no kernel has leaf weights any more"),
        ("linux.resources.hugepageLimits", on_host(!resources.hugepage_limits.is_empty()), NO_CGROUP),
        ("linux.resources.network", resources.network, "packets of a machine have no class of a process"),
        ("linux.resources.rdma", on_host(!resources.rdma.is_empty()), NO_CGROUP),
        (
            "linux.resources.memory.disableOOMKiller",
            resources.memory.disable_oom_killer,
            "a guest's kernel that cannot kill would stand still",
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

/// Refuses the first thing in `process`, a container's first or a further one, that cannot be honoured.
pub fn check_process(process: &Process) -> Result<()> {
    // "If the runtime is unable to create the environment specified in the config.json, it MUST generate an error"
    // (runtime.md): a profile or label without its module is one, unless it asks for nothing.
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

/// Whether an AppArmor profile is one that an engine gives each container unasked, to keep it from the host's own files in
/// /proc and /sys. A guest's are the guest's, so nothing is lost without it; a profile that somebody chose is.
fn is_default_profile(profile: &str) -> bool {
    let of_version =
        |prefix| profile.strip_prefix(prefix).is_some_and(|version: &str| !version.contains('/'));
    let names =
        ["", "unconfined", "docker-default", "cri-containerd.apparmor.d", "nerdctl-default", "crio-default"];
    names.contains(&profile) || of_version("containers-default-")
}

/// Refuses what `vmm run` in the foreground gives and an engine means differently: to an engine a namespace that is left out
/// is the host's.
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
            return Err(invalid(&path, format!("a second {} namespace", namespace.kind)));
        }
        if !namespace.path.is_empty() && namespace.kind != "network" {
            return Err(unsupported(
                format!("linux.namespaces[{index}].path"),
                "of the host's namespaces a VM can join a network alone",
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
    // A bind has no file system of its own that would know a further word; mount(2) would skip it in silence.
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
