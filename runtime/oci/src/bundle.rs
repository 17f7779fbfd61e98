//! An OCI bundle: a directory with config.json and a root file system.
//!
//! [`Bundle::load`] reads and checks a bundle, and refuses fields that cannot be honoured by their JSON path.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{BundleError, Result, invalid};
use crate::json;
use crate::mount_options::{MS_NOSYMFOLLOW, MountOptions};
use crate::mounts_below::{self, MOUNTS_BELOW_MAX, MountBelow};
use crate::refusals;
use crate::spec::{Mount, Process, Spec};

/// From linux/statfs.h; libc does not define it.
const ST_NOSYMFOLLOW: u64 = 0x2000;

/// A bundle that was read and checked.
#[derive(Debug)]
pub struct Bundle {
    pub directory: PathBuf,
    /// config.json, without `process` and `root`.
    pub spec: Spec,
    /// The init process, from `process`.
    pub process: Process,
    /// Directory of the root file system on the host.
    pub rootfs: PathBuf,
    pub readonly: bool,
    /// Device nodes of the host that mounts bind, by the index of the mount.
    pub device_sources: BTreeMap<usize, DeviceNode>,
    /// Sockets of the host that mounts bind, by the index of the mount.
    pub socket_sources: BTreeMap<usize, SocketFile>,
    /// Indexes of the mounts that bind named pipes.
    pub pipe_sources: BTreeSet<usize>,
    /// A mount binds a directory of the host's files, in which there may be sockets.
    pub binds_directory: bool,
    /// MS_* flags of the mounts on which the sources of binds are, by the index of the mount. A bind mount keeps them.
    pub source_flags: BTreeMap<usize, u64>,
    /// Shared memory that an engine made for the container, by the index of the mount: its size in bytes, 0 for no limit.
    pub shared_memory: BTreeMap<usize, u64>,
    /// Mounts with options of their own below the sources of read-only binds, by the index of the mount. No entry has more than
    /// [`MOUNTS_BELOW_MAX`].
    pub mounts_below: BTreeMap<usize, Vec<MountBelow>>,
}

/// The attributes of a socket's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketFile {
    /// Permissions.
    pub mode: u32,
    /// User of the owner.
    pub uid: u32,
    /// Group of the owner.
    pub gid: u32,
}

/// What a mount binds, if it is not a regular file.
enum Special {
    Directory,
    Device(DeviceNode),
    Socket(SocketFile),
    Pipe,
}

/// A device by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceNode {
    /// Whether it is a block device; otherwise a character device.
    pub is_block: bool,
    pub major: u32,
    pub minor: u32,
}

impl Bundle {
    /// Reads and checks the bundle in `directory`.
    pub fn load(directory: &Path) -> Result<Bundle> {
        let path = directory.join("config.json");
        let text = fs::read(&path).map_err(|source| BundleError::Read { path: path.clone(), source })?;
        let spec = json::from_slice(&text).map_err(|source| BundleError::Parse { path, source })?;
        let mut bundle = Bundle::check(directory, spec)?;
        directory_at("root.path", &bundle.rootfs)?;
        for (index, mount) in bundle.spec.mounts.iter().enumerate().filter(|(_, mount)| mount.is_bind()) {
            let source = bundle.bind_source(mount);
            if let Some(size) = shared_memory(mount, &source) {
                bundle.shared_memory.insert(index, size);
            }
            match bind_source_at(&format!("mounts[{index}].source"), &source)? {
                Some(Special::Device(node)) => _ = bundle.device_sources.insert(index, node),
                Some(Special::Socket(file)) => _ = bundle.socket_sources.insert(index, file),
                Some(Special::Pipe) => _ = bundle.pipe_sources.insert(index),
                Some(Special::Directory) => {
                    let other = source == Path::new("/dev") || bundle.shared_memory.contains_key(&index);
                    bundle.binds_directory |= !other;
                }
                None => {}
            }
            match source_flags(&source) {
                0 => {}
                flags => _ = bundle.source_flags.insert(index, flags),
            }
        }
        bundle.mounts_below = bundle.find_mounts_below();
        Ok(bundle)
    }

