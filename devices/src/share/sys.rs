// UNSAFETY: the *at() family on O_PATH descriptors, vectored I/O on guest memory and per-thread credentials exist only
// as raw system calls; each is wrapped here in a function that is safe to call.
#![allow(unsafe_code)]
//! Host system calls for the file server. The functions make no decisions and return the kernel's results.

use std::ffi::CStr;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::c_int;
use vm_memory::VolatileSlice;

use super::errno::{Errno, Result};
use super::mount_copy::{AccessTime, MountCopy};
use crate::vectored::vector;

pub mod lock;
pub mod socket;

/// A `struct stat` of the host.
pub type Stat = libc::stat64;

fn last() -> Errno {
    std::io::Error::last_os_error().into()
}

fn check(result: c_int) -> Result<()> {
    if result < 0 { Err(last()) } else { Ok(()) }
}

fn check_len(result: isize) -> Result<usize> {
    usize::try_from(result).map_err(|_| last())
}

/// Takes ownership of a file descriptor that a system call has just returned.
fn owned(fd: c_int) -> Result<OwnedFd> {
    check(fd)?;
    // SAFETY: the kernel has just returned this descriptor, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens `name` in `dir`, always close-on-exec.
pub fn openat(dir: BorrowedFd, name: &CStr, flags: c_int, mode: u32) -> Result<OwnedFd> {
    // SAFETY: `name` ends with NUL and outlives the call.
    owned(unsafe { libc::openat64(dir.as_raw_fd(), name.as_ptr(), flags | libc::O_CLOEXEC, mode) })
}

/// Opens /proc/self/fd, the directory through which an O_PATH descriptor is reopened for reading and writing. It is on a
/// mount of its own, which shows only this process, because from any directory `..` leads to the rest of its mount. Without
/// the privilege to mount, it is the host's.
pub fn open_proc_self_fd() -> Result<OwnedFd> {
    if let Ok(own) =
        own_proc().and_then(|proc| openat(proc.as_fd(), c"self/fd", libc::O_PATH | libc::O_DIRECTORY, 0))
    {
        return Ok(own);
    }
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the path is a literal that ends with NUL.
    owned(unsafe { libc::open64(c"/proc/self/fd".as_ptr(), flags) })
}

/// Returns the root of a new mount of procfs, in no namespace, without the files of the kernel and of other processes.
fn own_proc() -> Result<OwnedFd> {
    // Numbers of linux/mount.h.
    const CLOEXEC: libc::c_uint = 1;
    const SET_STRING: libc::c_uint = 1;
    const CREATE: libc::c_uint = 6;
    // SAFETY: the name ends with NUL.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, c"proc".as_ptr(), CLOEXEC) } as c_int)?;
    let raw = context.as_raw_fd();
    for (key, value) in [(c"subset", c"pid"), (c"hidepid", c"ptraceable")] {
        // SAFETY: key and value end with NUL.
        let set = unsafe {
            libc::syscall(libc::SYS_fsconfig, raw, SET_STRING, key.as_ptr(), value.as_ptr(), 0 as c_int)
        };
        check(set as c_int)?;
    }
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: this command takes neither key nor value.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, raw, CREATE, none, none, 0 as c_int) } as c_int)?;
    let attributes = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
    // SAFETY: no pointers.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, raw, CLOEXEC, attributes as libc::c_uint) } as c_int)
}

/// Returns the attributes of the file of `fd`.
pub fn fstat(fd: BorrowedFd) -> Result<Stat> {
    let mut stat = MaybeUninit::<Stat>::uninit();
    // SAFETY: the kernel fills the whole structure if it succeeds.
    check(unsafe { libc::fstat64(fd.as_raw_fd(), stat.as_mut_ptr()) })?;
    // SAFETY: filled by the call above, which succeeded.
    Ok(unsafe { stat.assume_init() })
}

/// Returns the attributes of `name` in `dir`. Does not follow symbolic links.
pub fn stat_at(dir: BorrowedFd, name: &CStr) -> Result<Stat> {
    let mut stat = MaybeUninit::<Stat>::uninit();
    // SAFETY: `name` ends with NUL; the kernel fills the whole structure if it succeeds.
    check(unsafe {
        libc::fstatat64(dir.as_raw_fd(), name.as_ptr(), stat.as_mut_ptr(), libc::AT_SYMLINK_NOFOLLOW)
    })?;
    // SAFETY: filled by the call above, which succeeded.
    Ok(unsafe { stat.assume_init() })
}

/// Birth time of a file in seconds and nanoseconds; `None` if the file system does not store it.
pub type Birth = Option<(i64, u32)>;

