//! DESTROYPOD, in this order: the processes of all containers are killed and reaped, their output and exits are
//! reported, the agent replies, and the machine is reset.
//!
//! In the extended form the agent kills all processes immediately: the host sends DESTROYPOD when it no longer needs
//! the pod. API 4244's hosts expect SIGTERM and a wait; the agent limits the wait. In both forms the reply comes when
//! all processes have exited and as much of their output as the host accepts has been sent. Cgroups and mounts are
//! not removed one by one: the reset discards them.

use alloc::collections::BTreeMap;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::process::Signal;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::container::Container;
use crate::error::{Error, Step};
use crate::process::Process;

/// Seconds between SIGTERM and SIGKILL.
const GRACE_SECONDS: i64 = 10;

/// A pod that is being destroyed.
#[derive(Debug)]
pub struct Destroy {
    /// Message id of the command.
    pub id: u32,
    timer: Option<OwnedFd>,
}

impl Destroy {
    /// Kills all processes for the command `id`.
    pub fn kill(id: u32, processes: &BTreeMap<u32, Process>, containers: &[Container]) -> Destroy {
        kill(processes, containers);
        Destroy { id, timer: None }
    }

    /// Sends SIGTERM to the processes for the command `id`. The caller must [`kill`] them when the timer expires.
    pub fn terminate(id: u32, processes: &BTreeMap<u32, Process>) -> Result<Destroy, Error> {
        processes.values().for_each(|process| _ = process.signal(Signal::TERM));
        Ok(Destroy { id, timer: Some(grace_timer()?) })
    }

    /// Returns the timer, which becomes readable at the end of the grace period.
    pub fn timer(&self) -> Option<BorrowedFd<'_>> {
        self.timer.as_ref().map(AsFd::as_fd)
    }
}

/// Kills all processes of the pod.
pub fn kill(processes: &BTreeMap<u32, Process>, containers: &[Container]) {
    processes.values().for_each(|process| _ = process.signal(Signal::KILL));
    containers.iter().for_each(Container::kill);
}

fn grace_timer() -> Result<OwnedFd, Error> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).step("create", "timer")?;
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let when = Itimerspec { it_interval: zero, it_value: Timespec { tv_sec: GRACE_SECONDS, tv_nsec: 0 } };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &when).step("set", "timer")?;
    Ok(timer)
}
