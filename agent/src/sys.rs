//! System calls that rustix does not have, or has only as `unsafe`.
// UNSAFETY: raw system calls, port I/O and reads into uninitialized memory; each function is a safe wrapper of one.
#![allow(unsafe_code)]

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::arch::asm;
use core::ffi::{CStr, c_char};
use core::ptr;

use agent_proto::command::{MARK_IO_PORT, Mark};
use agent_proto::payload::Scheduler;
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::{Errno, Result};
use rustix::process::{Pid, Signal};
use rustix::thread::UnshareFlags;

pub mod carrier;
pub mod random;

/// Numbers of Linux's system calls on x86_64.
mod number {
    pub(super) const SIGACTION: usize = 13;
    pub(super) const SIGPROCMASK: usize = 14;
    pub(super) const EXECVE: usize = 59;
    pub(super) const PERSONALITY: usize = 135;
    pub(super) const ADJTIMEX: usize = 159;
    pub(super) const IOPERM: usize = 173;
    pub(super) const CLOCK_GETTIME: usize = 228;
    pub(super) const EXIT_GROUP: usize = 231;
    pub(super) const IOPRIO_SET: usize = 251;
    pub(super) const SCHED_SETATTR: usize = 314;
    pub(super) const SECCOMP: usize = 317;
    pub(super) const CLONE3: usize = 435;
    pub(super) const CLOSE_RANGE: usize = 436;
    pub(super) const MOUNT_SETATTR: usize = 442;
}

/// Makes a system call.
///
/// # Safety
///
/// The arguments must be valid for the call, and pointers must be valid for as long as it uses them.
unsafe fn syscall(number: usize, args: [usize; 5]) -> Result<usize> {
    let value: isize;
    // SAFETY: the kernel preserves all registers except rax, rcx and r11; the caller guarantees valid arguments.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => value,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2], in("r10") args[3], in("r8") args[4],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    if (-4095..0).contains(&value) {
        // The range fits an i32.
        return Err(Errno::from_raw_os_error(-value as i32));
    }
    Ok(value as usize)
}

/// Writes a milestone of the boot to the mark port. Does nothing if the port is not accessible.
pub fn mark(mark: Mark) {
    let port = usize::from(MARK_IO_PORT);
    // SAFETY: ioperm touches no memory.
    if unsafe { syscall(number::IOPERM, [port, 1, 1, 0, 0]) }.is_err() {
        return;
    }
    // SAFETY: the call above has given this process access to the port, and writing to it does not affect memory.
    unsafe {
        asm!("out dx, al", in("dx") MARK_IO_PORT, in("al") mark as u8, options(nostack, preserves_flags))
    };
    // Drop the access, because every child would inherit it.
    // SAFETY: ioperm touches no memory.
    let _ = unsafe { syscall(number::IOPERM, [port, 1, 0, 0, 0]) };
}

/// clone(2)'s flags for new namespaces.
pub mod namespace {
    /// Mounts.
    pub const MOUNT: u64 = 0x0002_0000;
    /// Host and domain name.
    pub const UTS: u64 = 0x0400_0000;
    /// System V IPC and message queues.
    pub const IPC: u64 = 0x0800_0000;
    /// Process ids.
    pub const PID: u64 = 0x2000_0000;
    /// Network.
    pub const NETWORK: u64 = 0x4000_0000;
}

/// Result of [`fork`].
pub enum Fork {
    /// The new process.
    Child,
    /// The process that called fork.
    Parent {
        /// PID of the child.
        pid: Pid,
        /// The pidfd of the child, close-on-exec.
        pidfd: OwnedFd,
    },
}

