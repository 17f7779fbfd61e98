//! How containers end: by a signal, by their stop signal followed by SIGKILL, or with the whole machine if the guest
//! does not act on SIGKILL.

use std::time::{Duration, Instant};

use agent_proto::command::Code;
use agent_proto::payload::ContainerName;

use super::{Awaited, Containers, Event, Result};
use crate::control::Reply;
use crate::exit;
use crate::pod::Guest;
use crate::pod::container::{Container, Phase, StopStage};

impl Containers {
    /// Stops every container: sends the stop signal, and SIGKILL at `patience`.
    pub fn stop(&mut self, patience: Instant) {
        self.stopping = true;
        self.patience = Some(self.patience.map_or(patience, |earlier| earlier.min(patience)));
        for container in self.all.iter_mut().filter(|container| container.stop_stage == StopStage::None) {
            container.stop_stage = StopStage::Requested;
        }
    }

    /// Sends a signal to the container `name`, or to every running container if it is empty.
    pub fn kill(&mut self, guest: &mut Guest<'_>, name: &str, signal: i32, all: bool) -> Result<Reply> {
        let killed = (signal == libc::SIGKILL).then(|| Instant::now() + self.kill_patience);
        if let Some(container) = self.all.iter_mut().find(|container| container.is_meant(name))
            && container.hold(signal, all)
        {
            container.killed = container.killed.or(killed);
            return Ok(Reply::Done);
        }
        let living = |container: &&Container| container.is_meant(name) && self.lives(container);
        let meant: Vec<String> =
            self.all.iter().filter(living).map(|container| container.spec.name().to_owned()).collect();
        let meant = |container: &&mut Container| meant.iter().any(|name| name == container.spec.name());
        let mut any = false;
        for container in self.all.iter_mut().filter(meant) {
            // After the exit of the init process, the remaining exec processes get only SIGKILL.
            if container.phase == Phase::Running {
                container.signal(guest, signal, all)?;
            } else if killed.is_some() {
                let mut left =
                    self.execs.iter_mut().filter(|exec| exec.process.container == container.spec.name());
                left.try_for_each(|exec| exec.process.signal(guest, signal, false))?;
            } else {
                continue;
            }
            container.killed = container.killed.or(killed);
            any = true;
        }
        Ok(if any { Reply::Done } else { self.not_running(name) })
    }

    pub(super) fn advance_containers(&mut self, guest: &mut Guest<'_>, now: Instant) -> Result<()> {
        for container in &mut self.all {
            // A container that is removed by force gets no stop signal.
            let patience = self.patience.filter(|_| self.stopping);
            let kill = patience.is_some_and(|patience| patience <= now) || container.leaves;
            let was = container.stop_stage;
            if container.stop_stage > StopStage::None {
                container.advance_stop(guest, kill)?;
            }
            // The agent keeps a container while one of its processes exists.
            let name = container.spec.name();
            let busy = self.execs.iter().any(|exec| exec.keeps(name));
            if kill && busy && matches!(container.phase, Phase::Draining) && container.killed.is_none() {
                container.stop_stage = StopStage::Killed;
                let mut left = self.execs.iter_mut().filter(|exec| exec.process.container == *name);
                left.try_for_each(|exec| exec.process.signal(guest, libc::SIGKILL, false))?;
            }
            if was < container.stop_stage && container.stop_stage == StopStage::Killed {
                container.killed = container.killed.or(Some(now + self.kill_patience));
            }
            container.advance(guest)?;
            if busy || !container.drain(guest, now) {
                continue;
            }
            if container.is_cleared(guest.link.protocol()) {
                let name = ContainerName { container: container.spec.name().to_owned() };
                let command = guest.link.send(Code::RemoveContainer, "remove the container", &name)?;
                self.awaited.push((command, Awaited::Clear(name.container)));
            } else {
                container.cleared();
            }
            self.events.push(Event::Changed);
        }
        Ok(())
    }

    /// Extends the time of killed containers by `starved`, in which the host gave the machine no CPU.
    pub fn excuse_starved(&mut self, starved: Duration) {
        let killed = self.all.iter_mut().filter_map(|container| container.killed.as_mut());
        killed.for_each(|until| *until += starved);
    }

    /// Finds a killed container whose end the guest has not reported in time.
    pub(super) fn find_unkilled(&mut self, now: Instant) {
        let overdue = |container: &Container| {
            container.killed.is_some_and(|killed| killed <= now) && self.lives(container)
        };
        let Some(index) = self.all.iter().position(overdue) else { return };
        let container = &mut self.all[index];
        container.exit = Some(exit::of_signal(libc::SIGKILL));
        self.events.push(Event::Unkilled(container.spec.name().to_owned()));
    }

    /// Whether the guest still has a process of the container, according to its reports.
    pub(super) fn lives(&self, container: &Container) -> bool {
        match container.phase {
            Phase::Starting | Phase::Running => true,
            Phase::Draining => self.execs.iter().any(|exec| exec.keeps(container.spec.name())),
            _ => false,
        }
    }
}
