//! How containers end: by a signal, by their stop signal and SIGKILL after it, or with the whole machine where the guest does
//! not heed SIGKILL.

use std::time::Instant;

use agent_proto::command::Code;
use agent_proto::payload::ContainerName;

use super::{Awaited, Crew, Happened, Result, is_meant};
use crate::control::Reply;
use crate::exit;
use crate::pod::Guest;
use crate::pod::member::{Ending, Member, Phase};

impl Crew {
    /// Has every container end: with its stop signal, and with SIGKILL at `patience`.
    pub fn stop(&mut self, patience: Instant) {
        self.stopping = true;
        self.patience = Some(self.patience.map_or(patience, |earlier| earlier.min(patience)));
        for member in self.members.iter_mut().filter(|member| member.ending == Ending::Unasked) {
            member.ending = Ending::Wanted;
        }
    }

    /// Sends a signal to the container `name`, or to every one that runs.
    pub fn kill(&mut self, guest: &mut Guest<'_>, name: &str, signal: i32, all: bool) -> Result<Reply> {
        let killed = (signal == libc::SIGKILL).then(|| Instant::now() + self.kill_patience);
        if let Some(member) = self.members.iter_mut().find(|member| is_meant(name, member))
            && member.hold(signal, all)
        {
            member.killed = member.killed.or(killed);
            return Ok(Reply::Done);
        }
        let living = |member: &&Member| is_meant(name, member) && self.lives(member);
        let meant: Vec<String> =
            self.members.iter().filter(living).map(|member| member.spec.name().to_owned()).collect();
        let meant = |member: &&mut Member| meant.iter().any(|name| name == member.spec.name());
        let mut any = false;
        for member in self.members.iter_mut().filter(meant) {
            // What outlives a first process heeds SIGKILL alone.
            if member.phase == Phase::Running {
                member.signal(guest, signal, all)?;
            } else if killed.is_some() {
                let mut left = self.execs.iter_mut().filter(|exec| exec.container == member.spec.name());
                left.try_for_each(|exec| exec.signal(guest, signal))?;
            } else {
                continue;
            }
            member.killed = member.killed.or(killed);
            any = true;
        }
        Ok(if any { Reply::Done } else { self.not_running(name) })
    }

    pub(super) fn advance_members(
        &mut self,
        guest: &mut Guest<'_>,
        now: Instant,
        happened: &mut Vec<Happened>,
    ) -> Result<()> {
        for member in &mut self.members {
            // Who leaves by force is not asked first.
            let patience = self.patience.filter(|_| self.stopping);
            let kill = patience.is_some_and(|patience| patience <= now) || member.leaves;
            let was = member.ending;
            if member.ending > Ending::Unasked {
                member.end(guest, kill)?;
            }
            // The agent keeps a container as long as one of its processes is there.
            let name = member.spec.name();
            let busy = self.execs.iter().any(|exec| exec.keeps(name));
            if kill && busy && matches!(member.phase, Phase::Draining(_)) && member.killed.is_none() {
                member.ending = Ending::Killed;
                let mut left = self.execs.iter_mut().filter(|exec| exec.container == *name);
                left.try_for_each(|exec| exec.signal(guest, libc::SIGKILL))?;
            }
            if was < member.ending && member.ending == Ending::Killed {
                member.killed = member.killed.or(Some(now + self.kill_patience));
            }
            if !busy && member.is_drained(guest, now) {
                let name = ContainerName { container: member.spec.name().to_owned() };
                let command = guest.link.send(Code::RemoveContainer, "remove the container", &name)?;
                self.awaited.push((command, Awaited::Clear(name.container)));
                happened.push(Happened::Changed);
            }
        }
        Ok(())
    }

    /// Finds a container that should have ended by now: its guest does not heed SIGKILL, or does not say so.
    pub(super) fn find_unkilled(&mut self, now: Instant, happened: &mut Vec<Happened>) {
        let overdue =
            |member: &Member| member.killed.is_some_and(|killed| killed <= now) && self.lives(member);
        let Some(index) = self.members.iter().position(overdue) else { return };
        let member = &mut self.members[index];
        member.exit = Some(exit::of_signal(libc::SIGKILL));
        happened.push(Happened::Unkilled(member.spec.name().to_owned()));
    }

    /// Whether the guest still has a process of the container, as far as it has told.
    pub(super) fn lives(&self, member: &Member) -> bool {
        match member.phase {
            Phase::Starting | Phase::Running => true,
            Phase::Draining(_) => self.execs.iter().any(|exec| exec.keeps(member.spec.name())),
            _ => false,
        }
    }
}