    /// Returns [`mounts_below`](Self::mounts_below).
    fn find_mounts_below(&self) -> BTreeMap<usize, Vec<MountBelow>> {
        let mut mountinfo = None;
        let below = |(index, mount): (usize, &Mount)| {
            let flags = self.source_flags.get(&index).copied().unwrap_or(0);
            if !mount.is_bind() || !mounts_below::keeps_own_options(mount, flags) {
                return None;
            }
            // Only a directory has something below it.
            let source = fs::canonicalize(self.bind_source(mount)).ok().filter(|source| source.is_dir())?;
            let text = mountinfo
                .get_or_insert_with(|| fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
            let found = mounts_below::find(text, &source);
            (1..=MOUNTS_BELOW_MAX).contains(&found.len()).then_some((index, found))
        };
        self.spec.mounts.iter().enumerate().filter_map(below).collect()
    }

    /// Checks the content of config.json, without access to other files of the host.
    pub fn check(directory: &Path, mut spec: Spec) -> Result<Bundle> {
        if !spec.oci_version.is_empty() && !spec.oci_version.starts_with("1.") {
            return Err(invalid("ociVersion", format!("{:?} is not 1.x", spec.oci_version)));
        }
        let process = spec.process.take().ok_or_else(|| invalid("process", "missing"))?;
        let root = spec.root.take().ok_or_else(|| invalid("root", "missing"))?;
        check_process(&process)?;
        for (index, mount) in spec.mounts.iter().enumerate() {
            if mount.destination.is_empty() {
                return Err(invalid(&format!("mounts[{index}].destination"), "missing"));
            }
        }
        refusals::check(&spec)?;
        let rootfs = directory.join(root.path);
        Ok(Bundle {
            directory: directory.to_owned(),
            spec,
            process,
            rootfs,
            readonly: root.readonly,
            device_sources: BTreeMap::new(),
            socket_sources: BTreeMap::new(),
            pipe_sources: BTreeSet::new(),
            binds_directory: false,
            source_flags: BTreeMap::new(),
            shared_memory: BTreeMap::new(),
            mounts_below: BTreeMap::new(),
        })
    }

    /// Path of the host's network namespace that the container joins, if config.json names one.
    pub fn network(&self) -> Option<&Path> {
        let namespaces = &self.spec.linux.namespaces;
        let network = namespaces.iter().find(|it| it.kind == "network" && !it.path.is_empty())?;
        Some(Path::new(&network.path))
    }

    /// Returns the host path that `mount` binds: the bundle's directory if `mount` names none, as with runc.
    pub fn bind_source(&self, mount: &Mount) -> PathBuf {
        self.directory.join(&mount.source)
    }
}

/// Checks an init or exec process: program, paths, environment variables, limits and the refused fields.
pub fn check_process(process: &Process) -> Result<()> {
    if process.args.first().is_none_or(String::is_empty) {
        return Err(invalid("process.args", "no program"));
    }
    if !process.cwd.starts_with('/') {
        return Err(invalid("process.cwd", format!("{:?} is not absolute", process.cwd)));
    }
    for (index, variable) in process.env.iter().enumerate() {
        if variable.find('=').unwrap_or(0) == 0 {
            return Err(invalid(&format!("process.env[{index}]"), format!("{variable:?} is not NAME=value")));
        }
    }
    let strings = process.args.iter().map(|s| ("process.args", s));
    for (path, string) in strings.chain(process.env.iter().map(|s| ("process.env", s))) {
        if string.contains('\0') {
            return Err(invalid(path, format!("{string:?} contains a NUL byte")));
        }
    }
    for (index, limit) in process.rlimits.iter().enumerate() {
        if process.rlimits[..index].iter().any(|earlier| earlier.kind == limit.kind) {
            return Err(invalid(
                &format!("process.rlimits[{index}].type"),
                format!("duplicate {}", limit.kind),
            ));
        }
    }
    refusals::check_process(process)
}

/// Returns the size of the shared memory that an engine made for the container, if this mount binds it: a tmpfs that is mounted on
/// `source` itself, and is not the one that the host's own programs use.
fn shared_memory(mount: &Mount, source: &Path) -> Option<u64> {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    if mount.destination != "/dev/shm" || MountOptions::parse(&mount.options).read_only() {
        return None;
    }
    let statistics = rustix::fs::statfs(source).ok().filter(|it| it.f_type == TMPFS_MAGIC)?;
    let metadata = fs::metadata(source).ok()?;
    let is_of = |path: &Path| fs::metadata(path).is_ok_and(|other| other.dev() == metadata.dev());
    if source.file_name().is_none_or(|name| name != "shm")
        || is_of(source.parent()?)
        || is_of("/dev/shm".as_ref())
    {
        return None;
    }
    Some(statistics.f_blocks * statistics.f_bsize as u64)
}

fn directory_at(what: &str, path: &Path) -> Result<()> {
    let error = |source| BundleError::Source { what: what.to_owned(), path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(error)?;
    if metadata.is_dir() { Ok(()) } else { Err(error(io::Error::from_raw_os_error(libc::ENOTDIR))) }
}

/// Returns the MS_* flags of the mount on which `path` is. The access times of a mount without flags are those of the
/// kernel's default.
fn source_flags(path: &Path) -> u64 {
    const KEPT: [(u64, u64); 7] = [
        (libc::ST_RDONLY, libc::MS_RDONLY),
        (libc::ST_NOSUID, libc::MS_NOSUID),
        (libc::ST_NODEV, libc::MS_NODEV),
        (libc::ST_NOEXEC, libc::MS_NOEXEC),
        (libc::ST_NOATIME, libc::MS_NOATIME),
        (libc::ST_NODIRATIME, libc::MS_NODIRATIME),
        (ST_NOSYMFOLLOW, MS_NOSYMFOLLOW),
    ];
    let Ok(seen) = rustix::fs::statvfs(path) else { return 0 };
    let seen = seen.f_flag.bits();
    KEPT.iter().filter(|(of_stat, _)| seen & of_stat != 0).fold(0, |flags, (_, flag)| flags | flag)
}

/// Returns what a mount binds if it is no regular file: a directory, the number of a device, because the guest may have a device like it, the
/// attributes of a socket, whose connections are carried, or a named pipe.
fn bind_source_at(what: &str, path: &Path) -> Result<Option<Special>> {
    let metadata = fs::metadata(path).map_err(|source| BundleError::Source {
        what: what.to_owned(),
        path: path.to_owned(),
        source,
    })?;
    let kind = metadata.file_type();
    Ok(match kind {
        _ if kind.is_socket() => {
            let (mode, uid, gid) = (metadata.mode() & 0o777, metadata.uid(), metadata.gid());
            Some(Special::Socket(SocketFile { mode, uid, gid }))
        }
        _ if kind.is_dir() => Some(Special::Directory),
        _ if kind.is_fifo() => Some(Special::Pipe),
        _ if kind.is_char_device() || kind.is_block_device() => {
            let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
            Some(Special::Device(DeviceNode { is_block: kind.is_block_device(), major, minor }))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests;