/// Returns device and inode number, S_IFMT bits and birth time of `name` in `dir`, or of `dir` itself if the name is
/// empty.
pub fn identity(dir: BorrowedFd, name: &CStr) -> Result<((u64, u64), u32, Birth)> {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW;
    let mask = libc::STATX_TYPE | libc::STATX_INO | libc::STATX_BTIME;
    // SAFETY: `name` ends with NUL; the kernel fills the structure if it succeeds.
    check(unsafe { libc::statx(dir.as_raw_fd(), name.as_ptr(), flags, mask, stat.as_mut_ptr()) })?;
    // SAFETY: all zeros is a valid value, and the call above has filled it.
    let stat = unsafe { stat.assume_init() };
    let dev = libc::makedev(stat.stx_dev_major, stat.stx_dev_minor);
    let birth =
        (stat.stx_mask & libc::STATX_BTIME != 0).then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec));
    Ok(((dev, stat.stx_ino), u32::from(stat.stx_mode) & libc::S_IFMT, birth))
}

/// Limit of bytes in a file handle (MAX_HANDLE_SZ of linux/exportfs.h).
pub const MAX_HANDLE: usize = 128;
/// Requests a handle that identifies a file, but need not be usable to open it (Linux 6.5; same value as AT_REMOVEDIR).
const AT_HANDLE_FID: c_int = 0x200;

/// A file system's handle of a file: the handle's type and bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHandle(pub c_int, pub Box<[u8]>);

#[repr(C)]
struct RawHandle {
    len: u32,
    kind: c_int,
    bytes: [u8; MAX_HANDLE],
}

/// Returns the handle of `name` in `dir`, or of `dir` itself if the name is empty. `None` if the file system has no
/// handles.
pub fn file_handle(dir: BorrowedFd, name: &CStr) -> Result<Option<FileHandle>> {
    for more in [0, AT_HANDLE_FID] {
        let mut handle = RawHandle { len: MAX_HANDLE as u32, kind: 0, bytes: [0; MAX_HANDLE] };
        let (mut mount, flags) = (0 as c_int, libc::AT_EMPTY_PATH | more);
        let (pointer, mount_id) = (&raw mut handle, &raw mut mount);
        // SAFETY: `name` ends with NUL; the kernel writes at most `len` bytes behind the header, and the mount's
        // number.
        let result = check_len(unsafe {
            let number = libc::SYS_name_to_handle_at;
            libc::syscall(number, dir.as_raw_fd(), name.as_ptr(), pointer, mount_id, flags) as isize
        });
        match result {
            Ok(_) => {
                let len = (handle.len as usize).min(MAX_HANDLE);
                return Ok(Some(FileHandle(handle.kind, handle.bytes[..len].into())));
            }
            // EINVAL: the kernel does not know the flag.
            Err(Errno(libc::EOPNOTSUPP | libc::EOVERFLOW | libc::EINVAL | libc::ENOSYS)) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}

/// `struct mount_attr` of linux/mount.h.
#[derive(Default)]
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Returns the directory `dir` on a copy of its mount, and of all mounts below unless the copy is of a single one. The
/// copy is in no mount namespace, has the options nodev and nosuid, and exists until its last file descriptor is closed.
pub fn clone_mount(dir: BorrowedFd, how: MountCopy) -> Result<OwnedFd> {
    let below = if how.single { 0 } else { libc::AT_RECURSIVE };
    let empty = (libc::AT_EMPTY_PATH | below) as libc::c_uint;
    let flags = empty | libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: the empty path names `dir` itself.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), c"".as_ptr(), flags) };
    let copy = owned(fd as c_int)?;
    let (set, propagation) = (libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID, libc::MS_PRIVATE);
    set_attributes(copy.as_fd(), empty, &MountAttributes { set, propagation, ..Default::default() })?;
    if let Some(AccessTime { attributes: set, recursive }) = how.access_time {
        let flags = if recursive { empty } else { libc::AT_EMPTY_PATH as libc::c_uint };
        let clear = libc::MOUNT_ATTR__ATIME;
        set_attributes(copy.as_fd(), flags, &MountAttributes { set, clear, ..Default::default() })?;
    }
    if how.read_only {
        let (set, top) = (libc::MOUNT_ATTR_RDONLY, libc::AT_EMPTY_PATH as libc::c_uint);
        set_attributes(copy.as_fd(), top, &MountAttributes { set, ..Default::default() })?;
    }
    Ok(copy)
}

