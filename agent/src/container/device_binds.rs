//! Bind mounts of the guest's devices on files of a container: `-v /dev/null:/etc/motd`.

use alloc::format;

use agent_proto::payload::Mount;
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat};
use rustix::io::Errno;

use crate::container::rootfs::{READ_ONLY, Root, bind_tree};
use crate::error::{Error, Step};
use crate::sys::MountAttributes;

/// MOUNT_ATTR_NOSUID, _NODEV and _NOEXEC, which have the same numbers as in mount(2).
const RESTRICTIONS: u64 = 0xe;

/// Binds the device that `entry` names. The mount is read-only so that a container cannot change the node's mode or owner:
/// all containers of the pod share the node. The device can still be written to.
pub fn bind(root: &Root, entry: &Mount) -> Result<(), Error> {
    let Some((kind, major, minor)) = number(&entry.source) else {
        return Err(Error::bad_request(format!("bind {}: no device {:?}", entry.destination, entry.source)));
    };
    // In the agent's root file system: a container with SYS_ADMIN can mount the agent's devtmpfs and replace nodes in it.
    let letter = if kind == FileType::BlockDevice { 'b' } else { 'c' };
    let path = format!("/run/device-{letter}-{major}-{minor}");
    match mknodat(CWD, path.as_str(), kind, Mode::from_raw_mode(0o666), makedev(major, minor)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno).step("make device", &path),
    }
    let source =
        rustix::fs::open(path.as_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).step("open", &path)?;
    let set = READ_ONLY | entry.flags & RESTRICTIONS;
    let attributes = MountAttributes { set, ..MountAttributes::default() };
    bind_tree(root, &source, &entry.destination, false, attributes).map(drop)
}

/// Parses `c 1:3`.
fn number(source: &str) -> Option<(FileType, u32, u32)> {
    let (kind, number) = source.split_once(' ')?;
    let kind = match kind {
        "c" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        _ => return None,
    };
    let (major, minor) = number.split_once(':')?;
    Some((kind, major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_a_letter_and_two_numbers() {
        assert_eq!(number("c 1:3"), Some((FileType::CharacterDevice, 1, 3)));
        assert_eq!(number("b 7:255"), Some((FileType::BlockDevice, 7, 255)));
        for wrong in ["", "c", "c 1", "c 1:", "p 1:3", "c 1:-3"] {
            assert_eq!(number(wrong), None, "{wrong}");
        }
    }
}
