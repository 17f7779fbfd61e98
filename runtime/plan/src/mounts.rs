//! OCI mounts to guest mounts: each bind becomes a name in the share and a bind mount of it in the guest.

use std::path::PathBuf;

use agent_proto::payload;
use oci::bundle::{Bundle, is_bind};
use oci::mount_options::MountOptions;

use crate::device_rules::Rule;

/// The root directory's name in a container's part of the share.
pub const ROOTFS: &str = "rootfs";

/// A file or directory of the host in the share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareBind {
    /// Path in the share, absolute.
    pub path: String,
    /// Path on the host.
    pub host: PathBuf,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// The guest may still make empty files and directories to mount on, until the container runs.
    pub mount_points: bool,
    /// Rules about the device nodes that the guest may make in it; the last that fits decides, and without one it may not.
    pub nodes: Vec<Rule>,
    /// What the host mounts below it while the machine runs is in it.
    pub later_mounts: bool,
}

/// A file that is made for a container and held in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Path in the share, absolute.
    pub path: String,
    /// What is in it.
    pub bytes: Vec<u8>,
    /// Its mode.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
}

/// Returns the agent's mounts and the binds that they need, the root first. `nodes` are the rules about device nodes.
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
            // A guest has the unified hierarchy alone; version 1's options mean nothing to it.
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
            copy_up: options.copy_up,
            data: options.data,
        });
    }
    (mounts, binds)
}
