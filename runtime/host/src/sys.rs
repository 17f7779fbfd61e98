// UNSAFETY: signalfd, poll, terminal settings and flags of single system calls that std has no face for.
#![allow(unsafe_code)]
//! The system calls that the runtime needs and std does not have, each with a safe face.

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

pub mod inherited;
mod socket;

pub use socket::{FDS_MAX, connect, peer_process, receive_with_fds, send_with_fds};

/// Returns `result`, or the error that it stands for.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Returns the number of bytes, or the error that it stands for.
fn check_len(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Waits until one of `fds` is ready for its events (POLLIN, POLLOUT), broken, or at its end; `None` waits for ever.
/// Returns which ones are; none where a signal came first.
pub fn poll<const N: usize>(
    fds: [(BorrowedFd<'_>, i16); N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|(fd, events)| libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 });
    poll_raw(&mut polled, timeout)?;
    Ok(polled.map(|fd| fd.revents != 0))
}

/// Waits like [`poll`] for as many as there are.
pub fn poll_all<'a>(
    fds: impl Iterator<Item = &'a (BorrowedFd<'a>, i16)>,
    timeout: Option<Duration>,
) -> io::Result<Vec<bool>> {
    let polled = fds.map(|(fd, events)| libc::pollfd { fd: fd.as_raw_fd(), events: *events, revents: 0 });
    let mut polled: Vec<libc::pollfd> = polled.collect();
    poll_raw(&mut polled, timeout)?;
    Ok(polled.iter().map(|fd| fd.revents != 0).collect())
}

/// Waits; none is ready where a signal came first.
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
    // SAFETY: the kernel has just made `fd` for us alone.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Blocks `signals` in this thread (and those that it starts) and returns a non-blocking signalfd for them.
pub fn signalfd(signals: impl Iterator<Item = i32>) -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initializes the whole set, which is ours.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in signals {
        // SAFETY: the set is initialized; a number that is no signal is refused and changes nothing.
        unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    }
    // SAFETY: the set is initialized, and the old mask is not asked for.
    let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    // SAFETY: the set is initialized.
    let fd = check(unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })?;
    // SAFETY: the kernel has just made `fd` for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Has the program of `command` start with no signal blocked, whatever this thread has blocked.
pub fn unblock_signals_in(command: &mut Command) {
    let unblock = || {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initializes the whole set, which is ours.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: the set is initialized, and the old mask is not asked for.
        match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut()) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    };
    // SAFETY: between fork and exec the closure makes one async-signal-safe call, and allocates nothing.
    unsafe { command.pre_exec(unblock) };
}

/// Takes one signal's number from a signalfd.
pub fn next_signal(signalfd: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: `info` has `size` bytes to write to.
    match check_len(unsafe { libc::read(signalfd.as_raw_fd(), info.as_mut_ptr().cast(), size) }) {
        // SAFETY: it was zeroed and every bit pattern is a signalfd_siginfo.
        Ok(n) if n == size => Ok(Some(unsafe { info.assume_init() }.ssi_signo as i32)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the largest real-time signal's number.
pub fn sigrtmax() -> i32 {
    libc::SIGRTMAX()
}

/// Duplicates `fd`, close-on-exec and above stderr.
pub fn duplicate(fd: RawFd) -> io::Result<File> {
    // SAFETY: no memory is involved; a number that is no descriptor is refused.
    let fd = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: the kernel has just made `fd` for us alone.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Receives what a socket has, without waiting and whatever its flags say.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let pointer = buffer.as_mut_ptr().cast();
    // SAFETY: `buffer` is ours for its whole length.
    check_len(unsafe { libc::recv(socket.as_raw_fd(), pointer, buffer.len(), libc::MSG_DONTWAIT) })
}

/// Sends what a socket takes, without waiting, whatever its flags say, and without SIGPIPE.
pub fn send(socket: BorrowedFd<'_>, data: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `data` can be read for its whole length.
    check_len(unsafe { libc::send(socket.as_raw_fd(), data.as_ptr().cast(), data.len(), flags) })
}

/// Kills a process.
fn kill(process: BorrowedFd<'_>) -> io::Result<()> {
    let (signal, info): (_, *const libc::siginfo_t) = (libc::SIGKILL, std::ptr::null());
    // SAFETY: no memory is involved.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, info, 0) };
    check(sent as libc::c_int).map(drop)
}

/// Kills a process and waits for its end, no longer than `patience`.
pub fn kill_and_wait(process: BorrowedFd<'_>, patience: Duration) -> io::Result<()> {
    match kill(process) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
        _ => {}
    }
    // Its locks are let go of before the kernel has taken everything down (its worker of a NIC takes a while), and only
    // then does an engine's shim learn of the end, without which it deletes nothing.
    let until = Instant::now() + patience;
    while !poll([(process, libc::POLLIN)], Some(until.saturating_duration_since(Instant::now())))?[0] {
        if until <= Instant::now() {
            let why = format!("it has not ended within {} s of SIGKILL", patience.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
    }
    Ok(())
}

/// Returns a new, empty file in memory.
pub fn memory_file(name: &std::ffi::CStr) -> io::Result<File> {
    // SAFETY: `name` is a string that ends.
    let fd = check(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) })?;
    // SAFETY: the kernel has just made `fd` for us alone.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Returns a descriptor that is readable when something in the directory `path` has changed.
pub fn watch_directory(path: &std::ffi::CStr) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = check(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) })?;
    // SAFETY: the kernel has just made `fd` for us alone.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mask = libc::IN_MODIFY | libc::IN_CREATE | libc::IN_MOVED_TO;
    // SAFETY: `path` is a string that ends.
    check(unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), mask) })?;
    Ok(fd)
}

