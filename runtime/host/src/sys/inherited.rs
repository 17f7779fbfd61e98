// UNSAFETY: close_range(2), getrlimit(2), and the environment's own bytes, which std only reads.
#![allow(unsafe_code)]
//! Separates a machine's process from the descriptors and environment variables that it inherited. Such a process runs
//! code of a guest and needs none of these.

use std::ffi::{CStr, OsString};
use std::io;

unsafe extern "C" {
    /// The C library's (environ(7)).
    static mut environ: *mut *mut libc::c_char;
}

/// Number of resource limits (asm-generic/resource.h, RLIM_NLIMITS).
const LIMITS: u32 = 16;

/// Returns the soft and hard limits of this process by number. The largest number means unlimited.
pub fn resource_limits() -> io::Result<Vec<(u64, u64)>> {
    let of = |number| {
        let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the kernel fills `limit`.
        super::check(unsafe { libc::getrlimit64(number, &raw mut limit) })?;
        Ok((limit.rlim_cur, limit.rlim_max))
    };
    (0..LIMITS).map(of).collect()
}

/// Closes all descriptors above stderr.
pub fn close_descriptors() -> io::Result<()> {
    let first = libc::STDERR_FILENO as libc::c_uint + 1;
    // SAFETY: no memory is involved. The caller is the start of the process, which has not opened any descriptor yet.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    super::check(closed as libc::c_int).map(drop)
}

/// Clears the environment except for the variables `kept`. Overwrites the bytes, so that neither this process's memory
/// nor /proc/PID/environ contains the variables any more.
///
/// For a process with one thread. With more threads it changes nothing and returns an error.
pub fn clear_environment(kept: &[&str]) -> io::Result<()> {
    super::check_single_thread()?;
    let kept: Vec<(&str, OsString)> =
        kept.iter().filter_map(|name| Some((*name, std::env::var_os(name)?))).collect();
    // SAFETY: there is no other thread to read or change the environment. `environ` is null or a null-terminated list
    // of writable strings; each is overwritten up to its NUL, which stays. clearenv and set_var only change the list.
    unsafe {
        let mut next = environ;
        while !next.is_null() && !(*next).is_null() {
            let len = CStr::from_ptr(*next).count_bytes();
            std::ptr::write_bytes(*next, 0, len);
            next = next.add(1);
        }
        libc::clearenv();
        kept.into_iter().for_each(|(name, value)| std::env::set_var(name, value));
    }
    Ok(())
}
