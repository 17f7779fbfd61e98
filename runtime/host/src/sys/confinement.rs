// UNSAFETY: seccomp(2), keyctl(2), unshare(2), and the handler of SIGSYS, whose details are in a C union.
#![allow(unsafe_code)]
//! System calls by which a thread confines itself, and what happens when it makes a call that its filter forbids.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use libc::{c_int, c_long, c_void, siginfo_t, sock_filter};

use super::check;

/// `keyctl` operation: join a new session keyring.
const KEYCTL_JOIN_SESSION_KEYRING: c_long = 1;
/// Words before the call's number in siginfo_t of a SIGSYS: number, errno, code, padding, and the address of the call.
const CALL_AT: usize = 6;
/// Maximum length of a thread's name, with NUL.
const NAME_MAX: usize = 16;

/// Writes a message about a forbidden call.
static REPORT: OnceLock<fn(fmt::Arguments<'_>)> = OnceLock::new();

/// Makes `report` print a message when a thread makes a forbidden call. It must be async-signal-safe.
pub fn report_to(report: fn(fmt::Arguments<'_>)) -> io::Result<()> {
    REPORT.get_or_init(|| report);
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a zeroed sigaction is valid. The handler makes system calls, and calls `report`, which is
    // async-signal-safe.
    unsafe {
        (*action.as_mut_ptr()).sa_sigaction = on_forbidden as *const () as usize;
        (*action.as_mut_ptr()).sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND;
        check(libc::sigaction(libc::SIGSYS, action.as_ptr(), std::ptr::null_mut())).map(drop)
    }
}

/// Reports the call, and ends the process by a call that every filter answers with SECCOMP_RET_KILL_PROCESS. The kernel's
/// audit record has the forbidden call's number in it.
extern "C" fn on_forbidden(_signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes a complete siginfo_t, which is larger than these words.
    let number = unsafe { info.cast::<c_int>().add(CALL_AT).read() };
    let mut name = [0_u8; NAME_MAX];
    // SAFETY: the kernel writes at most 16 bytes to `name`.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let len = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    let name = std::str::from_utf8(&name[..len]).unwrap_or("?");
    if let Some(report) = REPORT.get() {
        report(format_args!("thread {name}: forbidden system call {number}, the process is killed"));
    }
    // SAFETY: no call has this number; no memory is involved. Without a filter that kills, the process is aborted.
    unsafe {
        libc::syscall(c_long::from(bpf::X32) | c_long::from(number));
        libc::abort();
    }
}

/// Installs a filter for this thread and those that it starts. It must have no_new_privs.
pub fn set_filter(program: &[sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel copies `len` instructions, and does not write to them.
    let set =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    check(set as c_int).map(drop)
}

/// Makes a system call with arguments of zero, in a test that expects a filter to forbid it.
#[cfg(test)]
pub fn call(number: c_long) {
    // SAFETY: the filter answers the call. Without one it would fail, since no call that is tested takes null pointers.
    unsafe { libc::syscall(number, 0_usize, 0_usize, 0_usize, 0_usize) };
}

/// Gives this thread a root and a working directory of its own, the same as before.
pub fn unshare_directories() -> io::Result<()> {
    // SAFETY: no pointers; no other state is separated.
    check(unsafe { libc::unshare(libc::CLONE_FS) }).map(drop)
}

/// Replaces this thread's session keyring by a new, empty one.
pub fn join_new_keyring() -> io::Result<()> {
    // SAFETY: the null pointer asks for a keyring without a name.
    let joined =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) };
    check(joined as c_int).map(drop)
}
