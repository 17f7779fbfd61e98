//! Reaping children: the processes of containers, and in a guest also orphans that became children of PID 1.

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait, waitpid};

use crate::error::{Error, Step};
use crate::state::{Setting, State};

impl State {
    /// Reaps all children that have exited.
    pub(crate) fn reap(&mut self) -> Result<(), Error> {
        if !core::mem::take(&mut self.child_exited) {
            return Ok(());
        }
        if self.setting == Setting::Guest {
            while let Some((pid, status)) = reap(None)? {
                self.exited(pid, status)?;
            }
            return Ok(());
        }
        // In a test, other children do not belong to the agent.
        let own: alloc::vec::Vec<Pid> = self
            .processes
            .values()
            .filter(|process| process.pidfd.is_some())
            .map(|process| process.pid)
            .collect();
        for pid in own {
            if let Some((pid, status)) = reap(Some(pid))? {
                self.exited(pid, status)?;
            }
        }
        Ok(())
    }

    fn exited(&mut self, pid: Pid, status: WaitStatus) -> Result<(), Error> {
        if self.pod.as_ref().is_some_and(|pod| pod.is_pid_1(pid)) {
            return Err(Error::failed("PID 1 of the pod's PID namespace has exited"));
        }
        let known = |process: &crate::process::Process| process.pid == pid && process.pidfd.is_some();
        let Some((key, process)) = self.processes.iter_mut().find(|(_, process)| known(process)) else {
            return Ok(());
        };
        process.status = Some(status);
        process.pidfd = None;
        let key = *key;
        if let Some(container) = self.containers.iter_mut().find(|container| container.init == Some(key)) {
            container.init = None;
            container.kill_remaining();
        }
        self.take_report(key)?;
        self.answer_start(key);
        Ok(())
    }
}

fn reap(pid: Option<Pid>) -> Result<Option<(Pid, WaitStatus)>, Error> {
    // waitpid without a PID would mean the agent's process group; wait means any child.
    let reaped = match pid {
        Some(pid) => waitpid(Some(pid), WaitOptions::NOHANG),
        None => wait(WaitOptions::NOHANG),
    };
    match reaped {
        Err(Errno::CHILD | Errno::INTR) => Ok(None),
        other => other.step("wait for", "children"),
    }
}