/// Enters the network namespace that `namespace` is, with this thread.
pub fn enter_network(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Returns a rtnetlink socket in this thread's network namespace.
pub fn route_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is involved.
    let fd = check(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) })?;
    // SAFETY: the kernel has just made `fd` for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Has a socket of [`route_socket`] hear what the kernel tells `groups` (linux/rtnetlink.h, RTMGRP_...).
pub fn hear_of_routes(socket: BorrowedFd<'_>, groups: u32) -> io::Result<()> {
    // SAFETY: a zeroed sockaddr_nl is valid.
    let mut address: libc::sockaddr_nl = unsafe { MaybeUninit::zeroed().assume_init() };
    (address.nl_family, address.nl_groups) = (libc::AF_NETLINK as libc::sa_family_t, groups);
    let (pointer, length) = ((&raw const address).cast(), size_of_val(&address) as libc::socklen_t);
    // SAFETY: `address` can be read for its whole length.
    check(unsafe { libc::bind(socket.as_raw_fd(), pointer, length) }).map(drop)
}

/// Returns the number of an interface of this thread's network namespace.
pub fn interface_index(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: `name` is a string that ends.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Makes the tap `name` in this thread's network namespace. It is non-blocking, has packets alone, each behind a virtio
/// header of 12 bytes, and goes away with its last descriptor.
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
    // IFF_TUN_EXCL: one that is there is somebody's.
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, TUNSETVNETHDRSZ reads one int.
    unsafe {
        check(libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request))?;
        check(libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const header_len))?;
    }
    Ok(file.into())
}

/// Returns the effective user's number.
pub fn effective_user() -> u32 {
    // SAFETY: it cannot fail and touches no memory.
    unsafe { libc::geteuid() }
}

/// Fails where this process has a second thread.
fn check_single_thread() -> io::Result<()> {
    match std::fs::read_dir("/proc/self/task")?.count() {
        1 => Ok(()),
        _ => Err(io::Error::other("there is more than one thread")),
    }
}

