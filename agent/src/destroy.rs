//! DESTROYPOD: ends all containers, and then the machine.
//!
//! In the extended form the agent kills all processes immediately: the host sends DESTROYPOD when it no longer needs the pod.
//! API 4244's hosts expect SIGTERM and a wait; the agent limits the wait. In both forms the reply comes when all processes
//! have ended and as much of their output as possible has been sent.

use agent_proto::command::Code;
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::process::Signal;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::agent::{Agent, Role, Setting, watch};
use crate::fault::{Fault, Step};
use crate::timeline;

/// Seconds between SIGTERM and SIGKILL.
const GRACE_SECONDS: i64 = 10;

/// A pod that is being destroyed.
#[derive(Debug)]
pub struct Destroy {
    /// Message id of the command.
    id: u32,
    /// Timer of the wait, which only needs to stay open.
    _deadline: Option<OwnedFd>,
}

impl Agent {
    /// Starts to destroy the pod.
    pub(crate) fn begin_destroy(&mut self, id: u32) -> Result<(), Fault> {
        if self.destroy.is_some() {
            return Err(Fault::failed("the pod is being destroyed"));
        }
        let deadline = if self.control.is_extended() || self.processes.is_empty() {
            self.kill_everything();
            None
        } else {
            self.processes.values().for_each(|process| _ = process.signal(Signal::TERM));
            Some(self.deadline()?)
        };
        self.destroy = Some(Destroy { id, _deadline: deadline });
        Ok(())
    }

    fn deadline(&mut self) -> Result<OwnedFd, Fault> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).step("make", "timer")?;
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let when = Itimerspec { it_interval: zero, it_value: Timespec { tv_sec: GRACE_SECONDS, tv_nsec: 0 } };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &when).step("set", "timer")?;
        watch(&self.epoll, timer.as_fd(), 0, Role::Deadline, EventFlags::IN | EventFlags::ET)?;
        Ok(timer)
    }

    /// Kills the processes that have not ended after SIGTERM.
    pub(crate) fn deadline_passed(&mut self) {
        if self.destroy.is_some() {
            self.kill_everything();
        }
    }

    fn kill_everything(&mut self) {
        self.processes.values().for_each(|process| _ = process.signal(Signal::KILL));
        self.containers.iter().for_each(|container| container.kill());
    }

    /// Replies when all processes have ended. Called when there is no more progress, so any remaining output is output that the
    /// host does not accept.
    pub(crate) fn finish_destroy(&mut self) -> bool {
        if self.destroy.is_none() || self.processes.values().any(|process| process.pidfd.is_some()) {
            return false;
        }
        let Some(destroy) = self.destroy.take() else { return false };
        if self.setting == Setting::Guest {
            // At the end, so that it does not affect measurements.
            timeline::copy_if_wanted();
            rustix::fs::sync();
        }
        self.control.reply(destroy.id, Ok(alloc::vec::Vec::new()), Code::DestroyPod as u32);
        self.power_off = true;
        true
    }
}
