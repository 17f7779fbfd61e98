// UNSAFETY: system calls that neither std nor rustix wraps, or that rustix leaves unsafe.
#![allow(unsafe_code)]
//! System calls that the runtime needs and std does not provide.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fs::{MemfdFlags, inotify};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use rustix::process::{self, Pid, PidfdFlags, Signal, WaitOptions};
use rustix::termios::{OptionalActions, Termios, tcsetattr};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use rustix::{event, stdio};
use vmm_sys_util::signal::create_sigset;

pub mod bpf;
pub mod clock;
pub mod confinement;
pub mod inherited;
mod socket;

pub use socket::{FDS_MAX, connect, peer_process, receive_with_fds, send_with_fds};

/// Returns `result`, or errno as an error if it is negative.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Waits until one of `fds` is ready for its events (POLLIN, POLLOUT), in error or at its end; `None` waits without a
/// timeout. Returns which descriptors are ready; none after a signal.
pub fn poll<const N: usize>(
    fds: [(BorrowedFd<'_>, i16); N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let ready = poll_all(fds.iter(), timeout)?;
    Ok(std::array::from_fn(|index| ready[index]))
}

/// Like [`poll`], for a number of descriptors that is not known at compile time.
pub fn poll_all<'a>(
    fds: impl Iterator<Item = &'a (BorrowedFd<'a>, i16)>,
    timeout: Option<Duration>,
) -> io::Result<Vec<bool>> {
    let polled =
        fds.map(|(fd, events)| PollFd::from_borrowed_fd(*fd, PollFlags::from_bits_retain(*events as u16)));
    let mut polled: Vec<PollFd<'_>> = polled.collect();
    // A timeout that the kernel cannot represent is none.
    let timeout = timeout.and_then(|time| Timespec::try_from(time).ok());
    match event::poll(&mut polled, timeout.as_ref()) {
        Err(error) if error != Errno::INTR => Err(error.into()),
        _ => Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect()),
    }
}

/// Whether `fd` is ready for `events` (POLLIN, POLLOUT) now.
pub fn is_ready(fd: BorrowedFd<'_>, events: i16) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::from_bits_retain(events as u16))];
    event::poll(&mut polled, Some(&Timespec::default())).is_ok_and(|count| count > 0)
}

/// Returns a new non-blocking eventfd with count 0.
pub fn eventfd() -> io::Result<File> {
    Ok(event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?.into())
}

