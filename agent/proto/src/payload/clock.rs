//! READCLOCK and ADJUSTCLOCK: the guest's wall clock, which the host steers.
//!
//! The numbers are those of adjtimex(2), so that the agent passes them on. The clock's rate is the guest's clock source
//! times `tick / TICK + frequency / FREQUENCY_UNIT`.

use serde::{Deserialize, Serialize};

use super::object::object;

/// Length of an unadjusted tick in microseconds.
pub const TICK: u32 = 10_000;
/// Greatest difference of a tick from [`TICK`] in microseconds: the kernel's limit.
pub const TICK_RANGE: u32 = 1_000;
/// The frequency that doubles the clock's rate.
pub const FREQUENCY_UNIT: f64 = 65_536e6;
/// Greatest absolute frequency: the kernel's limit, 500 ppm.
pub const FREQUENCY_MAX: i32 = 500 << 16;

/// ADJUSTCLOCK. Rate and step change together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ClockAdjustment {
    /// Length of a tick in microseconds, near [`TICK`].
    pub tick: u32,
    /// Fine rate in 2^-16 ppm, at most [`FREQUENCY_MAX`] in either direction.
    pub frequency: i32,
    /// Microseconds by which the clock is stepped. 0 means that it is not.
    #[serde(skip_serializing_if = "is_zero")]
    pub step: i64,
}

object!(ClockAdjustment, Refused, {
    "tick": tick,
    "frequency": frequency,
    "step": step,
});

/// Reply to both commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockReading {
    /// The guest's CLOCK_REALTIME in nanoseconds.
    pub realtime: u64,
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}
