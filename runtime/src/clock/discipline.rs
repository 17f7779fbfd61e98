//! The clock discipline (RFC 5905, 11): decides from the host's clocks when to ask a guest for its clock, and what to
//! tell it. Pure: the caller reads clocks and carries messages.
//!
//! The prediction of the guest's clock has an error that is known, and so is the rate of the host's. A guest is asked
//! only when the prediction has become too uncertain, and told only when its clock is about to be wrong by more than
//! [`BOUND`]. An error is slewed: the guest gets a slightly different rate, and at the end of the slew the host's rate.
//! It is stepped only if the host's clock was set, or if it is so large that a slew would take seconds.
//!
//! A guest's false readings mislead only its own clock. It has one question at a time, and how often it is asked depends
//! on the host's clock and on limits, never on the readings alone.

use std::time::Duration;

use agent_proto::payload::clock::ClockAdjustment;
use host::sys::clock::Sample;

use super::guest::{GuestLine, Measurement};
use super::host::HostLine;
use super::rate::Rate;

/// Error of the guest's clock that is tolerated, in nanoseconds.
pub const BOUND: f64 = 300e3;
/// Error that is not slewed when the rate is set anyway: as much as a measurement's own error.
const NEGLIGIBLE: f64 = 100e3;
/// Error that is stepped even if the host's clock was not set: it stems from the guest or from a suspended process.
const STEP_MIN: f64 = 200e6;
/// Duration of a slew, in nanoseconds.
const SLEW: f64 = 500e6;
/// Greatest additional rate of a slew. Larger errors take longer.
const SLEW_RATE_MAX: f64 = 0.05;
/// Longest time in nanoseconds until a slew is looked at again.
const SLEW_MAX: f64 = 5e9;
/// Time between checks of a machine that is idle, in nanoseconds. Linux slews its clock by 500 ppm (adjtime(3), the
/// kernel's own PLL), so that the guest's clock is behind by at most 0.5 ms more than [`BOUND`] when a check sees it.
const IDLE: i64 = 1_000_000_000;
/// Time between checks of a machine that works, or while the host's rate changes: what programs slew by 1 % is seen
/// before it is a millisecond.
const ACTIVE: i64 = 50_000_000;
/// Shortest and longest time between two measurements, in nanoseconds. The shortest doubles with each.
const MEASURE: (i64, i64) = (2_000_000_000, 600_000_000_000);
/// Number of questions of a measurement. The quickest answer counts.
const QUESTIONS: u32 = 8;
/// Half the time of an answer that is precise enough to need no other, in nanoseconds.
const PRECISE: i64 = 50_000;

/// A message to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// READCLOCK.
    Read,
    /// ADJUSTCLOCK.
    Adjust(ClockAdjustment),
}

/// The message that waits for its answer.
#[derive(Debug)]
enum Exchange {
    /// Questions left, and the best answer so far.
    Measuring(u32, Option<Measurement>),
    Adjusting(ClockAdjustment),
}

/// The end of a slew, in unadjusted time, and its additional rate.
#[derive(Debug)]
struct Slew {
    end: i64,
    rate: f64,
}

/// The discipline of one guest's clock.
#[derive(Debug)]
pub struct Discipline {
    host: HostLine,
    guest: GuestLine,
    exchange: Option<Exchange>,
    slew: Option<Slew>,
    /// The host's clock was set, and the guest has not followed yet.
    set: bool,
    /// When the guest is measured, in unadjusted time.
    measure_at: i64,
    /// Shortest time to the next measurement.
    gap: i64,
    /// The last measurement contradicted the prediction.
    doubted: bool,
}

impl Discipline {
    /// Returns the discipline of a clock that was never measured.
    pub fn new(now: Sample) -> Discipline {
        Discipline {
            host: HostLine::new(now),
            guest: GuestLine::new(now.raw, now.real),
            exchange: None,
            slew: None,
            set: false,
            measure_at: now.raw,
            gap: MEASURE.0,
            doubted: false,
        }
    }

    /// Compares the clocks. `set` says that the host's clock was set, or the host suspended, since the last check.
    pub fn check(&mut self, now: Sample, set: bool) -> Option<Order> {
        if self.host.take(now, set) {
            (self.set, self.gap) = (true, MEASURE.0);
        }
        if let Some(exchange) = &mut self.exchange {
            // Readings from before a suspend say nothing about the time after it.
            if let Exchange::Measuring(_, best) = exchange
                && self.set
            {
                *best = None;
            }
            return None;
        }
        // The guest's clock source may count the time of a suspended host or not.
        if self.set || now.raw >= self.measure_at {
            self.exchange = Some(Exchange::Measuring(QUESTIONS, None));
            return Some(Order::Read);
        }
        // A guest that has just been stepped and does not say so is not stepped again before it is measured.
        if self.doubted && self.error(now).unsigned_abs() as f64 >= STEP_MIN {
            return None;
        }
        self.decide(now)
    }