/// Changes this thread's signal mask by `set`: SIG_BLOCK or SIG_SETMASK. Async-signal-safe.
fn mask_signals(how: libc::c_int, set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: the set is initialized, and the pointer for the old mask may be null.
    match unsafe { libc::pthread_sigmask(how, set, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Blocks `signals` in this thread, and in threads that it starts later. Returns a non-blocking signalfd for them.
pub fn signalfd(signals: impl Iterator<Item = i32>) -> io::Result<OwnedFd> {
    let set = create_sigset(&signals.collect::<Vec<_>>())?;
    mask_signals(libc::SIG_BLOCK, &set)?;
    // SAFETY: the set is initialized.
    let fd = check(unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })?;
    // SAFETY: the kernel has just created `fd`, which has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes `command` start its program with no signal blocked.
pub fn unblock_signals_in(command: &mut Command) -> io::Result<()> {
    let none = create_sigset(&[])?;
    // SAFETY: between fork and exec the closure makes one async-signal-safe call, and allocates nothing.
    unsafe { command.pre_exec(move || mask_signals(libc::SIG_SETMASK, &none)) };
    Ok(())
}

/// Reads one signal number from a signalfd; `None` if no signal is pending.
pub fn next_signal(signalfd: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut info = [0; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(signalfd, &mut info) {
        // The number is the first field.
        Ok(count) if count == info.len() => Ok(info.first_chunk().map(|number| i32::from_ne_bytes(*number))),
        Ok(_) | Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Duplicates `fd` to a descriptor above stderr with close-on-exec.
pub fn duplicate(fd: RawFd) -> io::Result<File> {
    // SAFETY: no memory is involved; an invalid descriptor is refused.
    let fd = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: the kernel has just created `fd`, which has no other owner.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Receives available data from a socket without blocking, regardless of O_NONBLOCK.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::net::recv(socket, buffer, RecvFlags::DONTWAIT)?.0)
}

/// Sends as much data as a socket accepts without blocking, regardless of O_NONBLOCK, and without SIGPIPE.
pub fn send(socket: BorrowedFd<'_>, data: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(socket, data, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
}

/// Tells the other end of a connection that no data follows.
pub fn shut_output(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::net::shutdown(socket, Shutdown::Write)?)
}

/// Writes to a descriptor. Async-signal-safe.
pub fn write(fd: BorrowedFd<'_>, data: &[u8]) -> io::Result<usize> {
    Ok(rustix::io::write(fd, data)?)
}

/// Sends SIGKILL to the process of a pidfd and waits until it has exited, at most for `patience`.
pub fn kill_and_wait(process: BorrowedFd<'_>, patience: Duration) -> io::Result<()> {
    match process::pidfd_send_signal(process, Signal::KILL) {
        Err(error) if error != Errno::SRCH => return Err(error.into()),
        _ => {}
    }
    // The kernel releases the process's locks before it is gone (the vhost worker of a NIC takes a while), and only
    // when it is gone does an engine's shim notice the exit, before which the engine deletes nothing.
    let until = Instant::now() + patience;
    while !poll([(process, libc::POLLIN)], Some(until.saturating_duration_since(Instant::now())))?[0] {
        if until <= Instant::now() {
            let why = format!("still running {} s after SIGKILL", patience.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
    }
    Ok(())
}

/// Returns a new, empty file in memory (memfd_create(2)) with close-on-exec.
pub fn memory_file(name: &CStr) -> io::Result<File> {
    Ok(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?.into())
}

/// Returns an inotify descriptor that is readable after a change in the directory `path`.
pub fn watch_directory(path: &CStr) -> io::Result<OwnedFd> {
    use inotify::{CreateFlags, WatchFlags};
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    inotify::add_watch(&fd, path, WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
    Ok(fd)
}

/// Returns an inotify descriptor that is readable after a change of the file `path`.
pub fn watch_file(path: &Path) -> io::Result<OwnedFd> {
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&fd, path, inotify::WatchFlags::MODIFY)?;
    Ok(fd)
}

/// Creates the tap `name` in this thread's network namespace. It is non-blocking, has no packet information but a
/// virtio header of 12 bytes before each packet, and disappears with its last descriptor.
pub fn tap(name: &str) -> io::Result<OwnedFd> {
    let header_len: libc::c_int = 12;
    let mut options = File::options();
    let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: a zeroed ifreq is valid.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    // The last byte stays NUL.
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // IFF_TUN_EXCL: refuse an existing tap, which belongs to another process.
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, TUNSETVNETHDRSZ reads one int.
    unsafe {
        check(libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request))?;
        check(libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const header_len))?;
    }
    Ok(file.into())
}

/// Fills `bytes` with random ones.
pub fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    getrandom::fill(bytes).map_err(io::Error::other)
}

pub fn effective_user() -> u32 {
    process::geteuid().as_raw()
}

pub fn effective_group() -> u32 {
    process::getegid().as_raw()
}

/// Returns the memory of the host in bytes.
pub fn total_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram * u64::from(info.mem_unit)
}

/// Returns an error if this process has more than one thread.
fn check_single_thread() -> io::Result<()> {
    match std::fs::read_dir("/proc/self/task")?.count() {
        1 => Ok(()),
        _ => Err(io::Error::other("the process has more than one thread")),
    }
}

/// Forks this process into a new session. With `output`, the child's stdout and stderr are duplicates of it and its
/// stdin is /dev/null; otherwise all three stay. Returns the child's process id in the parent, and 0 in the child.
///
/// # Errors
///
/// Also if there is a second thread: the child would not have the thread, but the locks that it holds.
pub fn fork_detached(output: Option<&File>) -> io::Result<u32> {
    check_single_thread()?;
    let null = File::open("/dev/null")?;
    // SAFETY: the process has one thread, so that the child has the complete state of the process.
    let copy = check(unsafe { libc::fork() })?;
    if copy != 0 {
        return Ok(copy as u32);
    }
    process::setsid()?;
    if let Some(output) = output {
        set_standard([&null, output, output])?;
    }
    Ok(0)
}

/// Forks a process that the kernel kills when this thread ends. Of this process's descriptors it has `kept` alone. Returns
/// the child's process id in the parent, and 0 in the child.
///
/// # Errors
///
/// As for [`fork_detached`].
pub fn fork_tied(kept: BorrowedFd<'_>) -> io::Result<u32> {
    check_single_thread()?;
    let null = File::open("/dev/null")?;
    let parent = process::getpid();
    // SAFETY: the process has one thread, so that the child has the complete state of the process.
    let copy = check(unsafe { libc::fork() })?;
    if copy != 0 {
        return Ok(copy as u32);
    }
    let alone = || -> io::Result<()> {
        process::set_parent_process_death_signal(Some(Signal::KILL))?;
        set_standard([&null, &null, &null])?;
        let kept = kept.as_raw_fd() as libc::c_uint;
        for (first, last) in [(3, kept - 1), (kept + 1, libc::c_uint::MAX)] {
            // SAFETY: the child uses no other descriptor, and ends without dropping their owners.
            check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } as libc::c_int)
                .map(drop)
                .or_else(
                // An empty range.
                |error| if first > last { Ok(()) } else { Err(error) },
            )?;
        }
        // The parent may have ended before it was watched.
        if process::getppid() == Some(parent) { Ok(()) } else { Err(Errno::SRCH.into()) }
    };
    match alone() {
        Ok(()) => Ok(0),
        Err(_) => std::process::exit(1),
    }
}