fn set_attributes(mount: BorrowedFd, flags: libc::c_uint, attributes: &MountAttributes) -> Result<()> {
    let (pointer, len) = (std::ptr::from_ref(attributes), size_of::<MountAttributes>());
    // SAFETY: the empty path names `mount` itself; the kernel reads `len` bytes of `attributes`.
    check(unsafe {
        let number = libc::SYS_mount_setattr;
        libc::syscall(number, mount.as_raw_fd(), c"".as_ptr(), flags, pointer, len) as c_int
    })
}

/// Creates a directory.
pub fn mkdirat(dir: BorrowedFd, name: &CStr, mode: u32) -> Result<()> {
    // SAFETY: `name` ends with NUL and outlives the call.
    check(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) })
}

/// Creates a file, FIFO, socket or device node.
pub fn mknodat(dir: BorrowedFd, name: &CStr, mode: u32, rdev: u32) -> Result<()> {
    // SAFETY: `name` ends with NUL and outlives the call.
    check(unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, u64::from(rdev)) })
}

/// Creates a symbolic link to `target`.
pub fn symlinkat(target: &CStr, dir: BorrowedFd, name: &CStr) -> Result<()> {
    // SAFETY: both strings end with NUL and outlive the call.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) })
}

/// Creates a hard link `name` in `dir` to the target of the magic link `from` in `from_dir`.
pub fn link_magic(from_dir: BorrowedFd, from: &CStr, dir: BorrowedFd, name: &CStr) -> Result<()> {
    let (from_dir, dir) = (from_dir.as_raw_fd(), dir.as_raw_fd());
    // SAFETY: both strings end with NUL and outlive the call.
    check(unsafe { libc::linkat(from_dir, from.as_ptr(), dir, name.as_ptr(), libc::AT_SYMLINK_FOLLOW) })
}

/// Removes a directory entry. `flags` is 0 or AT_REMOVEDIR.
pub fn unlinkat(dir: BorrowedFd, name: &CStr, flags: c_int) -> Result<()> {
    // SAFETY: `name` ends with NUL and outlives the call.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), flags) })
}

/// Renames a directory entry, with `flags` of renameat2(2).
pub fn renameat(from: BorrowedFd, old: &CStr, to: BorrowedFd, new: &CStr, flags: u32) -> Result<()> {
    // SAFETY: both strings end with NUL and outlive the call.
    check(unsafe { libc::renameat2(from.as_raw_fd(), old.as_ptr(), to.as_raw_fd(), new.as_ptr(), flags) })
}

/// Reads the target of the symbolic link `name` in `dir`, or of `dir` itself if the name is empty. Returns the number of
/// bytes written to `buffer`.
pub fn readlink(dir: BorrowedFd, name: &CStr, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: `name` ends with NUL; the kernel writes at most `buffer.len()` bytes to `buffer`.
    check_len(unsafe {
        libc::readlinkat(dir.as_raw_fd(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
    })
}

/// Returns the flags with which a file was opened, as far as it keeps them.
pub fn open_flags(fd: BorrowedFd) -> Result<c_int> {
    // SAFETY: no pointers.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    check(flags).map(|()| flags)
}

/// Changes the mode of the target of the magic link `name` in `dir`.
pub fn chmod_magic(dir: BorrowedFd, name: &CStr, mode: u32) -> Result<()> {
    // SAFETY: `name` ends with NUL and outlives the call.
    check(unsafe { libc::fchmodat(dir.as_raw_fd(), name.as_ptr(), mode, 0) })
}

/// Changes owner and group of the file of `fd`. `u32::MAX` leaves an ID unchanged.
pub fn chown(fd: BorrowedFd, uid: u32, gid: u32) -> Result<()> {
    // SAFETY: the empty path names `fd` itself.
    check(unsafe { libc::fchownat(fd.as_raw_fd(), c"".as_ptr(), uid, gid, libc::AT_EMPTY_PATH) })
}

/// Sets access and modification time of the file of `fd`.
pub fn utimens(fd: BorrowedFd, times: &[libc::timespec; 2]) -> Result<()> {
    // SAFETY: the empty path names `fd` itself; `times` are the two structures the call reads.
    check(unsafe { libc::utimensat(fd.as_raw_fd(), c"".as_ptr(), times.as_ptr(), libc::AT_EMPTY_PATH) })
}

/// Sets a file's length.
pub fn ftruncate(fd: BorrowedFd, len: i64) -> Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::ftruncate64(fd.as_raw_fd(), len) })
}

/// Allocates or frees blocks: fallocate(2).
pub fn fallocate(fd: BorrowedFd, mode: c_int, offset: i64, len: i64) -> Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::fallocate64(fd.as_raw_fd(), mode, offset, len) })
}

