//! A container's mounts, in order, and the paths that are then masked or made read-only.

use alloc::borrow::Cow;
use alloc::ffi::CString;
use alloc::format;

use agent_proto::payload::{self, FsMap, Mount};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::container::paths;
use crate::container::rootfs::{Root, attach_tree, bind_tree, clone_tree, kind};
use crate::container::{copy_up, device_binds};
use crate::error::{Error, Step};
use crate::sys::{self, MountAttributes};

/// The flags of mount(2) that are used here.
mod ms {
    pub(super) const RDONLY: u64 = 1;
    pub(super) const NOSYMFOLLOW: u64 = 1 << 8;
    pub(super) const NOATIME: u64 = 1 << 10;
    pub(super) const NODIRATIME: u64 = 1 << 11;
    pub(super) const BIND: u64 = 1 << 12;
    pub(super) const REC: u64 = 1 << 14;
    pub(super) const RELATIME: u64 = 1 << 21;
    pub(super) const STRICTATIME: u64 = 1 << 24;
}

/// The attributes of mount_setattr(2). The lowest four have the same numbers as in mount(2).
mod attr {
    pub(super) const SAME_AS_MS: u64 = 0xf;
    pub(super) const ATIME_MASK: u64 = 0x70;
    pub(super) const NOATIME: u64 = 0x10;
    pub(super) const STRICTATIME: u64 = 0x20;
    pub(super) const NODIRATIME: u64 = 0x80;
    pub(super) const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// Mounts one entry of the container's list.
pub fn mount(root: &Root, share: &Root, entry: &Mount) -> Result<(), Error> {
    if entry.kind == payload::POD_SHM {
        return bind_agent_file(root, paths::SHM, &entry.destination);
    }
    if entry.kind == payload::HOST_SOCKET {
        return bind_agent_file(root, &paths::socket(&entry.source), &entry.destination);
    }
    if entry.kind == payload::OWN_DEVICE {
        return device_binds::bind(root, entry);
    }
    if entry.kind == "bind" || entry.flags & ms::BIND != 0 {
        return bind(root, share, entry);
    }
    // The guest has only cgroup version 2; the specification calls it "cgroup".
    let kind = if entry.kind == "cgroup" { "cgroup2" } else { entry.kind.as_str() };
    let what = format!("{kind} on {}", entry.destination);
    let options =
        if kind == "tmpfs" { tmpfs_options(root, entry) } else { Cow::Borrowed(entry.data.as_str()) };
    let data = CString::new(options.as_ref())
        .map_err(|_| Error::bad_request(format!("mount {what}: data contains a NUL byte")))?;
    let target = root.create_directory(&entry.destination)?;
    // Make the target the working directory, so that no path to it can be changed meanwhile.
    rustix::process::fchdir(&target).step("enter", &entry.destination)?;
    let later = if is_read_only_later(entry) { ms::RDONLY } else { 0 };
    let flags = MountFlags::from_bits_retain((entry.flags & !later) as u32);
    let data = (!data.is_empty()).then_some(data.as_c_str());
    let source = if entry.source.is_empty() { kind } else { entry.source.as_str() };
    rustix::mount::mount(source, ".", kind, flags, data).step("mount", &what)?;
    let mounted = root.find(&entry.destination).step("open", &entry.destination)?;
    if entry.copy_up {
        copy_up::copy(&target, &mounted).step("copy up", &entry.destination)?;
    }
    apply_attributes(&mounted, entry)
}

/// Returns the options of a tmpfs. As with runc it has the mode of the directory that it covers, unless its options name
/// one: the kernel uses the last.
fn tmpfs_options<'a>(root: &Root, entry: &'a Mount) -> Cow<'a, str> {
    match root.find(&entry.destination).and_then(rustix::fs::fstat) {
        Ok(covered) => Cow::Owned(format!("mode={:o},{}", covered.st_mode & 0o7777, entry.data)),
        Err(_) => Cow::Borrowed(&entry.data),
    }
}

/// Whether a mount becomes read-only only after all mounts: mount points may have to be created in a tmpfs.
pub fn is_read_only_later(entry: &Mount) -> bool {
    entry.kind == "tmpfs" && entry.flags & ms::RDONLY != 0
}

/// Applies propagation and recursive attributes to a new mount.
fn apply_attributes(mounted: &OwnedFd, entry: &Mount) -> Result<(), Error> {
    if entry.recursive_set | entry.recursive_clear != 0 {
        let (set, clear) = (entry.recursive_set, entry.recursive_clear);
        let attributes = MountAttributes { set, clear, ..MountAttributes::default() };
        sys::mount_setattr(mounted.as_fd(), true, attributes).step("set options of", &entry.destination)?;
    }
    match entry.propagation {
        0 => Ok(()),
        propagation => set_propagation(mounted, &entry.destination, propagation),
    }
}