/// Gives this process another nice value.
pub fn lower_priority(nice: i32) -> io::Result<()> {
    Ok(process::setpriority_process(None, nice)?)
}

/// Returns an error if this process cannot write to the file or the directory `path`.
pub fn check_writable(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::access(path, rustix::fs::Access::WRITE_OK)?)
}

/// Makes this process the leader of a new session without a terminal, unless it is one.
pub fn leave_session() -> io::Result<()> {
    match process::setsid() {
        Ok(_) | Err(Errno::PERM) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Lets the kernel reap the children of this process, which cannot wait for one any more.
pub fn ignore_children() {
    // SAFETY: the default action of this signal is to ignore it as well; no memory is involved.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Waits for the end of a child.
pub fn wait_for_child(pid: u32) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::INVAL)?;
    rustix::io::retry_on_intr(|| process::waitpid(Some(pid), WaitOptions::empty()))?;
    Ok(())
}

/// Replaces standard input, output and error by duplicates of these descriptors.
pub fn set_standard([input, output, error]: [&impl AsFd; 3]) -> io::Result<()> {
    stdio::dup2_stdin(input)?;
    stdio::dup2_stdout(output)?;
    Ok(stdio::dup2_stderr(error)?)
}

/// Returns a pidfd of the process `pid`, which is readable once the process has exited.
pub fn process(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::INVAL)?;
    Ok(process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Moves this process into a new network namespace, which has only a loopback interface that is down.
pub fn new_network() -> io::Result<()> {
    // SAFETY: descriptors stay shared by all threads.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?)
}

/// Moves this process, which has one thread, into a new user namespace, in which it has all capabilities, and into a mount
/// namespace of it, whose mounts it can copy.
pub fn new_user_namespace() -> io::Result<()> {
    // SAFETY: descriptors stay shared by all threads.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }?)
}

/// Detaches this process from its controlling terminal, unless it leads the session. Otherwise job control would stop a
/// background process that reads the client's terminal. Keys still send signals to the process group.
pub fn leave_terminal() {
    if process::getsid(None) == Ok(process::getpid()) {
        return;
    }
    if let Ok(terminal) = File::open("/dev/tty") {
        // SAFETY: TIOCNOTTY takes no argument. If it fails, the process has no controlling terminal.
        unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCNOTTY) };
    }
}

/// Settings that a crash restores on stdin.
static SAVED: OnceLock<Termios> = OnceLock::new();

/// Signals that end the process without unwinding and that `vmm` does not forward.
const CRASHES: [i32; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT];

/// Restores these settings of stdin's terminal when the process crashes. Further calls have no effect.
pub fn restore_on_crash(settings: &Termios) {
    if SAVED.set(settings.clone()).is_err() {
        return;
    }
    for signal in CRASHES {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: a zeroed sigaction is valid; the handler only calls async-signal-safe functions.
        unsafe {
            (*action.as_mut_ptr()).sa_sigaction = crashed as *const () as usize;
            (*action.as_mut_ptr()).sa_flags = libc::SA_RESETHAND | libc::SA_NODEFER;
            libc::sigaction(signal, action.as_ptr(), std::ptr::null_mut());
        }
    }
}

/// Makes one system call and reads an initialized [`OnceLock`], which never blocks.
extern "C" fn crashed(signal: libc::c_int) {
    if let Some(settings) = SAVED.get() {
        let _ = tcsetattr(stdio::stdin(), OptionalActions::Now, settings);
    }
    // SAFETY: SA_RESETHAND has restored the default handler, so that this ends the process as the signal would have.
    unsafe { libc::raise(signal) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_is_read_once() {
        let fd = signalfd([libc::SIGUSR1, libc::SIGUSR2].into_iter()).unwrap();
        assert_eq!(next_signal(fd.as_fd()).unwrap(), None);
        // SAFETY: no memory is involved; this thread has blocked the signal.
        assert_eq!(unsafe { libc::raise(libc::SIGUSR2) }, 0);
        assert!(is_ready(fd.as_fd(), libc::POLLIN));
        assert_eq!(next_signal(fd.as_fd()).unwrap(), Some(libc::SIGUSR2));
        assert_eq!(next_signal(fd.as_fd()).unwrap(), None);
    }

    #[test]
    fn poll_names_the_ready_descriptors_and_ends_at_its_timeout() {
        let (mut full, empty) = (eventfd().unwrap(), eventfd().unwrap());
        io::Write::write_all(&mut full, &1_u64.to_ne_bytes()).unwrap();
        let fds = [(empty.as_fd(), libc::POLLIN), (full.as_fd(), libc::POLLIN)];
        assert_eq!(poll(fds, None).unwrap(), [false, true]);
        assert_eq!(poll([fds[0]], Some(Duration::from_millis(1))).unwrap(), [false]);
        assert_eq!(poll([fds[0]], Some(Duration::ZERO)).unwrap(), [false]);
    }
}