/// Makes a copy of this process, in a session of its own. With `output` that is its standard output and error, and it has
/// nothing to read; without, these three stay what they are. Returns the copy's number, and 0 in the copy.
///
/// # Errors
///
/// Also where there is a second thread: the copy would not have it, but whatever it holds locked.
pub fn fork_detached(output: Option<&File>) -> io::Result<u32> {
    check_single_thread()?;
    let null = File::open("/dev/null")?;
    // SAFETY: the process has one thread, so that the copy is as whole as it.
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

/// Makes duplicates of these the standard input, output and error.
pub fn set_standard(from: [&impl AsRawFd; 3]) -> io::Result<()> {
    for (from, to) in from.iter().zip([libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO]) {
        // SAFETY: no memory is involved; the standard descriptors are the process's own to change.
        check(unsafe { libc::dup2(from.as_raw_fd(), to) })?;
    }
    Ok(())
}

/// Returns a descriptor of the process `pid`, readable once it has ended.
pub fn process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    let fd = check(fd as libc::c_int)?;
    // SAFETY: the kernel has just made `fd` for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives this process a network namespace of its own, in which there is nothing but a loopback that is down.
pub fn new_network() -> io::Result<()> {
    // SAFETY: no memory is involved, and no descriptor changes.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// Returns a new pseudo-terminal's controller and its number below /dev/pts.
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

/// Gives a terminal another size.
pub fn set_window_size(fd: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// Makes `fd` the controlling terminal of this process, which leads a session without one.
pub fn control_terminal(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes a number.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// Gives up this process's controlling terminal, if it has one that is not its session's to keep: reading a client's
/// terminal is nobody's job control then. Keys go on to signal the process group.
pub fn leave_terminal() {
    // SAFETY: neither touches memory.
    let leads = unsafe { libc::getsid(0) == libc::getpid() };
    if leads {
        return;
    }
    if let Ok(terminal) = File::open("/dev/tty") {
        // SAFETY: TIOCNOTTY takes no argument. Where it fails there is nothing to give up.
        unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCNOTTY) };
    }
}

/// Returns a terminal's rows and columns; `None` where `fd` is no terminal or does not know.
pub fn window_size(fd: BorrowedFd<'_>) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    (result == 0 && size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// A terminal's settings.
#[derive(Clone, Copy)]
pub struct Settings(libc::termios);

/// Returns the settings of the terminal `fd`.
pub fn terminal_settings(fd: BorrowedFd<'_>) -> io::Result<Settings> {
    let mut settings = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: tcgetattr fills the whole of it when it succeeds.
    check(unsafe { libc::tcgetattr(fd.as_raw_fd(), settings.as_mut_ptr()) })?;
    // SAFETY: it succeeded.
    Ok(Settings(unsafe { settings.assume_init() }))
}

/// Gives the terminal `fd` these settings.
pub fn set_terminal(fd: BorrowedFd<'_>, settings: &Settings) -> io::Result<()> {
    // SAFETY: the settings are initialized.
    check(unsafe { libc::tcsetattr(fd.as_raw_fd(), libc::TCSANOW, &settings.0) }).map(drop)
}

impl Settings {
    /// Returns these settings with every byte passed on as it is (cfmakeraw(3)).
    pub fn raw(&self) -> Settings {
        let mut settings = self.0;
        // SAFETY: the settings are initialized, and ours.
        unsafe { libc::cfmakeraw(&mut settings) };
        Settings(settings)
    }
}

/// What [`restore_now`] gives back, written before [`ARMED`] is set and never while it is.
static mut SAVED: MaybeUninit<(RawFd, libc::termios)> = MaybeUninit::uninit();
static ARMED: AtomicBool = AtomicBool::new(false);

/// Signals that end the process without unwinding and that nobody forwards.
const CRASHES: [i32; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT];

/// Has the terminal's settings given back when the process crashes. `fd` stays open until the process ends.
///
/// For the main thread, before it changes the settings; a second call changes nothing.
pub fn restore_on_crash(fd: RawFd, settings: &Settings) {
    if ARMED.load(Ordering::Acquire) {
        return;
    }
    // SAFETY: nobody reads SAVED before ARMED is set, and only the main thread writes it, once.
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

/// Gives the settings back, if there are any to give back. Async-signal-safe.
pub fn restore_now() {
    if ARMED.load(Ordering::Acquire) {
        // SAFETY: ARMED says that SAVED is written, and it never changes again; tcsetattr is async-signal-safe.
        unsafe {
            let (fd, settings) = (&raw const SAVED).read().assume_init();
            libc::tcsetattr(fd, libc::TCSANOW, &settings);
        }
    }
}

extern "C" fn crashed(signal: libc::c_int) {
    restore_now();
    // SAFETY: the handler was reset to the default, so this ends the process as the signal would have.
    unsafe { libc::raise(signal) };
}
