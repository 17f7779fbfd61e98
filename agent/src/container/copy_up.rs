//! `tmpcopyup`: copies the content of the directory that a mount hides into the new mount.
//!
//! The directory belongs to the container's image: links are copied, never followed, and the depth is limited.

use alloc::borrow::ToOwned;
use alloc::ffi::CString;
use alloc::vec::Vec;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, Uid, chmodat, chownat, fchmod, fchown, fstat, mkdirat,
    mknodat, openat, readlinkat, sendfile, statat, symlinkat,
};
use rustix::fs::{Gid, Timespec, Timestamps, utimensat};
use rustix::io::{Errno, Result};

/// Limit of nested directories. Each needs two file descriptors while it is copied.
const DEPTH_MAX: usize = 100;
/// Limit of bytes that one call copies.
const PIECE: usize = 1 << 20;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Copies the content of directory `from` to `to`, with owners and modes.
pub fn copy(from: &impl AsFd, to: &impl AsFd) -> Result<()> {
    let from = openat(from, ".", DIRECTORY, Mode::empty())?;
    let to = openat(to, ".", DIRECTORY, Mode::empty())?;
    copy_directory(&from, &to, DEPTH_MAX)
}

fn copy_directory(from: &OwnedFd, to: &OwnedFd, depth: usize) -> Result<()> {
    let deeper = depth.checked_sub(1).ok_or(Errno::NAMETOOLONG)?;
    for name in names(from)? {
        let stat = statat(from, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mode = Mode::from_raw_mode(stat.st_mode);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                mkdirat(to, &name, Mode::RWXU)?;
                let below = openat(from, &name, DIRECTORY, Mode::empty())?;
                copy_directory(&below, &openat(to, &name, DIRECTORY, Mode::empty())?, deeper)?;
                continue;
            }
            FileType::RegularFile => copy_file(from, to, &name)?,
            FileType::Symlink => symlinkat(readlinkat(from, &name, Vec::new())?, to, &name)?,
            kind => mknodat(to, &name, kind, mode, stat.st_rdev)?,
        }
        let (uid, gid) = owner(&stat);
        chownat(to, &name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            // After the owner, because a change of owner clears set-user-ID.
            chmodat(to, &name, mode, AtFlags::empty())?;
        }
        utimensat(to, &name, &times(&stat), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    let stat = fstat(from)?;
    let (uid, gid) = owner(&stat);
    fchown(to, uid, gid)?;
    fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    rustix::fs::futimens(to, &times(&stat))
}

fn names(directory: &OwnedFd) -> Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if name.as_bytes() != b"." && name.as_bytes() != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

fn copy_file(from: &OwnedFd, to: &OwnedFd, name: &CString) -> Result<()> {
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let from = openat(from, name, read, Mode::empty())?;
    let to = openat(to, name, write, Mode::RUSR | Mode::WUSR)?;
    while sendfile(&to, &from, None, PIECE)? > 0 {}
    Ok(())
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as i64 };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::PathBuf;

    use super::*;

    fn tree(name: &str) -> PathBuf {
        let top = std::env::temp_dir().join(format!("agent-copy-up-{}-{name}", std::process::id()));
        fs::create_dir_all(top.join("from")).unwrap();
        fs::create_dir_all(top.join("to")).unwrap();
        top
    }

    fn copy_in(top: &std::path::Path) -> Result<()> {
        let open = |name: &str| {
            rustix::fs::open(top.join(name).to_str().unwrap(), DIRECTORY, Mode::empty()).unwrap()
        };
        copy(&open("from"), &open("to"))
    }

    #[test]
    fn files_links_and_directories_are_copied_with_their_modes() {
        let top = tree("modes");
        let from = top.join("from");
        fs::create_dir_all(from.join("d/e")).unwrap();
        fs::write(from.join("d/e/f"), vec![7; 3 << 20]).unwrap();
        fs::write(from.join("empty"), "").unwrap();
        symlink("/nowhere", from.join("d/l")).unwrap();
        fs::set_permissions(from.join("d/e/f"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::set_permissions(from.join("d/e"), fs::Permissions::from_mode(0o2510)).unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o1777)).unwrap();
        copy_in(&top).unwrap();
        let to = top.join("to");
        assert_eq!(fs::read(to.join("d/e/f")).unwrap(), vec![7; 3 << 20]);
        assert_eq!(fs::read_link(to.join("d/l")).unwrap(), PathBuf::from("/nowhere"));
        for name in ["", "d", "d/e", "d/e/f", "empty"] {
            let (a, b) = (fs::metadata(from.join(name)).unwrap(), fs::metadata(to.join(name)).unwrap());
            assert_eq!((a.mode(), a.mtime_nsec(), a.len()), (b.mode(), b.mtime_nsec(), b.len()), "{name}");
        }
        fs::set_permissions(to.join("d/e"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(from.join("d/e"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::remove_dir_all(top).unwrap();
    }

    #[test]
    fn depth_is_limited() {
        let top = tree("depth");
        fs::create_dir_all(top.join("from").join("d/".repeat(DEPTH_MAX))).unwrap();
        assert_eq!(copy_in(&top), Err(Errno::NAMETOOLONG));
        fs::remove_dir_all(top).unwrap();
    }
}
