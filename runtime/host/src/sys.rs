// UNSAFETY: signalfd, poll, terminal settings and single system calls that std does not provide.
#![allow(unsafe_code)]
//! Safe wrappers for the system calls that the runtime needs and std does not provide.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub mod clock;
pub mod inherited;
mod socket;

pub use socket::{FDS_MAX, connect, peer_process, receive_with_fds, send_with_fds};

/// Returns `result`, or errno as an error if it is negative.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Returns the number of bytes, or errno as an error if it is negative.
fn check_len(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Waits until one of `fds` is ready for its events (POLLIN, POLLOUT), in error or at its end; `None` waits without a
/// timeout. Returns which descriptors are ready; none after a signal.
pub fn poll<const N: usize>(
    fds: [(BorrowedFd<'_>, i16); N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|(fd, events)| libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 });
    poll_raw(&mut polled, timeout)?;
    Ok(polled.map(|fd| fd.revents != 0))
}

/// Like [`poll`], for a number of descriptors that is not known at compile time.
pub fn poll_all<'a>(
    fds: impl Iterator<Item = &'a (BorrowedFd<'a>, i16)>,
    timeout: Option<Duration>,
) -> io::Result<Vec<bool>> {
    let polled = fds.map(|(fd, events)| libc::pollfd { fd: fd.as_raw_fd(), events: *events, revents: 0 });
    let mut polled: Vec<libc::pollfd> = polled.collect();
    poll_raw(&mut polled, timeout)?;
    Ok(polled.iter().map(|fd| fd.revents != 0).collect())
}

/// Calls poll(2). After a signal no descriptor is ready.
fn poll_raw(polled: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    let ms = timeout.map_or(-1, |time| time.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32);
    // SAFETY: `polled` is a slice of initialized pollfds that the kernel writes back to.
    match check(unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, ms) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

/// Whether `fd` is ready for `events` (POLLIN, POLLOUT) now.
pub fn is_ready(fd: BorrowedFd<'_>, events: i16) -> bool {
    let mut polled = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: `polled` is one initialized pollfd that the kernel writes back to.
    unsafe { libc::poll(&mut polled, 1, 0) > 0 }
}

/// Returns a new non-blocking eventfd with count 0.
pub fn eventfd() -> io::Result<File> {
    // SAFETY: no memory is involved.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: the kernel has just created `fd`, which has no other owner.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Blocks `signals` in this thread, and in threads that it starts later. Returns a non-blocking signalfd for them.
pub fn signalfd(signals: impl Iterator<Item = i32>) -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initializes the whole set, a local variable.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in signals {
        // SAFETY: the set is initialized; an invalid signal number is refused and changes nothing.
        unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    }
    // SAFETY: the set is initialized, and the pointer for the old mask may be null.
    let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    // SAFETY: the set is initialized.
    let fd = check(unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })?;
    // SAFETY: the kernel has just created `fd`, which has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes `command` start its program with no signal blocked.
pub fn unblock_signals_in(command: &mut Command) {
    let unblock = || {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initializes the whole set, a local variable.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: the set is initialized, and the pointer for the old mask may be null.
        match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut()) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    };
    // SAFETY: between fork and exec the closure makes one async-signal-safe call, and allocates nothing.
    unsafe { command.pre_exec(unblock) };
}

/// Reads one signal number from a signalfd; `None` if no signal is pending.
pub fn next_signal(signalfd: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: `info` has `size` bytes to write to.
    match check_len(unsafe { libc::read(signalfd.as_raw_fd(), info.as_mut_ptr().cast(), size) }) {
        // SAFETY: `info` was zeroed, and every bit pattern is a valid signalfd_siginfo.
        Ok(n) if n == size => Ok(Some(unsafe { info.assume_init() }.ssi_signo as i32)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the number of the highest real-time signal.
pub fn sigrtmax() -> i32 {
    libc::SIGRTMAX()
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
    let pointer = buffer.as_mut_ptr().cast();
    // SAFETY: `buffer` is writable for its whole length.
    check_len(unsafe { libc::recv(socket.as_raw_fd(), pointer, buffer.len(), libc::MSG_DONTWAIT) })
}

/// Sends as much data as a socket accepts without blocking, regardless of O_NONBLOCK, and without SIGPIPE.
pub fn send(socket: BorrowedFd<'_>, data: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `data` is readable for its whole length.
    check_len(unsafe { libc::send(socket.as_raw_fd(), data.as_ptr().cast(), data.len(), flags) })
}

/// Sends SIGKILL to the process of a pidfd.
fn kill(process: BorrowedFd<'_>) -> io::Result<()> {
    let (signal, info): (_, *const libc::siginfo_t) = (libc::SIGKILL, std::ptr::null());
    // SAFETY: no memory is involved.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, info, 0) };
    check(sent as libc::c_int).map(drop)
}

/// Sends SIGKILL to the process of a pidfd and waits until it has exited, at most for `patience`.
pub fn kill_and_wait(process: BorrowedFd<'_>, patience: Duration) -> io::Result<()> {
    match kill(process) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
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
pub fn memory_file(name: &std::ffi::CStr) -> io::Result<File> {
    // SAFETY: `name` is NUL-terminated.
    let fd = check(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) })?;
    // SAFETY: the kernel has just created `fd`, which has no other owner.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Returns an inotify descriptor that is readable after a change in the directory `path`.
pub fn watch_directory(path: &std::ffi::CStr) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = check(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) })?;
    // SAFETY: the kernel has just created `fd`, which has no other owner.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mask = libc::IN_MODIFY | libc::IN_CREATE | libc::IN_MOVED_TO;
    // SAFETY: `path` is NUL-terminated.
    check(unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), mask) })?;
    Ok(fd)
}

