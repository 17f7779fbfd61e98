//! Refuses fields of a bundle that cannot be honoured. Fields without which the container runs as well are accepted
//! with a warning: [`warnings`](crate::warnings).
//!
//! Not in the table, because a VM implies them: `linux.namespaces` (the VM is one) and swap limits (the guest has no
//! swap). Annotations, except the one that `plan/vm.rs` reads, and sections of other platforms are skipped, as the
//! specification demands. Filters, devices and limits are checked where crate `plan` translates them.

use std::collections::BTreeSet;

use crate::error::{Result, invalid, unsupported};
use crate::mount_options;
use crate::pod;
use crate::spec::{Linux, Mount, Namespace, Process, Spec};

/// File systems that the guest mounts. Others read a device or a directory of the host, or need a program of the host.
const MOUNT_KINDS: [&str; 17] = [
    "proc",
    "sysfs",
    "tmpfs",
    "ramfs",
    "devpts",
    "mqueue",
    "cgroup",
    "cgroup2",
    "bind",
    "hugetlbfs",
    "debugfs",
    "tracefs",
    "securityfs",
    "bpf",
    "binfmt_misc",
    "configfs",
    "fusectl",
];

/// Namespaces that a VM implies or that the agent creates.
pub const NAMESPACES: [&str; 8] = ["pid", "network", "mount", "ipc", "uts", "cgroup", "user", "time"];

/// Options that need more than mount(2) in the guest.
pub const MOUNT_OPTIONS: [&str; 2] = ["idmap", "ridmap"];

/// Refuses the first field of `spec` that cannot be honoured.
pub fn check(spec: &Spec) -> Result<()> {
    let linux = &spec.linux;
    let table = [
        ("linux.mountLabel", linux.mount_label.0, "the guest has no SELinux"),
        ("linux.intelRdt", linux.intel_rdt.0, "cache allocation"),
    ];
    refuse(table)?;
    let hardware = &spec.vm.hw_config;
    refuse([
        ("vm.hwConfig.deviceTree", hardware.device_tree.0, "the machine has no device tree"),
        ("vm.hwConfig.dtDevs", hardware.dt_devs.0, "devices of the host"),
        ("vm.hwConfig.ioMems", hardware.io_mems.0, "memory of devices of the host"),
        ("vm.hwConfig.irqs", hardware.irqs.0, "interrupts of the host"),
    ])?;
    check_linux(spec)?;
    spec.mounts.iter().enumerate().try_for_each(|(index, mount)| check_mount(index, mount))
}

/// Refuses the first field of `process`, an init or exec process, that cannot be honoured.
pub fn check_process(process: &Process) -> Result<()> {
    // "If the runtime is unable to create the environment specified in the config.json, it MUST generate an error"
    // (runtime.md): a profile or label without its security module is such a case, unless it has no effect.
    let profile = process.apparmor_profile.as_str();
    let apparmor = !is_default_profile(profile);
    if !apparmor && !matches!(profile, "" | "unconfined") {
        log::info!("process.apparmorProfile {profile:?}: not loaded, the guest has no AppArmor");
    }
    refuse([
        ("process.apparmorProfile", apparmor, "the guest has no AppArmor"),
        ("process.selinuxLabel", process.selinux_label.0, "the guest has no SELinux"),
    ])
}

/// Refuses the first of these fields that is given: JSON path, whether it is given, and the reason.
fn refuse<const N: usize>(fields: [(&str, bool, &str); N]) -> Result<()> {
    match fields.into_iter().find(|(_, given, _)| *given) {
        Some((path, _, why)) => Err(unsupported(path, why)),
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

/// Kinds of namespaces of another container that a container can use.
pub const JOINED: [&str; 4] = ["network", "ipc", "uts", "pid"];

/// Kinds of namespaces that CRI-O makes for a pod before its first container, which gets a machine with namespaces of its own
/// instead.
const PINNED: [&str; 2] = ["ipc", "uts"];

/// Refuses paths of namespaces in the bundle of a container with a machine of its own. It can join a network namespace of
/// the host.
pub fn check_paths(spec: &Spec) -> Result<()> {
    let is_first = pod::makes_machine(spec);
    let joins = |namespace: &Namespace| {
        let kind = namespace.kind.as_str();
        !(namespace.path.is_empty() || kind == "network" || is_first && PINNED.contains(&kind))
    };
    match spec.linux.namespaces.iter().position(joins) {
        Some(index) => Err(unsupported(
            format!("linux.namespaces[{index}].path"),
            "a VM can join only network namespaces of the host",
        )),
        None => Ok(()),
    }
}

/// Refuses missing namespaces, which `vmm run` accepts: for an engine, a container without a namespace uses the host's.
pub fn check_engine(spec: &Spec) -> Result<()> {
    refuse(
        [
            ("network", "no network namespace: the host's own network cannot be the guest's"),
            ("pid", "no pid namespace: the host's processes are not in the guest"),
            ("ipc", "no ipc namespace: the host's IPC objects are not in the guest"),
        ]
        .map(|(kind, why)| ("linux.namespaces", !spec.linux.has_namespace(kind), why)),
    )
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
    }
    check_net_devices(&spec.linux)?;
    match spec.linux.rootfs_propagation.as_str() {
        "" => Ok(()),
        word if mount_options::propagation(word).is_some() => Ok(()),
        other => Err(invalid("linux.rootfsPropagation", format!("{other:?}"))),
    }
}

/// Refuses names that the kernel would refuse or interpret, and devices without a namespace for them.
fn check_net_devices(linux: &Linux) -> Result<()> {
    /// IFNAMSIZ without NUL.
    const NAME_MAX: usize = 15;
    if !linux.net_devices.is_empty() && !linux.has_namespace("network") {
        return Err(invalid("linux.netDevices", "no network namespace"));
    }
    let plain = |name: &str| {
        let odd = |byte: u8| matches!(byte, b'/' | b':' | b'%') || !byte.is_ascii_graphic();
        (1..=NAME_MAX).contains(&name.len()) && !name.bytes().any(odd) && !matches!(name, "." | "..")
    };
    let mut taken = BTreeSet::new();
    for (name, device) in &linux.net_devices {
        let new_name = device.name_for(name);
        if !plain(name) || !plain(new_name) || !taken.insert(new_name) {
            let path = format!("linux.netDevices[{name:?}]");
            return Err(invalid(&path, format!("{new_name:?} is no name of a device, or taken")));
        }
    }
    Ok(())
}

fn check_mount(index: usize, mount: &Mount) -> Result<()> {
    let at = |field: &str| format!("mounts[{index}].{field}");
    if !mount.is_bind() && !MOUNT_KINDS.contains(&mount.kind.as_str()) {
        return Err(unsupported(at("type"), format!("file system {:?}", mount.kind)));
    }
    refuse([
        (&at("uidMappings"), mount.uid_mappings.0, "mounts with mapped ids"),
        (&at("gidMappings"), mount.gid_mappings.0, "mounts with mapped ids"),
    ])?;
    // A bind mount has no file system that could check an unknown word; mount(2) would ignore it silently.
    let refused =
        |option: &&str| MOUNT_OPTIONS.contains(option) || mount.is_bind() && !mount_options::is_known(option);
    match mount.options.iter().map(String::as_str).enumerate().find(|(_, option)| refused(option)) {
        Some((n, option)) => Err(unsupported(at(&format!("options[{n}]")), option)),
        None => Ok(()),
    }
}
