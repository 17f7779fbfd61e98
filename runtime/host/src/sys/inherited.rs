// UNSAFETY: close_range(2), prctl(2), and the environment's own bytes, which std only reads.
#![allow(unsafe_code)]
//! What a process has from whoever started it, and what it leaves behind when it crashes. A machine's process runs a guest's
//! code and needs none of it.

use std::ffi::{CStr, OsString};
use std::io;

unsafe extern "C" {
    /// The C library's (environ(7)).
    static mut environ: *mut *mut libc::c_char;
}

/// Closes every descriptor above stderr.
pub fn close_descriptors() -> io::Result<()> {
    let first = libc::STDERR_FILENO as libc::c_uint + 1;
    // SAFETY: no memory is involved. For the beginning of the process, when nothing here has opened any.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    super::check(closed as libc::c_int).map(drop)
}

/// Forgets the environment but for the variables `kept`: their bytes are overwritten, so that neither this process's memory
/// nor /proc/PID/environ has them any more.
///
/// For a process of one thread; with a second one it does nothing and says so.
pub fn clear_environment(kept: &[&str]) -> io::Result<()> {
    super::check_single_thread()?;
    let kept: Vec<(&str, OsString)> =
        kept.iter().filter_map(|name| Some((*name, std::env::var_os(name)?))).collect();
    // SAFETY: there is no other thread to read or change the environment. `environ` is null or a list of writable strings
    // that ends with null; each is overwritten up to its end, which stays. clearenv and set_var only change the list.
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

/// Has the kernel write no core of this process, and lets nobody of the same user look into its memory.
pub fn forbid_dumps() -> io::Result<()> {
    // SAFETY: PR_SET_DUMPABLE takes a number.
    super::check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) }).map(drop)
}
