//! READCLOCK and ADJUSTCLOCK: the wall clock, which the host steers.
//!
//! The agent only reads the clock and passes adjustments to the kernel. All decisions are the host's, so the agent needs no
//! timer, and an idle guest is not woken. A step is made by the kernel's ADJ_SETOFFSET, which also moves the programs'
//! timers on CLOCK_REALTIME and cancels those with TFD_TIMER_CANCEL_ON_SET.

use alloc::format;
use alloc::vec::Vec;

use agent_proto::payload::clock::{ClockAdjustment, ClockReading, FREQUENCY_MAX, TICK, TICK_RANGE};
use rustix::io::Result as IoResult;

use crate::channel::json;
use crate::error::{Error, Step};
use crate::sys::{self, Timex};

/// adjtimex(2)'s modes.
const ADJ_FREQUENCY: u32 = 0x2;
const ADJ_SETOFFSET: u32 = 0x100;
const ADJ_TICK: u32 = 0x4000;

const MICROS: i64 = 1_000_000;

/// Executes READCLOCK.
pub(crate) fn read() -> Vec<u8> {
    // The kernel's clock is never negative, and ends before these numbers do.
    let (seconds, nanoseconds) = sys::wall_clock();
    let realtime = seconds * 1_000_000_000 + nanoseconds;
    json(&ClockReading { realtime })
}

/// Executes ADJUSTCLOCK with the system call `set`.
pub(crate) fn adjust(
    wanted: &ClockAdjustment,
    set: impl FnOnce(&Timex) -> IoResult<()>,
) -> Result<Vec<u8>, Error> {
    let change = timex(wanted)?;
    // The last call before the change: the host learns from the reading when the change was made.
    let reading = read();
    set(&change).step("adjust", "the clock")?;
    Ok(reading)
}

fn timex(wanted: &ClockAdjustment) -> Result<Timex, Error> {
    let &ClockAdjustment { tick, frequency, step } = wanted;
    if tick.abs_diff(TICK) > TICK_RANGE {
        return Err(Error::bad_request(format!("a clock's tick of {tick} us")));
    }
    if frequency.unsigned_abs() > FREQUENCY_MAX.unsigned_abs() {
        return Err(Error::bad_request(format!("a clock's frequency of {frequency}")));
    }
    let modes = ADJ_FREQUENCY | ADJ_TICK | if step == 0 { 0 } else { ADJ_SETOFFSET };
    Ok(Timex {
        modes,
        tick: tick.into(),
        frequency: frequency.into(),
        seconds: step.div_euclid(MICROS),
        microseconds: step.rem_euclid(MICROS),
        ..Timex::default()
    })
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use agent_proto::payload::ErrorCode;
    use rustix::io::Errno;

    use super::*;

    /// Returns what the kernel is asked for.
    fn asked(wanted: ClockAdjustment) -> (u32, i64, i64, i64, i64) {
        let mut calls = Vec::new();
        let reply = adjust(&wanted, |change| {
            calls.push(*change);
            Ok(())
        });
        serde_json::from_slice::<ClockReading>(&reply.unwrap()).unwrap();
        let [change] = calls[..] else { panic!("{calls:?}") };
        (change.modes, change.tick, change.frequency, change.seconds, change.microseconds)
    }

    #[test]
    fn rate_is_set_without_a_step() {
        assert_eq!(
            asked(ClockAdjustment { tick: 10_100, frequency: -7, step: 0 }),
            (0x4002, 10_100, -7, 0, 0)
        );
    }

    #[test]
    fn step_has_microseconds_that_are_not_negative() {
        let step = |step| asked(ClockAdjustment { tick: 10_000, frequency: 0, step });
        assert_eq!(step(-600_000_001), (0x4102, 10_000, 0, -601, 999_999));
        assert_eq!(step(1_500_000), (0x4102, 10_000, 0, 1, 500_000));
    }

    #[test]
    fn rate_beyond_the_kernel_s_limits_is_refused_by_name() {
        for (tick, frequency, name) in
            [(8_999, 0, "tick"), (11_001, 0, "tick"), (10_000, i32::MIN, "frequency")]
        {
            let wanted = ClockAdjustment { tick, frequency, step: 0 };
            let fault = adjust(&wanted, |_| panic!("not asked")).unwrap_err();
            assert_eq!(fault.code, ErrorCode::BadRequest);
            assert!(fault.text.contains(name), "{}", fault.text);
        }
    }

    #[test]
    fn refusal_of_the_kernel_is_an_error() {
        let wanted = ClockAdjustment { tick: 10_000, frequency: 0, step: 1 };
        let fault = adjust(&wanted, |_| Err(Errno::PERM)).unwrap_err();
        assert_eq!(fault, Error::failed("adjust the clock: operation not permitted"));
    }

    #[test]
    fn reading_is_the_wall_clock() {
        let before = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let ClockReading { realtime } = serde_json::from_slice(&read()).unwrap();
        let after = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        assert!((before..=after).contains(&realtime), "{before} {realtime} {after}");
    }
}
