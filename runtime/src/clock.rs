//! Keeps the wall clocks of guests right: a guest's clock follows the host's, its rate and its steps.
//!
//! A guest boots with the host's time, and its clock source then counts as the host's unadjusted clock does. It does not
//! see what NTP, chrony or an administrator do to the host's wall clock. So the main thread compares the host's wall
//! clock with its unadjusted clock ([`host`]), predicts the guest's wall clock from what the guest was told ([`guest`]),
//! and tells the guest what to change ([`discipline`]). The agent passes that to adjtimex(2).
//!
//! - The guest is not woken while its clock is right within [`discipline::BOUND`], apart from measurements: about ten in
//!   the first quarter of an hour, then one every ten minutes. The machine's process wakes once a second, and every 50 ms
//!   while its guest works.
//! - A step of the host's clock and a resume from suspend are events ([`SetWatch`]).
//! - Nothing happens before the first check, one second after the containers were started.
//! - While a pod is paused its guest's clock is kept. A process that was stopped checks as soon as it continues.
//! - A guest's answer has no deadline that ends the pod, and delays no other command. An agent that does not know the
//!   commands is not asked again.
//! - A container with CAP_SYS_TIME sets the guest's clock. That lasts until the next measurement.
//!
//! docs/decisions/machine.md has the reasons.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use ::host::sys::clock::{self, Sample, SetWatch};
use agent_proto::command::Code;
use agent_proto::payload::ErrorCode;
use agent_proto::payload::clock::ClockReading;
use link::{AgentLink, CommandId, LinkError};

use discipline::{Discipline, Order};

pub mod discipline;
pub mod estimate;
pub mod guest;
pub mod host;
pub mod rate;

/// Time from the start of the containers to the first check: no machine that ends sooner has any work with its clock.
const FIRST: Duration = Duration::from_secs(1);
/// Share of a CPU, as its inverse, above which a machine is not idle. The checks themselves need a tenth of it.
const IDLE_SHARE: u32 = 500;

/// The keeper of a guest's clock.
#[derive(Debug)]
pub struct GuestClock {
    /// When the clocks are to be compared next; `None` if the guest cannot be told.
    due: Option<Instant>,
    kept: Option<Kept>,
}

/// What the first check creates.
#[derive(Debug)]
struct Kept {
    discipline: Discipline,
    /// `None` if the host had no descriptor for it: then checks alone find steps.
    watch: Option<SetWatch>,
    /// The command that waits for its answer, and the unadjusted time when it was sent.
    asked: Option<(CommandId, i64)>,
    checked: Instant,
    cpu_time: Duration,
}

impl GuestClock {
    /// Returns the keeper of a guest whose containers were started at `now`, if its agent can adjust the clock.
    pub fn new(link: &AgentLink, now: Instant) -> GuestClock {
        GuestClock { due: (!link.is_api4244()).then(|| now + FIRST), kept: None }
    }

    /// Returns a descriptor that is readable when the host's clock was set.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.due?;
        Some(self.kept.as_ref()?.watch.as_ref()?.fd())
    }

    /// Returns when [`step`](Self::step) has work without an event.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Takes the guest's answer, and compares the clocks if that is due. `set` says that [`fd`](Self::fd) is readable.
    pub fn step(&mut self, link: &mut AgentLink, set: bool) -> Result<(), LinkError> {
        let Some(due) = self.due else { return Ok(()) };
        if let Some(kept) = &mut self.kept
            && let Some((command, sent)) = kept.asked
            && let Some(reply) = link.reply(command)
        {
            let now = clock::sample();
            kept.asked = None;
            match reading(reply) {
                Ok(reading) => {
                    let order = kept.discipline.answered(sent, now, reading);
                    kept.send(link, order)?;
                }
                Err(error) => {
                    self.end(error);
                    return Ok(());
                }
            }
        }
        if set || due <= Instant::now() {
            self.due = Some(self.check(link)?);
        }
        Ok(())
    }

    /// Compares the clocks. Returns when to do so again.
    fn check(&mut self, link: &mut AgentLink) -> Result<Instant, LinkError> {
        let kept = self.kept.get_or_insert_with(|| Kept {
            discipline: Discipline::new(clock::sample()),
            watch: SetWatch::new()
                .inspect_err(|error| log::debug!("watch the clock for steps: {error}"))
                .ok(),
            asked: None,
            checked: Instant::now(),
            cpu_time: Duration::ZERO,
        });
        let (sample, set) = kept.sample();
        let order = kept.discipline.check(sample, set);
        kept.send(link, order)?;
        let works = kept.works();
        Ok(kept.checked + kept.discipline.pause(sample.raw, works))
    }

    fn end(&mut self, error: LinkError) {
        match error {
            LinkError::Refused { code: ErrorCode::Unsupported, .. } => {
                log::info!("the agent cannot adjust its clock, which does not follow the host's");
            }
            error => log::warn!("{error}; the guest's clock no longer follows the host's"),
        }
        (self.due, self.kept) = (None, None);
    }
}

impl Kept {
    /// Reads the clocks. Returns whether the wall clock was set since the last call.
    fn sample(&self) -> (Sample, bool) {
        let was_set = || self.watch.as_ref().is_some_and(SetWatch::was_set);
        let (before, sample) = (was_set(), clock::sample());
        // Otherwise a step between the two would look like a rate.
        if was_set() { (clock::sample(), true) } else { (sample, before) }
    }

    fn send(&mut self, link: &mut AgentLink, order: Option<Order>) -> Result<(), LinkError> {
        let command = match order {
            None => return Ok(()),
            Some(Order::Read) => link.send_bare(Code::ReadClock, "read the guest's clock")?,
            Some(Order::Adjust(change)) => {
                log::debug!("clock: {change:?}");
                link.send(Code::AdjustClock, "adjust the guest's clock", &change)?
            }
        };
        // The pod does not depend on this answer.
        link.excuse(command, true);
        self.asked = Some((command, clock::raw()));
        link.flush()
    }

    /// Whether the machine has not been idle since the last call.
    fn works(&mut self) -> bool {
        let (now, used) = (Instant::now(), clock::cpu_time());
        let elapsed = now.duration_since(self.checked);
        let spent = used.saturating_sub(self.cpu_time);
        (self.checked, self.cpu_time) = (now, used);
        spent > elapsed / IDLE_SHARE
    }
}

fn reading(reply: Result<Vec<u8>, LinkError>) -> Result<i64, LinkError> {
    let malformed = || LinkError::Protocol("malformed reading of the guest's clock".to_owned());
    let reading: ClockReading = serde_json::from_slice(&reply?).map_err(|_| malformed())?;
    // The kernel's clock ends where these numbers do.
    i64::try_from(reading.realtime).map_err(|_| malformed())
}

#[cfg(test)]
mod tests;
