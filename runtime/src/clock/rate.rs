//! The rate of a guest's wall clock, in the numbers of adjtimex(2).

use agent_proto::payload::clock::{FREQUENCY_MAX, FREQUENCY_UNIT, TICK, TICK_RANGE};

/// Greatest deviation that is set by the frequency alone, with an unchanged tick.
const FINE: f64 = FREQUENCY_MAX as f64 / FREQUENCY_UNIT;

/// The rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Length of a tick in microseconds.
    pub tick: u32,
    /// Frequency in 2^-16 ppm.
    pub frequency: i32,
}

impl Rate {
    /// The rate with which a guest boots: that of its clock source.
    pub const BOOT: Rate = Rate { tick: TICK, frequency: 0 };

    /// Returns the rate nearest to a deviation: exact to 2^-16 ppm up to 10 %, and 10 % beyond.
    pub fn nearest(deviation: f64) -> Rate {
        let ticks = f64::from(TICK);
        let range = f64::from(TICK_RANGE);
        let coarse =
            if deviation.abs() <= FINE { 0.0 } else { (deviation * ticks).round().clamp(-range, range) };
        let fine = ((deviation - coarse / ticks) * FREQUENCY_UNIT).round();
        let most = f64::from(FREQUENCY_MAX);
        Rate { tick: (ticks + coarse) as u32, frequency: fine.clamp(-most, most) as i32 }
    }

    /// Returns the deviation from the rate of the clock source.
    pub fn deviation(self) -> f64 {
        f64::from(self.tick) / f64::from(TICK) - 1.0 + f64::from(self.frequency) / FREQUENCY_UNIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_what_the_kernel_makes_of_it() {
        assert_eq!(Rate::nearest(0.0), Rate::BOOT);
        assert_eq!(Rate::nearest(-500e-6), Rate { tick: 10_000, frequency: -(500 << 16) });
        assert_eq!(Rate::nearest(0.01), Rate { tick: 10_100, frequency: 0 });
        assert_eq!(Rate::nearest(0.010_020), Rate { tick: 10_100, frequency: 20 << 16 });
        for deviation in [0.0, 1e-7, -499e-6, 501e-6, 0.083_333, -0.099] {
            assert!((Rate::nearest(deviation).deviation() - deviation).abs() < 2e-11, "{deviation}");
        }
    }

    #[test]
    fn a_rate_never_leaves_the_kernel_s_range() {
        for (deviation, tick) in [(1e9, 11_000), (-1e9, 9_000), (f64::INFINITY, 11_000), (0.2, 11_000)] {
            let rate = Rate::nearest(deviation);
            assert_eq!((rate.tick, rate.frequency.unsigned_abs()), (tick, FREQUENCY_MAX.unsigned_abs()));
        }
    }
}