    /// Returns by how much the guest's clock is ahead.
    fn error(&self, now: Sample) -> i64 {
        self.guest.at(now.raw).saturating_sub(now.real)
    }

    /// Returns the time to the next check. `works` says that the machine is not idle. Checks are at multiples of their
    /// period, so that the checks of all machines of a host wake it once.
    pub fn pause(&self, now: i64, works: bool) -> Duration {
        let period = if works || !self.host.is_settled() { ACTIVE } else { IDLE };
        let pause = period - now.rem_euclid(period);
        let slew = self.slew.as_ref().filter(|_| self.exchange.is_none()).map(|slew| (slew.end - now).max(0));
        Duration::from_nanos(slew.map_or(pause, |slew| slew.min(pause)).unsigned_abs())
    }

    /// Takes the answer to the last order, which was sent at `sent` in unadjusted time.
    pub fn answered(&mut self, sent: i64, now: Sample, reading: i64) -> Option<Order> {
        let spread = (now.raw - sent).max(0) / 2;
        let measured = Measurement { raw: sent + spread, spread, reading };
        match self.exchange.take()? {
            Exchange::Measuring(left, best) => {
                let best = best.filter(|best| best.spread <= spread).unwrap_or(measured);
                if left > 1 && best.spread > PRECISE {
                    self.exchange = Some(Exchange::Measuring(left - 1, Some(best)));
                    return Some(Order::Read);
                }
                let agrees = self.guest.measured(best);
                self.plan_measurement(now.raw, agrees);
                self.decide(now)
            }
            Exchange::Adjusting(told) => {
                let rate = Rate { tick: told.tick, frequency: told.frequency };
                let agrees = self.guest.changed(measured, told.step.saturating_mul(1000), rate);
                if !agrees {
                    self.plan_measurement(now.raw, false);
                } else if told.step != 0 && !self.doubted {
                    self.measure_at = now.raw + MEASURE.0;
                }
                None
            }
        }
    }

    fn plan_measurement(&mut self, now: i64, agrees: bool) {
        // A guest whose clock keeps contradicting the prediction is asked as seldom as one whose clock is right.
        self.gap = if agrees || self.doubted { (self.gap * 2).min(MEASURE.1) } else { MEASURE.0 };
        self.doubted = !agrees;
        let certain = self.guest.certain_for(BOUND).min(MEASURE.1 as f64) as i64;
        self.measure_at = now + certain.max(self.gap);
    }

    /// Decides whether the guest's clock is to change, and how.
    fn decide(&mut self, now: Sample) -> Option<Order> {
        let error = self.error(now);
        let size = error.unsigned_abs() as f64;
        let rate = self.host.rate();
        let wanted = rate.value + self.slew.as_ref().map_or(0.0, |slew| slew.rate);
        let drift = ((self.guest.deviation() - wanted).abs() - rate.spread).max(0.0) * IDLE as f64;
        let due = match &self.slew {
            Some(slew) => slew.end <= now.raw || drift > BOUND || size >= STEP_MIN,
            None => size + drift > BOUND,
        };
        let step = size >= STEP_MIN || self.set && size > BOUND;
        self.set = false;
        if !due && !step {
            return None;
        }
        let extra = if step || size <= NEGLIGIBLE { 0.0 } else { -(error as f64) / SLEW };
        let told = self.guest.rate_for(rate.value + extra.clamp(-SLEW_RATE_MAX, SLEW_RATE_MAX));
        self.slew = (extra != 0.0).then(|| {
            // Near the limit of 10 % the guest's rate may be less than what was wanted.
            let rate = self.guest.deviation_with(told) - rate.value;
            let time = (size / rate.abs()).min(SLEW_MAX);
            Slew { end: now.raw.saturating_add(time as i64), rate }
        });
        // The kernel takes whole microseconds here.
        let step = if step { error.saturating_neg() / 1000 } else { 0 };
        let told = ClockAdjustment { tick: told.tick, frequency: told.frequency, step };
        self.exchange = Some(Exchange::Adjusting(told));
        Some(Order::Adjust(told))
    }
}

#[cfg(test)]
mod tests;
