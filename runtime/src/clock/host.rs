//! The host's wall clock as a line over its unadjusted clock: the rate at which NTP lets it run.

use host::sys::clock::Sample;

use super::estimate::Estimate;

/// Difference from the line, in nanoseconds, below which the rate counts as unchanged, besides the readings' own errors.
const NOISE: f64 = 20e3;
/// Shortest time between two samples from which a rate is computed, in nanoseconds.
const BASELINE_MIN: i64 = 10_000_000;
/// Greatest deviation of a clock that is slewed: the kernel permits 10 % by the tick, and 500 ppm twice. A clock that
/// deviates more was set.
const RATE_MAX: f64 = 0.102;
/// Number of consecutive samples on the line after which the rate counts as known.
const SETTLED: u32 = 3;

/// The line.
#[derive(Debug)]
pub struct HostLine {
    /// The first sample with the present rate.
    first: Sample,
    last: Sample,
    /// Deviation of the rate from that of the unadjusted clock.
    rate: Estimate,
    /// Number of consecutive samples on the line.
    steady: u32,
}

impl HostLine {
    /// Returns a line through `now`, with an unknown rate.
    pub fn new(now: Sample) -> HostLine {
        HostLine { first: now, last: now, rate: Estimate { value: 0.0, spread: 1.0 }, steady: 0 }
    }

    /// Takes a sample. `set` says that the clock was set since the last one, which does not change its rate. Returns
    /// whether it was, which the samples may show as well.
    pub fn take(&mut self, now: Sample, set: bool) -> bool {
        let step = now.raw - self.last.raw;
        let blur = (now.spread + self.last.spread) as f64;
        if set || shift(self.last, now).abs() > RATE_MAX * step as f64 + blur + NOISE {
            (self.first, self.last, self.steady) = (now, now, 0);
            return true;
        }
        if step < BASELINE_MIN {
            return false;
        }
        let time = (now.raw - self.first.raw) as f64;
        let shift = shift(self.first, now);
        let known = NOISE + (now.spread + self.first.spread) as f64 + self.rate.spread * step as f64;
        if (shift - self.rate.value * time).abs() <= known {
            self.steady = self.steady.saturating_add(1);
        } else {
            // The rate changed at an unknown moment since the last sample. The next sample tells the new rate exactly.
            (self.first, self.steady) = (self.last, 0);
        }
        let time = (now.raw - self.first.raw) as f64;
        let spread = (now.spread + self.first.spread) as f64;
        self.rate = Estimate { value: self::shift(self.first, now) / time, spread: spread / time };
        self.last = now;
        false
    }

    /// Returns the deviation of the rate from that of the unadjusted clock.
    pub fn rate(&self) -> Estimate {
        self.rate
    }

    /// Whether the rate has been the same for some samples.
    pub fn is_settled(&self) -> bool {
        self.steady >= SETTLED
    }
}

/// Returns by how much the wall clock has advanced more than the other one.
fn shift(from: Sample, to: Sample) -> f64 {
    ((to.real - from.real) - (to.raw - from.raw)) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn at(raw: i64, real: i64) -> Sample {
        Sample { raw, real, spread: 100 }
    }

    #[test]
    fn rate_is_the_slope_of_the_wall_clock() {
        let mut line = HostLine::new(at(0, 0));
        for second in 1..10 {
            line.take(at(second * SECOND, second * (SECOND + 10_000_000)), false);
        }
        let rate = line.rate();
        assert!((rate.value - 0.01).abs() <= rate.spread && rate.spread < 1e-7, "{rate:?}");
        assert!(line.is_settled());
    }

    #[test]
    fn a_change_within_an_interval_is_known_exactly_one_sample_later() {
        let mut line = HostLine::new(at(0, 0));
        for second in 1..10 {
            line.take(at(second * SECOND, second * SECOND), false);
        }
        // From 9.5 s on, 1 % more.
        line.take(at(10 * SECOND, 10 * SECOND + 5_000_000), false);
        assert!(!line.is_settled());
        assert!((line.rate().value - 0.005).abs() < 1e-6);
        line.take(at(11 * SECOND, 11 * SECOND + 15_000_000), false);
        assert!((line.rate().value - 0.01).abs() < 1e-6);
    }

    #[test]
    fn noise_of_the_readings_is_no_change() {
        let mut line = HostLine::new(Sample { raw: 0, real: 0, spread: 10_000 });
        for tenth in 1..100 {
            let noise = if tenth % 2 == 0 { 9_000 } else { -9_000 };
            let raw = tenth * SECOND / 10;
            line.take(Sample { raw, real: raw + noise, spread: 10_000 }, false);
        }
        assert!(line.is_settled() && line.rate().value.abs() <= line.rate().spread, "{line:?}");
    }

    #[test]
    fn a_jump_that_is_no_slew_shows_that_the_clock_was_set() {
        let mut line = HostLine::new(at(0, 0));
        assert!(!line.take(at(SECOND, SECOND + SECOND / 10), false));
        assert!(line.take(at(2 * SECOND, 3 * SECOND), false));
        assert!(!line.take(at(3 * SECOND, 4 * SECOND), false));
    }

    #[test]
    fn a_clock_that_was_set_keeps_its_rate() {
        let mut line = HostLine::new(at(0, 0));
        for second in 1..10 {
            line.take(at(second * SECOND, second * (SECOND + 10_000)), false);
        }
        line.take(at(10 * SECOND, -600 * SECOND), true);
        line.take(at(11 * SECOND, -599 * SECOND + 10_000), false);
        assert!((line.rate().value - 1e-5).abs() < 1e-6, "{line:?}");
    }
}
