//! Translates OCI mounts to guest mounts: each bind becomes an entry of the share and a bind mount of it in the guest.

use std::path::PathBuf;

use agent_proto::payload;
use oci::bundle::{Bundle, is_bind};
use oci::mount_options::MountOptions;

use crate::device_rules::Rule;

/// Name of the root directory in a container's part of the share.
pub const ROOTFS: &str = "rootfs";

/// A file or directory of the host in the share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareBind {
    /// Path in the share, absolute.
    pub path: String,
    /// Path on the host.
    pub host: PathBuf,
    /// Whether the guest cannot write to it.
    pub read_only: bool,
    /// Whether the guest may create empty files and directories as mount points, until the container runs.
    pub mount_points: bool,
    /// Rules for device nodes that the guest may create in it. The last matching rule decides; without one the guest
    /// may not.
    pub nodes: Vec<Rule>,
    /// Whether mounts that the host adds below it while the machine runs are visible in the guest.
    pub later_mounts: bool,
}

/// A generated file of a container, held in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Path in the share, absolute.
    pub path: String,
    /// Content of the file.
    pub bytes: Vec<u8>,
    /// File mode.
    pub mode: u32,
    /// User and group ids of the owner.
    pub owner: (u32, u32),
}

/// Returns the agent's mounts and the binds that they need, root first. `nodes` are the rules for device nodes.
pub fn mounts(bundle: &Bundle, id: &str, nodes: &[Rule]) -> (Vec<payload::Mount>, Vec<ShareBind>) {
    let mut binds = vec![ShareBind {
        path: format!("/{id}/{ROOTFS}"),
        host: bundle.rootfs.clone(),
        read_only: bundle.readonly,
        mount_points: bundle.readonly,
        nodes: nodes.to_vec(),
        later_mounts: false,
    }];
    let mut mounts = Vec::new();
    for mount in &bundle.spec.mounts {
        let mut options = MountOptions::parse(&mount.options);
        let (kind, source) = if is_bind(mount) {
            let path = format!("/{id}/mounts/{}", binds.len() - 1);
            let read_only = options.read_only();
            binds.push(ShareBind {
                path: path.clone(),
                host: bundle.bind_source(mount),
                read_only,
                mount_points: false,
                nodes: nodes.to_vec(),
                later_mounts: options.propagation & (libc::MS_SLAVE | libc::MS_SHARED) != 0,
            });
            options.flags |= libc::MS_BIND;
            ("bind", path)
        } else if mount.kind == "cgroup" {
            // A guest has only the unified hierarchy, to which options of version 1 do not apply.
            options.data.clear();
            ("cgroup2", mount.source.clone())
        } else {
            (mount.kind.as_str(), mount.source.clone())
        };
        mounts.push(payload::Mount {
            // A destination without a leading slash is relative to the root (config.md, "Mounts").
            destination: format!("/{}", mount.destination.trim_start_matches('/')),
            kind: kind.to_owned(),
            source,
            flags: options.flags,
            propagation: options.propagation,
            recursive_set: options.recursive_set,
            recursive_clear: options.recursive_clear,
            copy_up: options.copy_up && kind == "tmpfs",
            data: options.data,
        });
    }
    (mounts, binds)
}
