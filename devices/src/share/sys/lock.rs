// UNSAFETY: locks of open file descriptions exist only as raw system calls.
#![allow(unsafe_code)]
//! Locks of the host's files. Nothing here waits.

use std::os::fd::{AsRawFd, BorrowedFd};

use libc::c_int;

use super::super::errno::{Errno, Result};
use super::check;

/// Sets the type (`F_RDLCK`, `F_WRLCK`, `F_UNLCK`) of the lock that an open file description has on a range, or returns
/// EAGAIN. A length of 0 stands for all following bytes.
pub fn set_range(fd: BorrowedFd, kind: c_int, start: u64, len: u64) -> Result<()> {
    let mut lock = range(kind, start, len)?;
    // SAFETY: the kernel reads `lock`.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw mut lock) }).map_err(|errno| {
        match errno {
            Errno(libc::EACCES) => Errno(libc::EAGAIN),
            errno => errno,
        }
    })
}

/// Returns a lock that prevents [`set_range`], if there is one. Its `l_pid` is -1 if it is of an open file description.
pub fn get_range(fd: BorrowedFd, kind: c_int, start: u64, len: u64) -> Result<Option<libc::flock64>> {
    let mut lock = range(kind, start, len)?;
    // SAFETY: the kernel reads and writes `lock`.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) })?;
    Ok((c_int::from(lock.l_type) != libc::F_UNLCK).then_some(lock))
}

fn range(kind: c_int, start: u64, len: u64) -> Result<libc::flock64> {
    let signed = |value| i64::try_from(value).map_err(|_| Errno(libc::EINVAL));
    let whence = libc::SEEK_SET as libc::c_short;
    let (l_start, l_len) = (signed(start)?, signed(len)?);
    Ok(libc::flock64 { l_type: kind as libc::c_short, l_whence: whence, l_start, l_len, l_pid: 0 })
}

/// flock(2) without waiting: shared, `exclusive`, or with `None` unlocked.
pub fn flock(fd: BorrowedFd, exclusive: Option<bool>) -> Result<()> {
    let operation = match exclusive {
        Some(true) => libc::LOCK_EX,
        Some(false) => libc::LOCK_SH,
        None => libc::LOCK_UN,
    };
    // SAFETY: no pointers.
    check(unsafe { libc::flock(fd.as_raw_fd(), operation | libc::LOCK_NB) })
}