/// Changes the offset of a file descriptor. Returns the new offset.
pub fn lseek(fd: BorrowedFd, offset: i64, whence: c_int) -> Result<u64> {
    // SAFETY: no pointers.
    u64::try_from(unsafe { libc::lseek64(fd.as_raw_fd(), offset, whence) }).map_err(|_| last())
}

/// Copies between two files inside the kernel. Returns the number of bytes copied.
pub fn copy_file_range(from: (BorrowedFd, i64), to: (BorrowedFd, i64), len: usize) -> Result<usize> {
    let (mut from_offset, mut to_offset) = (from.1, to.1);
    // SAFETY: both offsets are locals that outlive the call.
    check_len(unsafe {
        let (from, to) = (from.0.as_raw_fd(), to.0.as_raw_fd());
        libc::copy_file_range(from, &mut from_offset, to, &mut to_offset, len, 0)
    })
}

/// Writes a file's data to disk, and its attributes unless `data_only`.
pub fn fsync(fd: BorrowedFd, data_only: bool) -> Result<()> {
    // SAFETY: no pointers.
    check(unsafe { if data_only { libc::fdatasync(fd.as_raw_fd()) } else { libc::fsync(fd.as_raw_fd()) } })
}

/// Writes the whole file system of `fd` to disk.
pub fn syncfs(fd: BorrowedFd) -> Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::syncfs(fd.as_raw_fd()) })
}

/// Returns size and usage of the file system of `fd`.
pub fn statvfs(fd: BorrowedFd) -> Result<libc::statvfs64> {
    let mut stat = MaybeUninit::uninit();
    // SAFETY: the C library fills the whole structure if the call succeeds.
    check(unsafe { libc::fstatvfs64(fd.as_raw_fd(), stat.as_mut_ptr()) })?;
    // SAFETY: filled by the call above, which succeeded.
    Ok(unsafe { stat.assume_init() })
}

/// Returns the type of the file system that `fd` is on, as in statfs(2), and whether its mount is read-only.
pub fn file_system(fd: BorrowedFd) -> Result<(i64, bool)> {
    let mut stat = MaybeUninit::<libc::statfs64>::uninit();
    // SAFETY: the kernel fills the whole structure if it succeeds.
    check(unsafe { libc::fstatfs64(fd.as_raw_fd(), stat.as_mut_ptr()) })?;
    // SAFETY: filled by the call above, which succeeded.
    let stat = unsafe { stat.assume_init() };
    Ok((stat.f_type, stat.f_flags & libc::ST_RDONLY as i64 != 0))
}

/// Reads the extended attribute `name` of the file at `path`. With an empty `value` it returns the length.
pub fn getxattr(path: &CStr, name: &CStr, value: &mut [u8]) -> Result<usize> {
    let (pointer, len) = (value.as_mut_ptr().cast(), value.len());
    // SAFETY: both strings end with NUL; the kernel writes at most `len` bytes to `value`.
    check_len(unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), pointer, len) })
}

/// Lists the names of the extended attributes of the file at `path`, each terminated by NUL.
pub fn listxattr(path: &CStr, names: &mut [u8]) -> Result<usize> {
    // SAFETY: `path` ends with NUL; the kernel writes at most `names.len()` bytes to `names`.
    check_len(unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) })
}

/// Sets an extended attribute. `flags` is 0, XATTR_CREATE or XATTR_REPLACE.
pub fn setxattr(path: &CStr, name: &CStr, value: &[u8], flags: c_int) -> Result<()> {
    let (pointer, len) = (value.as_ptr().cast(), value.len());
    // SAFETY: both strings end with NUL; the kernel reads `len` bytes of `value`.
    check(unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), pointer, len, flags) })
}

/// Removes an extended attribute.
pub fn removexattr(path: &CStr, name: &CStr) -> Result<()> {
    // SAFETY: both strings end with NUL and outlive the call.
    check(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) })
}

/// Reads or sets the flags of a file by one of the ioctls of [`FlagsCommand`](super::chattr::FlagsCommand).
pub fn flags(fd: BorrowedFd, number: u32, data: &mut [u8]) -> Result<()> {
    let mut buffer = [0; 32];
    buffer.get_mut(..data.len()).ok_or(Errno(libc::EINVAL))?.copy_from_slice(data);
    // SAFETY: these ioctls read or write at most 28 bytes.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::c_ulong::from(number) as _, buffer.as_mut_ptr()) })?;
    data.copy_from_slice(&buffer[..data.len()]);
    Ok(())
}

