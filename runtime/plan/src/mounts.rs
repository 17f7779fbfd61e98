//! Translates OCI mounts to guest mounts. A bind becomes an entry of the share and a bind mount of this entry in the
//! guest. A bind of a device becomes a bind of the guest's device with the same number. A bind of /dev becomes a tmpfs
//! with the guest's devices. A bind of a listening socket becomes one of the agent's, which carries connections to it.

use std::path::{Path, PathBuf};

use agent_proto::payload;
use oci::bundle::{Bundle, DeviceNode};
use oci::error::{Result, unsupported};
use oci::mount_options::MountOptions;
use oci::mounts_below::MountBelow;
use oci::spec::Capabilities;

use serde::{Deserialize, Serialize};

use crate::device_rules::Rule;
use crate::devices;

/// Name of the root directory in a container's part of the share.
pub const ROOTFS: &str = "rootfs";

/// A file or directory of the host in the share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareBind {
    /// Path in the share, absolute.
    pub path: String,
    /// Path on the host.
    pub host: PathBuf,
    /// Whether the guest cannot write to it.
    pub read_only: bool,
    /// Whether the guest cannot write to it, but to mounts of the host below it if these are not read-only themselves.
    pub read_only_top: bool,
    /// Whether nobody else writes to a file while the guest has it open for writing: a container's root.
    pub owned: bool,
    /// Whether the guest may create empty files and directories as mount points, until the container runs.
    pub mount_points: bool,
    /// Rules for device nodes that the guest may create in it. The last matching rule decides; without one the guest
    /// may not.
    pub nodes: Vec<Rule>,
    /// Whether mounts that the host adds below it while the machine runs are visible in the guest.
    pub later_mounts: bool,
    /// Whether it is without the mounts below it.
    pub single: bool,
    /// MOUNT_ATTR_* for its access times, and whether they are for the mounts below as well; `None` for those of the host's
    /// mount.
    pub access_time: Option<(u64, bool)>,
    /// Whether the guest may use the extended attributes that are reserved for CAP_SYS_ADMIN.
    pub admin_xattrs: bool,
}

/// A generated file of a container, held in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Path in the share, absolute.
    pub path: String,
    pub bytes: Vec<u8>,
    pub mode: u32,
    /// User and group ids of the owner.
    pub owner: (u32, u32),
}

/// The mounts of a bundle, translated.
#[derive(Debug, Default)]
pub struct Mounts {
    /// The agent's mounts, in order.
    pub mounts: Vec<payload::Mount>,
    /// The binds of the share that they need, the root first.
    pub binds: Vec<ShareBind>,
    /// Nodes of directories that replace the host's /dev.
    pub devices: Vec<payload::Device>,
    pub notices: Vec<String>,
}

/// Translates the bundle's mounts. `nodes` are the rules for device nodes in the share.
///
/// # Errors
///
/// A mount binds a device that the guest does not have.
pub fn mounts(bundle: &Bundle, id: &str, nodes: &[Rule]) -> Result<Mounts> {
    let admin_xattrs = may_administer(bundle.process.capabilities.as_ref());
    let mut planned = Mounts {
        binds: vec![ShareBind {
            path: format!("/{id}/{ROOTFS}"),
            host: bundle.rootfs.clone(),
            read_only: bundle.readonly,
            read_only_top: false,
            owned: !bundle.readonly,
            mount_points: bundle.readonly,
            nodes: nodes.to_vec(),
            later_mounts: false,
            single: false,
            access_time: None,
            admin_xattrs,
        }],
        ..Mounts::default()
    };
    for (index, mount) in bundle.spec.mounts.iter().enumerate() {
        if mount.is_bind() && bundle.bind_source(mount) == Path::new("/dev") {
            planned.add_dev(bundle, index);
            continue;
        }
        let mut options = MountOptions::parse(&mount.options);
        if let Some(file) = bundle.socket_sources.get(&index) {
            let number = bundle.socket_sources.range(..index).count().to_string();
            let data = format!("{:o} {} {}", file.mode, file.uid, file.gid);
            let options = MountOptions { data, ..MountOptions::default() };
            planned.mounts.push(entry(&mount.destination, payload::HOST_SOCKET, &number, options));
            continue;
        }
        if let Some(bytes) = bundle.shared_memory.get(&index) {
            planned.mounts.push(shared_memory(&mount.destination, *bytes));
            continue;
        }
        let (kind, source) = match bundle.device_sources.get(&index) {
            Some(device) => (payload::OWN_DEVICE, device_source(bundle, index, *device)?),
            None if mount.is_bind() => {
                let path = format!("/{id}/mounts/{}", planned.binds.len() - 1);
                // A mount that the host may still change is served as it is.
                let later_mounts = options.propagation & (libc::MS_SLAVE | libc::MS_SHARED) != 0;
                let below = bundle.mounts_below.get(&index).filter(|_| !later_mounts);
                planned.binds.push(ShareBind {
                    path: path.clone(),
                    host: bundle.bind_source(mount),
                    read_only: options.read_only() && below.is_none(),
                    read_only_top: below.is_some(),
                    owned: false,
                    mount_points: false,
                    nodes: nodes.to_vec(),
                    later_mounts,
                    single: options.flags & libc::MS_REC == 0,
                    access_time: options.access_time(),
                    admin_xattrs,
                });
                options.keep(bundle.source_flags.get(&index).copied().unwrap_or(0));
                options.flags |= libc::MS_BIND;
                ("bind", path)
            }
            None if mount.kind == "cgroup" => {
                // A guest has only the unified hierarchy, to which options of version 1 do not apply.
                options.data.clear();
                ("cgroup2", mount.source.clone())
            }
            None => (mount.kind.as_str(), mount.source.clone()),
        };
        let own = planned.binds.last().is_some_and(|bind| bind.path == source && bind.read_only_top);
        planned.mounts.push(entry(&mount.destination, kind, &source, options));
        for below in bundle.mounts_below.get(&index).filter(|_| own).into_iter().flatten() {
            planned.mounts.push(mount_below(&mount.destination, &source, below));
        }
    }
    Ok(planned)
}

