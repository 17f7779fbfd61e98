//! The confinement of a machine's process: the rights that each thread gives up before the guest can influence it.
//!
//! A thread calls [`enter`] once. It then has no capabilities beyond those of its [`Role`], can get none back, and
//! makes only the system calls of its role. A call beyond them ends the process: [`sys::confinement`] reports the call
//! and its thread, and the kernel kills the process with SIGSYS and writes an audit record.
//!
//! Every thread has a filter of its own, and no thread is started by one with a smaller filter. Read in this order:
//! [`capabilities`], [`calls`], [`filter`].

use std::cell::Cell;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use log::Level;
use rustix::process::getpid;
use rustix::thread::gettid;

use crate::sys;

mod calls;
mod capabilities;
pub mod cores;
mod filter;
mod paths;

pub use paths::Paths;

/// The purpose of a thread of a machine's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The main thread, once the machine is built: the agent's messages, clients and signals. The thread that stops the
    /// machine has its filter.
    Main,
    /// The main thread of a container in a network namespace, whose changes it follows.
    Network,
    /// The main thread of a pod, to which containers are added.
    Pod,
    /// Runs a vCPU.
    Vcpu,
    /// Serves all queues whose requests do not block.
    Devices,
    /// Serves the share.
    Files,
    /// Serves the share of a container that can gain CAP_SYS_ADMIN.
    AdminFiles,
    /// Carries name queries of the guest.
    Resolver,
    /// Connects to sockets of the host for the guest.
    Sockets,
    /// The only thread of a process beside the machine's, which forks processes that the host's kernel kills
    /// ([`KillReporter`](crate::cgroup::kill_reporter::KillReporter)).
    Reporter,
}

impl Role {
    /// Whether the thread finds files by their paths.
    fn names_files(self) -> bool {
        matches!(self, Role::Main | Role::Network | Role::Pod | Role::Reporter)
    }
}

/// Exit code of a process that cannot confine itself.
const FAILED: i32 = 125;

/// The warning about a host without filters was printed.
static WARNED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static ENTERED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this host's kernel has seccomp filters.
pub fn has_filters() -> bool {
    Path::new("/proc/sys/kernel/seccomp/actions_avail").exists()
}

/// Whether this host's kernel has Landlock and was started with it.
pub fn has_landlock() -> bool {
    paths::has_landlock()
}

/// Whether the calling thread is confined.
pub fn is_entered() -> bool {
    ENTERED.get()
}

/// Prepares the process. `report` is called with a message when a thread makes a forbidden system call. It runs in a
/// signal handler, in which it may only make system calls and may not allocate.
pub fn prepare(report: fn(fmt::Arguments<'_>)) -> io::Result<()> {
    sys::confinement::report_to(report)?;
    // Without a keyring of its own the process could read the keys of the caller's session. An ordinary user has a
    // quota of keys; then the caller's keyring stays, which nothing can use once the threads have their filters.
    sys::confinement::join_new_keyring().unwrap_or_else(|error| log::debug!("join a new keyring: {error}"));
    Ok(())
}

/// Confines the calling thread for the rest of its life, as far as the host permits. If a step fails for another
/// reason, the process ends.
pub fn enter(role: Role) {
    enter_with(role, None);
}

/// Like [`enter`], for the main thread, which can only use these files afterwards.
pub fn enter_main(role: Role, paths: &Paths) {
    enter_with(role, Some(paths));
}

fn enter_with(role: Role, paths: Option<&Paths>) {
    if let Err(error) = confine(role, paths) {
        log::error!("confine the thread {role:?}: {error}");
        std::process::exit(FAILED);
    }
    ENTERED.set(true);
}

fn confine(role: Role, paths: Option<&Paths>) -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    if !role.names_files() {
        where_possible(Level::Debug, "an empty root for threads", paths::leave_root())?;
    }
    if let Some(paths) = paths {
        where_possible(Level::Debug, "Landlock for the main thread", paths::restrict(paths))?;
    }
    capabilities::keep(role)?;
    let ids = calls::Ids { process: getpid().as_raw_pid() as u32, thread: gettid().as_raw_pid() as u32 };
    let filter = sys::confinement::set_filter(&filter::program(&calls::of(role, ids)));
    where_possible(Level::Warn, "seccomp filters", filter)
}

/// Accepts that the host does not have or does not permit a step, which is logged: the machine runs with the
/// confinement that it can have. The guest does not run yet and cannot make a step fail.
fn where_possible(level: Level, what: &str, done: io::Result<()>) -> io::Result<()> {
    let Err(error) = done else { return Ok(()) };
    let missing = [libc::EACCES, libc::EINVAL, libc::ENODEV, libc::ENOSYS, libc::EOPNOTSUPP, libc::EPERM];
    if !error.raw_os_error().is_some_and(|number| missing.contains(&number)) {
        return Err(error);
    }
    // Every thread has a filter of its own; one message is enough.
    if level != Level::Warn || !WARNED.swap(true, Ordering::Relaxed) {
        log::log!(level, "this host does not permit {what}: {error}");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