/// Enters the network namespace `namespace` with this thread.
pub fn enter_network(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Returns a rtnetlink socket in this thread's network namespace.
pub fn route_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is involved.
    let fd = check(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) })?;
    // SAFETY: the kernel has just created `fd`, which has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Subscribes a socket of [`route_socket`] to multicast groups (linux/rtnetlink.h, RTMGRP_...).
pub fn hear_of_routes(socket: BorrowedFd<'_>, groups: u32) -> io::Result<()> {
    // SAFETY: a zeroed sockaddr_nl is valid.
    let mut address: libc::sockaddr_nl = unsafe { MaybeUninit::zeroed().assume_init() };
    (address.nl_family, address.nl_groups) = (libc::AF_NETLINK as libc::sa_family_t, groups);
    let (pointer, length) = ((&raw const address).cast(), size_of_val(&address) as libc::socklen_t);
    // SAFETY: `address` is readable for its whole length.
    check(unsafe { libc::bind(socket.as_raw_fd(), pointer, length) }).map(drop)
}

/// Returns the index of an interface in this thread's network namespace.
pub fn interface_index(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: `name` is NUL-terminated.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
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

/// Returns the effective user id.
pub fn effective_user() -> u32 {
    // SAFETY: geteuid cannot fail and accesses no memory.
    unsafe { libc::geteuid() }
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
    // SAFETY: no memory is involved.
    check(unsafe { libc::setsid() })?;
    if let Some(output) = output {
        set_standard([&null, output, output])?;
    }
    Ok(0)
}

/// Replaces standard input, output and error by duplicates of these descriptors.
pub fn set_standard(from: [&impl AsRawFd; 3]) -> io::Result<()> {
    for (from, to) in from.iter().zip([libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO]) {
        // SAFETY: no memory is involved; the standard descriptors are the process's own to change.
        check(unsafe { libc::dup2(from.as_raw_fd(), to) })?;
    }
    Ok(())
}

/// Returns a pidfd of the process `pid`, which is readable once the process has exited.
pub fn process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    let fd = check(fd as libc::c_int)?;
    // SAFETY: the kernel has just created `fd`, which has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Moves this process into a new network namespace, which has only a loopback interface that is down.
pub fn new_network() -> io::Result<()> {
    // SAFETY: no memory is involved, and no descriptor changes.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// Returns the controller of a new pseudo-terminal and the terminal's number below /dev/pts.
pub fn open_terminal() -> io::Result<(File, u32)> {
    let controller = File::options().read(true).write(true).open("/dev/ptmx")?;
    let (unlocked, mut number): (libc::c_int, libc::c_uint) = (0, 0);
    // SAFETY: TIOCSPTLCK reads one int and TIOCGPTN writes one unsigned int.
    unsafe {
        check(libc::ioctl(controller.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked))?;
        check(libc::ioctl(controller.as_raw_fd(), libc::TIOCGPTN, &raw mut number))?;
    }
    Ok((controller, number))
}

/// Sets the size of a terminal in rows and columns.
pub fn set_window_size(fd: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// Makes `fd` the controlling terminal of this process, which must be a session leader without one.
pub fn control_terminal(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes a number.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// Detaches this process from its controlling terminal, unless it leads the session. Otherwise job control would stop a
/// background process that reads the client's terminal. Keys still send signals to the process group.
pub fn leave_terminal() {
    // SAFETY: neither call accesses memory.
    let leads = unsafe { libc::getsid(0) == libc::getpid() };
    if leads {
        return;
    }
    if let Ok(terminal) = File::open("/dev/tty") {
        // SAFETY: TIOCNOTTY takes no argument. If it fails, the process has no controlling terminal.
        unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCNOTTY) };
    }
}

/// Returns the rows and columns of a terminal; `None` if `fd` is not a terminal or its size is 0.
pub fn window_size(fd: BorrowedFd<'_>) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    (result == 0 && size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Settings of a terminal.
#[derive(Clone, Copy)]
pub struct Settings(libc::termios);

/// Returns the settings of the terminal `fd`.
pub fn terminal_settings(fd: BorrowedFd<'_>) -> io::Result<Settings> {
    let mut settings = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: tcgetattr fills the whole structure if it succeeds.
    check(unsafe { libc::tcgetattr(fd.as_raw_fd(), settings.as_mut_ptr()) })?;
    // SAFETY: tcgetattr has succeeded.
    Ok(Settings(unsafe { settings.assume_init() }))
}

/// Applies settings to the terminal `fd`.
pub fn set_terminal(fd: BorrowedFd<'_>, settings: &Settings) -> io::Result<()> {
    // SAFETY: the settings are initialized.
    check(unsafe { libc::tcsetattr(fd.as_raw_fd(), libc::TCSANOW, &settings.0) }).map(drop)
}

impl Settings {
    /// Returns these settings in raw mode: all bytes pass unchanged (cfmakeraw(3)).
    pub fn raw(&self) -> Settings {
        let mut settings = self.0;
        // SAFETY: the settings are initialized, and a local copy.
        unsafe { libc::cfmakeraw(&mut settings) };
        Settings(settings)
    }
}

/// Settings that [`restore_now`] restores. Written before [`ARMED`] is set, and never afterwards.
static mut SAVED: MaybeUninit<(RawFd, libc::termios)> = MaybeUninit::uninit();
static ARMED: AtomicBool = AtomicBool::new(false);

/// Signals that end the process without unwinding and that `vmm` does not forward.
const CRASHES: [i32; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT];

/// Restores the terminal's settings when the process crashes. `fd` must stay open until the process exits.
///
/// The main thread must call it before it changes the settings. Further calls have no effect.
pub fn restore_on_crash(fd: RawFd, settings: &Settings) {
    if ARMED.load(Ordering::Acquire) {
        return;
    }
    // SAFETY: SAVED is not read before ARMED is set, and only the main thread writes it, once.
    unsafe { (&raw mut SAVED).write(MaybeUninit::new((fd, settings.0))) };
    ARMED.store(true, Ordering::Release);
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

/// Restores the settings saved by [`restore_on_crash`], if any. Async-signal-safe.
pub fn restore_now() {
    if ARMED.load(Ordering::Acquire) {
        // SAFETY: ARMED is set only after SAVED was written, and SAVED never changes again; tcsetattr is
        // async-signal-safe.
        unsafe {
            let (fd, settings) = (&raw const SAVED).read().assume_init();
            libc::tcsetattr(fd, libc::TCSANOW, &settings);
        }
    }
}

extern "C" fn crashed(signal: libc::c_int) {
    restore_now();
    // SAFETY: SA_RESETHAND has restored the default handler, so that this ends the process as the signal would have.
    unsafe { libc::raise(signal) };
}