/// Returns a mount of the guest for a mount of the host below a bind, with options of its own.
fn mount_below(destination: &str, source: &str, below: &MountBelow) -> payload::Mount {
    let path = below.path.to_string_lossy();
    let destination = format!("{}/{path}", destination.trim_end_matches('/'));
    let options = MountOptions { flags: below.flags | libc::MS_BIND, ..MountOptions::default() };
    entry(&destination, "bind", &format!("{source}/{path}"), options)
}

/// Whether a process with these capability sets can gain CAP_SYS_ADMIN.
pub(crate) fn may_administer(capabilities: Option<&Capabilities>) -> bool {
    capabilities.is_some_and(|sets| sets.bounding.iter().any(|name| name == "CAP_SYS_ADMIN"))
}

impl Mounts {
    /// Mounts a directory with the guest's devices in place of the host's /dev. The nodes there are numbers of devices of
    /// the host, and its terminals and shared memory are the host kernel's.
    fn add_dev(&mut self, bundle: &Bundle, index: usize) {
        let mounts = &bundle.spec.mounts;
        let dev = absolute(&mounts[index].destination);
        let given = MountOptions::parse(&mounts[index].options);
        let restricted = given.flags & (libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NOEXEC);
        let parts = [
            ("", "tmpfs", restricted, "mode=755,size=65536k"),
            (
                "/pts",
                "devpts",
                libc::MS_NOSUID | libc::MS_NOEXEC,
                "newinstance,ptmxmode=0666,mode=0620,gid=5",
            ),
            ("/shm", "tmpfs", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, "mode=1777,size=65536k"),
        ];
        for (below, kind, flags, data) in parts {
            let destination = format!("{}{below}", dev.trim_end_matches('/'));
            if !mounts[index + 1..].iter().any(|later| absolute(&later.destination) == destination) {
                let options = MountOptions { flags, data: data.to_owned(), ..MountOptions::default() };
                self.mounts.push(entry(&destination, kind, kind, options));
            }
        }
        self.devices.extend(devices::of_dev(&dev));
        self.notices.push(format!("mounts[{index}].source: /dev: the container has the guest's devices"));
    }
}

/// Returns the shared memory of the machine in place of what an engine made on the host, with the same size.
fn shared_memory(destination: &str, bytes: u64) -> payload::Mount {
    let data = match bytes {
        0 => "mode=1777".to_owned(),
        bytes => format!("mode=1777,size={bytes}"),
    };
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    entry(destination, payload::POD_SHM, "shm", MountOptions { flags, data, ..MountOptions::default() })
}

/// Returns the agent's name of a device that a mount binds.
fn device_source(bundle: &Bundle, index: usize, device: DeviceNode) -> Result<String> {
    if !devices::is_of_guest(device) {
        let path = bundle.bind_source(&bundle.spec.mounts[index]);
        let why = format!("{} is a device of the host's kernel", path.display());
        return Err(unsupported(format!("mounts[{index}].source"), why));
    }
    let DeviceNode { is_block, major, minor } = device;
    Ok(format!("{} {major}:{minor}", if is_block { 'b' } else { 'c' }))
}

/// A destination without a leading slash is relative to the root (config.md, "Mounts").
fn absolute(destination: &str) -> String {
    format!("/{}", destination.trim_start_matches('/'))
}

fn entry(destination: &str, kind: &str, source: &str, options: MountOptions) -> payload::Mount {
    payload::Mount {
        destination: absolute(destination),
        kind: kind.to_owned(),
        source: source.to_owned(),
        flags: options.flags,
        propagation: options.propagation,
        recursive_set: options.recursive_set,
        recursive_clear: options.recursive_clear,
        copy_up: options.copy_up && kind == "tmpfs",
        data: options.data,
    }
}

#[cfg(test)]
mod tests;
