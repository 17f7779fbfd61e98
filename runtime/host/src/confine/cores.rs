//! The processor's cores. With SMT, tasks on one core can watch each other through its caches and buffers. A process with
//! a core-scheduling cookie of its own shares a core only with itself (Linux, core-scheduling.rst).

use std::fs;
use std::io;
use std::thread::{Builder, JoinHandle};

use log::Level;
use rustix::io::Errno;
use rustix::process::getpid;
use rustix::thread::{CoreSchedulingScope, core_scheduling_cookie, create_core_scheduling_cookie};

use super::where_possible;

/// Whether any core has several CPUs: 0 or 1.
const SMT: &str = "/sys/devices/system/cpu/smt/active";

/// What this host can do about shared cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cores {
    /// Tasks with a cookie share a core only with tasks of the same cookie.
    Scheduled,
    /// Every CPU is a core: there is no SMT, or it is off.
    Single,
    /// The kernel is older than 5.14, or has no CONFIG_SCHED_CORE.
    Unscheduled,
}

/// A cookie that all threads of this process are about to get.
pub struct Cookie(Option<JoinHandle<Result<(), Errno>>>);

impl Cores {
    /// Asks the kernel.
    pub fn of_host() -> Cores {
        match core_scheduling_cookie(getpid(), CoreSchedulingScope::Thread) {
            Ok(_) => Cores::Scheduled,
            Err(Errno::NODEV) => Cores::Single,
            Err(_) if fs::read_to_string(SMT).is_ok_and(|active| active.trim_end() == "0") => Cores::Single,
            Err(_) => Cores::Unscheduled,
        }
    }
}

impl Cookie {
    /// Starts to give all threads of this process, and those that they will start, a cookie of their own. It happens in
    /// a thread, because the first cookie on a host takes an RCU grace period, which is milliseconds.
    pub fn begin() -> io::Result<Cookie> {
        if let Err(error) = core_scheduling_cookie(getpid(), CoreSchedulingScope::Thread) {
            if error != Errno::NODEV {
                log::debug!("this host's kernel has no core scheduling: {error}");
            }
            return Ok(Cookie(None));
        }
        let create = || create_core_scheduling_cookie(getpid(), CoreSchedulingScope::ThreadGroup);
        Builder::new().name("cookie".into()).spawn(create).map(|thread| Cookie(Some(thread)))
    }

    /// Waits until all threads have the cookie. To be called before the guest runs: the thread that gives it is not
    /// confined.
    pub fn wait(self) -> io::Result<()> {
        let Some(thread) = self.0 else { return Ok(()) };
        let given = thread.join().map_err(|_| io::Error::other("the thread panicked"))?;
        where_possible(Level::Debug, "core scheduling", given.map_err(io::Error::from))
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn all_threads_get_a_cookie_where_the_host_has_them() {
        let cookie = || core_scheduling_cookie(rustix::thread::gettid(), CoreSchedulingScope::Thread);
        Cookie::begin().unwrap().wait().unwrap();
        let other = thread::spawn(cookie).join().unwrap();
        match Cores::of_host() {
            Cores::Scheduled => {
                assert_ne!(other, Ok(0));
                assert_eq!(other, cookie());
            }
            Cores::Single | Cores::Unscheduled => assert!(other.is_err()),
        }
    }
}