/// Argument of clone3(2): the first version, plus the field for CLONE_INTO_CGROUP.
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks this process into new `namespaces` and, if given, into `cgroup`.
///
/// The child has only the calling thread. The agent has no other; in a test the child must not wait for locks that
/// other threads hold.
pub fn fork(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Fork> {
    const CLONE_PIDFD: u64 = 0x1000;
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    const SIGCHLD: u64 = 17;

    let mut pidfd: i32 = -1;
    let mut args = CloneArgs {
        flags: namespaces | CLONE_PIDFD,
        pidfd: &raw mut pidfd as u64,
        exit_signal: SIGCHLD,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: args is a whole clone_args and its pidfd points to an int; without CLONE_VM the child has a copy of
    // memory and stack, so that both processes return from here as from fork(2).
    let pid =
        unsafe { syscall(number::CLONE3, [&raw const args as usize, size_of::<CloneArgs>(), 0, 0, 0]) }?;
    // SAFETY: the kernel wrote pidfd; a volatile read because the compiler saw only its address taken.
    let pidfd = unsafe { ptr::read_volatile(&raw const pidfd) };
    match Pid::from_raw(pid as i32) {
        None => Ok(Fork::Child),
        // SAFETY: CLONE_PIDFD gave the parent this new descriptor.
        Some(pid) => Ok(Fork::Parent { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// Replaces this process by a program. Returns only on failure.
pub fn execve(path: &CStr, args: &[CString], envs: &[CString]) -> Errno {
    let pointers = |list: &[CString]| -> Vec<*const c_char> {
        list.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
    };
    let (args, envs) = (pointers(args), pointers(envs));
    let call = [path.as_ptr() as usize, args.as_ptr() as usize, envs.as_ptr() as usize, 0, 0];
    // SAFETY: a path and two lists that end with null, all of strings that end with NUL.
    match unsafe { syscall(number::EXECVE, call) } {
        Err(errno) => errno,
        Ok(_) => Errno::NOSYS,
    }
}

/// Exits without running any cleanup.
pub fn exit(code: i32) -> ! {
    // SAFETY: exit_group takes a number and does not return.
    let _ = unsafe { syscall(number::EXIT_GROUP, [code as usize, 0, 0, 0, 0]) };
    // A seccomp filter may have blocked the call. No filter can block this instruction.
    // SAFETY: the kernel kills the process for it.
    unsafe { asm!("ud2", options(noreturn, nostack)) }
}

/// struct sock_fprog.
#[repr(C)]
struct FilterProgram {
    len: u16,
    filter: *const u64,
}

/// Installs a seccomp filter for this process. `program` consists of `struct sock_filter`; the kernel checks it.
pub fn install_filter(program: &[u64], flags: u32) -> Result<()> {
    const SET_MODE_FILTER: usize = 1;
    let len = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let program = FilterProgram { len, filter: program.as_ptr() };
    // SAFETY: a whole sock_fprog, which the kernel copies with its `len` instructions of eight bytes.
    unsafe { syscall(number::SECCOMP, [SET_MODE_FILTER, flags as usize, &raw const program as usize, 0, 0]) }
        .map(drop)
}

/// The kernel's sigaction, which differs from C's.
#[repr(C)]
struct SigAction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

fn set_action(signal: Signal, handler: usize) {
    let action = SigAction { handler, flags: 0, restorer: 0, mask: 0 };
    // SAFETY: callers pass only SIG_DFL (0) and SIG_IGN (1), so no handler ever runs.
    let _ = unsafe {
        syscall(
            number::SIGACTION,
            [signal.as_raw() as usize, &raw const action as usize, 0, size_of::<u64>(), 0],
        )
    };
}

/// struct sched_attr, its first version.
#[repr(C)]
struct SchedulerAttributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Sets the scheduling policy of this process.
pub fn set_scheduler(new: &Scheduler) -> Result<()> {
    let &Scheduler { policy, flags, nice, priority, runtime, deadline, period } = new;
    let size = size_of::<SchedulerAttributes>() as u32;
    let new = SchedulerAttributes { size, policy, flags, nice, priority, runtime, deadline, period };
    // SAFETY: a complete sched_attr that contains its length.
    unsafe { syscall(number::SCHED_SETATTR, [0, &raw const new as usize, 0, 0, 0]) }.map(drop)
}

/// Sets the I/O priority of this process, with the class in the upper bits.
pub fn set_io_priority(new: u16) -> Result<()> {
    const WHO_PROCESS: usize = 1;
    // SAFETY: ioprio_set takes numbers.
    unsafe { syscall(number::IOPRIO_SET, [WHO_PROCESS, 0, usize::from(new), 0, 0]) }.map(drop)
}

/// Sets the execution domain of this process.
pub fn set_personality(new: u32) -> Result<()> {
    // SAFETY: personality takes a number.
    unsafe { syscall(number::PERSONALITY, [new as usize, 0, 0, 0, 0]) }.map(drop)
}

/// struct timex: the fields that the agent sets, and room for the others.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timex {
    /// Which fields are set (ADJ_*).
    pub modes: u32,
    /// Not set.
    pub offset: i64,
    /// Frequency offset, in 2^-16 ppm.
    pub frequency: i64,
    /// Errors, status and limits. Not set.
    pub errors: [i64; 6],
    /// Seconds of a step.
    pub seconds: i64,
    /// Microseconds of a step, not negative.
    pub microseconds: i64,
    /// Length of a tick of 10 ms, in microseconds.
    pub tick: i64,
    /// PPS and TAI. Not set.
    pub pps: [i64; 14],
}

const _: () = assert!(size_of::<Timex>() == 208);

/// Returns seconds and nanoseconds of the wall clock. rustix would parse the vDSO for it, in 4 KB.
pub fn wall_clock() -> (u64, u64) {
    const CLOCK_REALTIME: usize = 0;
    let mut time = [0_u64; 2];
    // SAFETY: a whole timespec, which the kernel writes. The clock exists, so the call cannot fail.
    let _ = unsafe { syscall(number::CLOCK_GETTIME, [CLOCK_REALTIME, &raw mut time as usize, 0, 0, 0]) };
    // SAFETY: a local variable. A volatile read because the compiler saw only its address taken.
    let [seconds, nanoseconds] = unsafe { ptr::read_volatile(&raw const time) };
    (seconds, nanoseconds)
}

/// Adjusts the wall clock (adjtimex(2)).
pub fn adjust_clock(change: &Timex) -> Result<()> {
    let mut change = *change;
    // SAFETY: a whole timex, which the kernel reads and writes.
    unsafe { syscall(number::ADJTIMEX, [&raw mut change as usize, 0, 0, 0, 0]) }.map(drop)
}

/// Resets signals to what a new program expects: none blocked, none ignored.
///
/// As PID 1 the agent ignores no signals. In a test it may: Rust's runtime ignores SIGPIPE, nohup(1) ignores SIGHUP,
/// and a shell without job control ignores SIGINT and SIGQUIT in background processes.
pub fn reset_signals() {
    const SIG_SETMASK: usize = 2;
    for signal in [Signal::HUP, Signal::INT, Signal::QUIT, Signal::PIPE] {
        set_action(signal, 0);
    }
    let none: u64 = 0;
    // SAFETY: a whole kernel signal set.
    let _ = unsafe {
        syscall(number::SIGPROCMASK, [SIG_SETMASK, &raw const none as usize, 0, size_of::<u64>(), 0])
    };
}

/// Makes the kernel reap this process's children.
pub fn ignore_children() {
    set_action(Signal::CHILD, 1);
}

/// Returns signal `number`, named or real-time.
pub fn signal(number: i32) -> Option<Signal> {
    const LAST: i32 = 64;
    // SAFETY: these are the kernel's signal numbers. There is no C library that reserves some.
    (1..=LAST).contains(&number).then(|| unsafe { Signal::from_raw_unchecked(number) })
}

/// Closes all file descriptors except stdin, stdout, stderr and those in `keep`, in a child before exec.
///
/// The owners of the closed descriptors must not be used or dropped afterwards: the child ends with exec or exit.
pub fn close_others<'a>(keep: impl IntoIterator<Item = Option<BorrowedFd<'a>>>) {
    let number = |fd: Option<BorrowedFd<'_>>| fd.map_or(usize::MAX, |fd| fd.as_raw_fd() as usize);
    let mut keep: alloc::vec::Vec<usize> = keep.into_iter().map(number).collect();
    keep.sort_unstable();
    let mut first = 3;
    for kept in keep {
        // The kernel refuses an empty or reversed range and closes nothing.
        let last = kept.min(u32::MAX as usize + 1) - 1;
        // SAFETY: closes file descriptors of this process; the caller guarantees that they are not used.
        let _ = unsafe { syscall(number::CLOSE_RANGE, [first, last, 0, 0, 0]) };
        first = kept.saturating_add(1);
    }
    if first <= u32::MAX as usize {
        // SAFETY: as above.
        let _ = unsafe { syscall(number::CLOSE_RANGE, [first, u32::MAX as usize, 0, 0, 0]) };
    }
}

/// Returns stdin, stdout and stderr of this process.
pub fn standard_streams() -> [BorrowedFd<'static>; 3] {
    // SAFETY: the three stay open: only `close_all` closes them, whose caller uses no descriptor afterwards.
    [0, 1, 2].map(|fd| unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Closes all file descriptors, for a process that never uses any again.
pub fn close_all() {
    // SAFETY: the only caller then waits forever, so no owner of a file descriptor is used or dropped.
    let _ = unsafe { syscall(number::CLOSE_RANGE, [0, u32::MAX as usize, 0, 0, 0]) };
}

/// Moves this process into a new cgroup namespace, which starts at its own cgroup.
pub fn unshare_cgroup_view() -> Result<()> {
    // SAFETY: a cgroup namespace shares no memory or descriptors.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) }
}

/// Creates a time namespace for this process's future children. The process itself can enter it later.
pub fn unshare_time() -> Result<()> {
    // SAFETY: a time namespace shares no memory or descriptors.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWTIME) }
}

/// Moves this process into a new user namespace.
pub fn unshare_users() -> Result<()> {
    // SAFETY: a user namespace shares no memory or descriptors.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }
}

/// Argument of mount_setattr(2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountAttributes {
    /// MOUNT_ATTR_* to set.
    pub set: u64,
    /// MOUNT_ATTR_* to clear.
    pub clear: u64,
    /// MS_SHARED, MS_SLAVE, MS_PRIVATE or MS_UNBINDABLE, or 0.
    pub propagation: u64,
    /// User namespace of an ID-mapped mount. Not used.
    pub userns_fd: u64,
}

/// Changes the mount with root `mount`, and with `recursive` all mounts below it.
pub fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attributes: MountAttributes) -> Result<()> {
    const AT_EMPTY_PATH: usize = 0x1000;
    const AT_RECURSIVE: usize = 0x8000;
    let flags = AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    let call = [
        mount.as_raw_fd() as usize,
        c"".as_ptr() as usize,
        flags,
        &raw const attributes as usize,
        size_of::<MountAttributes>(),
    ];
    // SAFETY: an empty path and a whole mount_attr.
    unsafe { syscall(number::MOUNT_SETATTR, call) }.map(drop)
}

/// `struct ifreq` with the fields that SIOCSIFFLAGS reads.
#[repr(C)]
struct InterfaceFlags {
    name: [u8; 16],
    flags: i16,
    pad: [u8; 22],
}

/// Brings up the loopback interface of this process's network namespace. `socket` is any IP socket in it.
pub fn loopback_up(socket: BorrowedFd<'_>) -> Result<()> {
    const SIOCSIFFLAGS: rustix::ioctl::Opcode = 0x8914;
    const IFF_UP: i16 = 1;
    let mut request = InterfaceFlags { name: [0; 16], flags: IFF_UP, pad: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    // SAFETY: SIOCSIFFLAGS reads an ifreq, and InterfaceFlags has its length.
    let setter = unsafe { rustix::ioctl::Setter::<SIOCSIFFLAGS, InterfaceFlags>::new(request) };
    // SAFETY: as above.
    unsafe { rustix::ioctl::ioctl(socket, setter) }
}

/// Reads at most `max` bytes and appends them to `out`. Returns their number, 0 at the end of the file.
pub fn read_append(fd: BorrowedFd<'_>, out: &mut Vec<u8>, max: usize) -> Result<usize> {
    out.reserve(max);
    let (read, _) = rustix::io::read(fd, &mut out.spare_capacity_mut()[..max])?;
    let count = read.len();
    // SAFETY: the first `count` bytes of the spare capacity have just been written.
    unsafe { out.set_len(out.len() + count) };
    Ok(count)
}

/// Copies `len` bytes forward, between buffers that do not overlap: memcpy.
///
/// # Safety
///
/// As for memcpy.
#[cfg(feature = "init")]
pub(crate) unsafe fn copy_forward(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: guaranteed by the caller. The direction flag is clear by the ABI. Eight bytes at a time, because
    // emulators execute each step separately.
    unsafe {
        asm!(
            "rep movsq",
            "mov rcx, {rest}",
            "rep movsb",
            rest = in(reg) len & 7,
            inout("rcx") len >> 3 => _,
            inout("rdi") to => _,
            inout("rsi") from => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Copies `len` bytes from the last to the first: memmove if the target is after the source.
///
/// # Safety
///
/// As for memmove.
#[cfg(feature = "init")]
pub(crate) unsafe fn copy_backward(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: guaranteed by the caller. The direction flag is set for the copy and cleared afterwards.
    unsafe {
        asm!(
            "std",
            "rep movsb",
            "cld",
            inout("rcx") len => _,
            inout("rdi") to.wrapping_add(len).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(len).wrapping_sub(1) => _,
            options(nostack),
        );
    }
}

/// Sets `len` bytes: memset.
///
/// # Safety
///
/// As for memset.
#[cfg(feature = "init")]
pub(crate) unsafe fn fill(to: *mut u8, byte: u8, len: usize) {
    // SAFETY: guaranteed by the caller. The direction flag is clear by the ABI.
    unsafe {
        asm!(
            "rep stosq",
            "mov rcx, {rest}",
            "rep stosb",
            rest = in(reg) len & 7,
            in("rax") u64::from(byte) * 0x0101_0101_0101_0101,
            inout("rcx") len >> 3 => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
}