fn bind(root: &Root, share: &Root, entry: &Mount) -> Result<(), Error> {
    let source = share.find_shared(&entry.source).step("open share path", &entry.source)?;
    let tree =
        bind_tree(root, &source, &entry.destination, entry.flags & ms::REC != 0, attributes(entry.flags))?;
    apply_attributes(&tree, entry)
}

/// Sets the propagation of the mount at `path`.
pub fn set_propagation(mounted: &impl AsFd, path: &str, propagation: u64) -> Result<(), Error> {
    let recursive = propagation & ms::REC != 0;
    let attributes = MountAttributes { propagation: propagation & !ms::REC, ..MountAttributes::default() };
    sys::mount_setattr(mounted.as_fd(), recursive, attributes).step("set propagation of", path)
}

/// Bind-mounts one of API 4244's shared files or directories.
pub fn map(root: &Root, share: &Root, entry: &FsMap) -> Result<(), Error> {
    let path = if entry.docker_volume { format!("{}/_data", entry.source) } else { entry.source.clone() };
    let source = share.find_shared(&path).step("open share path", &path)?;
    let flags = if entry.read_only { ms::RDONLY } else { 0 };
    bind_tree(root, &source, &entry.path, true, attributes(flags)).map(drop)
}

/// Bind-mounts a file of the agent's mount namespace.
pub fn bind_agent_file(root: &Root, path: &str, destination: &str) -> Result<(), Error> {
    let source =
        rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).step("open", path)?;
    bind_tree(root, &source, destination, false, MountAttributes::default()).map(drop)
}

/// Converts flags of mount(2) to attributes of mount_setattr(2).
fn attributes(flags: u64) -> MountAttributes {
    let mut set = flags & attr::SAME_AS_MS;
    let mut clear = 0;
    if flags & (ms::NOATIME | ms::RELATIME | ms::STRICTATIME) != 0 {
        clear |= attr::ATIME_MASK;
        set |= match flags {
            flags if flags & ms::NOATIME != 0 => attr::NOATIME,
            flags if flags & ms::STRICTATIME != 0 => attr::STRICTATIME,
            _ => 0,
        };
    }
    if flags & ms::NODIRATIME != 0 {
        set |= attr::NODIRATIME;
    }
    if flags & ms::NOSYMFOLLOW != 0 {
        set |= attr::NOSYMFOLLOW;
    }
    MountAttributes { set, clear, ..MountAttributes::default() }
}

/// Masks `path`: a directory by an empty one, a file by /dev/null. A missing path is ignored.
pub fn mask(root: &Root, null: &OwnedFd, path: &str) -> Result<(), Error> {
    let Some(target) = find(root, path)? else { return Ok(()) };
    if kind(&target) == FileType::Directory {
        rustix::process::fchdir(&target).step("enter", path)?;
        return rustix::mount::mount("tmpfs", ".", "tmpfs", MountFlags::RDONLY, None).step("mask", path);
    }
    let tree = clone_tree(null.as_fd(), false).step("mask", path)?;
    attach_tree(&tree, target.as_fd()).step("mask", path)
}

/// Makes `path` read-only, if it exists.
pub fn set_read_only(root: &Root, path: &str) -> Result<(), Error> {
    let Some(target) = find(root, path)? else { return Ok(()) };
    let tree = clone_tree(target.as_fd(), true).step("bind-mount", path)?;
    let attributes = MountAttributes { set: ms::RDONLY, ..MountAttributes::default() };
    sys::mount_setattr(tree.as_fd(), false, attributes).step("make read-only", path)?;
    attach_tree(&tree, target.as_fd()).step("make read-only", path)
}

fn find(root: &Root, path: &str) -> Result<Option<OwnedFd>, Error> {
    match root.find(path) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno).step("open", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_flags_keep_their_numbers() {
        let attributes = attributes(ms::RDONLY | 2 | 4 | 8 | ms::BIND | ms::REC);
        assert_eq!(attributes, MountAttributes { set: 0xf, ..MountAttributes::default() });
    }

    #[test]
    fn access_time_replaces_the_previous_setting() {
        let expect = |set| MountAttributes { set, clear: attr::ATIME_MASK, ..MountAttributes::default() };
        assert_eq!(attributes(ms::NOATIME), expect(0x10));
        assert_eq!(attributes(ms::STRICTATIME), expect(0x20));
        assert_eq!(attributes(ms::RELATIME), expect(0));
    }

    #[test]
    fn flags_with_other_numbers_are_translated() {
        assert_eq!(attributes(ms::NODIRATIME | ms::NOSYMFOLLOW).set, 0x20_0080);
    }
}
