// UNSAFETY: seccomp(2), landlock(7), keyctl(2), unshare(2), and the handler of SIGSYS, whose details are in a C union.
#![allow(unsafe_code)]
//! System calls by which a thread confines itself, and what happens when it makes a call that its filter forbids.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
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

/// `struct landlock_path_beneath_attr` of linux/landlock.h.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: c_int,
}

/// LANDLOCK_CREATE_RULESET_VERSION.
const VERSION: c_long = 1;
/// LANDLOCK_RULE_PATH_BENEATH.
const PATH_BENEATH: c_long = 1;

/// Returns the version of Landlock. Fails if the kernel has none, or does not use it.
pub fn landlock_version() -> io::Result<u32> {
    // SAFETY: without attributes the call only returns a number.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) };
    check(version as c_int).map(|version| version as u32)
}

/// Returns a set of rules that denies the actions `handled`.
pub fn landlock_rules(handled: u64) -> io::Result<OwnedFd> {
    let (pointer, len) = (&raw const handled, size_of::<u64>());
    // SAFETY: the attributes begin with this number, and the kernel reads `len` bytes.
    let rules = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, pointer, len, 0_usize) };
    let rules = check(rules as c_int)?;
    // SAFETY: the kernel has just created the descriptor, which has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(rules) })
}

/// Allows actions on the file `parent`, or below that directory.
pub fn landlock_allow(rules: BorrowedFd<'_>, parent: BorrowedFd<'_>, allowed: u64) -> io::Result<()> {
    let rule = PathBeneath { allowed, parent: parent.as_raw_fd() };
    // SAFETY: the kernel reads the structure, which is of this kind.
    let added = unsafe {
        let number = libc::SYS_landlock_add_rule;
        libc::syscall(number, rules.as_raw_fd(), PATH_BENEATH, &raw const rule, 0_usize)
    };
    check(added as c_int).map(drop)
}

/// Restricts this thread, and those that it starts, to the rules.
pub fn landlock_restrict(rules: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers.
    let restricted = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0_usize) };
    check(restricted as c_int).map(drop)
}

/// Replaces this thread's session keyring by a new, empty one.
pub fn join_new_keyring() -> io::Result<()> {
    // SAFETY: the null pointer asks for a keyring without a name.
    let joined =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) };
    check(joined as c_int).map(drop)
}