/// Fills `buffer` with `struct linux_dirent64` records. Returns the number of bytes used, 0 at the end.
pub fn getdents(fd: BorrowedFd, buffer: &mut [u8]) -> Result<usize> {
    let (pointer, len) = (buffer.as_mut_ptr(), buffer.len());
    // SAFETY: the kernel writes at most `len` bytes to `buffer`.
    let count = unsafe { libc::syscall(libc::SYS_getdents64, fd.as_raw_fd(), pointer, len) };
    usize::try_from(count).map_err(|_| last())
}

/// Returns a new inotify descriptor, which never blocks.
pub fn inotify() -> Result<File> {
    // SAFETY: no pointers.
    owned(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) }).map(File::from)
}

/// Adds the file at `path` to an inotify descriptor. Returns the number of the watch.
pub fn inotify_add(events: BorrowedFd, path: &CStr, mask: u32) -> Result<c_int> {
    // SAFETY: `path` ends with NUL.
    let watch = unsafe { libc::inotify_add_watch(events.as_raw_fd(), path.as_ptr(), mask) };
    check(watch)?;
    Ok(watch)
}

/// Removes a watch from an inotify descriptor. A watch that has ended is ignored.
pub fn inotify_remove(events: BorrowedFd, watch: c_int) {
    // SAFETY: no pointers.
    unsafe { libc::inotify_rm_watch(events.as_raw_fd(), watch) };
}

/// Offset for the files that have none, such as pipes.
pub const NO_OFFSET: i64 = -1;

/// Reads from a file directly into guest memory. Returns the number of bytes read.
pub fn preadv(file: &File, slices: &[VolatileSlice], offset: i64) -> Result<usize> {
    let vector = vector(slices);
    let count = vector.len() as c_int;
    // SAFETY: each piece is in a guest mapping that `slices` keeps borrowed. The guest may write there at the same
    // time, which VolatileSlice allows, and no Rust reference to those bytes exists.
    check_len(unsafe { libc::preadv64v2(file.as_raw_fd(), vector.as_ptr(), count, offset, 0) })
}

/// Returns which of `events` of poll(2) a file has now, with POLLERR and POLLHUP.
pub fn poll_now(fd: BorrowedFd, events: libc::c_short) -> Result<libc::c_short> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: one structure, which the kernel fills.
    check(unsafe { libc::poll(&raw mut poll, 1, 0) })?;
    Ok(poll.revents)
}

/// Whether an empty pipe, open for reading with O_NONBLOCK, has a writer.
pub fn has_writer(pipe: BorrowedFd) -> bool {
    // SAFETY: the kernel writes nothing to an address that is not mapped. If there is data, it fails and leaves it there.
    let read = check_len(unsafe { libc::read(pipe.as_raw_fd(), std::ptr::null_mut(), 1) });
    // EFAULT: a writer has just written.
    matches!(read, Err(Errno(libc::EAGAIN | libc::EFAULT)))
}

/// Writes to a file directly from guest memory, with `flags` of pwritev2(2). Returns the number of bytes written.
pub fn pwritev(file: &File, slices: &[VolatileSlice], offset: i64, flags: c_int) -> Result<usize> {
    let vector = vector(slices);
    let count = vector.len() as c_int;
    // SAFETY: as in preadv(); the kernel only reads.
    check_len(unsafe { libc::pwritev64v2(file.as_raw_fd(), vector.as_ptr(), count, offset, flags) })
}

/// Raises the process's limit of file descriptors to `wanted`, or as far as permitted. Returns the limit.
pub fn raise_descriptor_limit(wanted: u64) -> u64 {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills `limit`.
    if unsafe { libc::getrlimit64(libc::RLIMIT_NOFILE, &mut limit) } < 0 {
        return 0;
    }
    // Only root may raise the hard limit, at most to fs.nr_open, which is 2^20 by default.
    let most = limit.rlim_max.max(wanted.min(1 << 20));
    for raised in
        [most, limit.rlim_max].map(|max| libc::rlimit64 { rlim_cur: max.min(wanted), rlim_max: max })
    {
        // SAFETY: the kernel reads `raised`.
        if limit.rlim_cur < raised.rlim_cur && unsafe { libc::setrlimit64(libc::RLIMIT_NOFILE, &raised) } == 0
        {
            return raised.rlim_cur;
        }
    }
    limit.rlim_cur
}

/// The effective user and group of the process.
pub fn effective_ids() -> (u32, u32) {
    // SAFETY: no pointers; these calls cannot fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}
