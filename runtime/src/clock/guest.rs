//! The guest's wall clock as the host predicts it: a line over the host's unadjusted clock.
//!
//! The guest's clock source counts what the host's unadjusted clock counts, kvm-clock exactly and the guest's own reading
//! of the TSC nearly so. The small constant difference is the skew. With the rate that the guest was told, it predicts
//! the guest's clock at any time without asking the guest. Each measurement narrows position and skew.

use super::estimate::Estimate;
use super::rate::Rate;

/// Greatest skew that is expected: the kernel of a guest knows the TSC's frequency to 1 kHz.
const SKEW: f64 = 20e-6;
/// Greatest skew that is considered.
const SKEW_MAX: f64 = 500e-6;
/// Difference between measurements from which the skew is computed, in nanoseconds: shorter ones tell nothing.
const BASELINE_MIN: f64 = 1e9;
/// Error of the clock that the guest's kernel reads at boot, in nanoseconds.
const BOOT_SPREAD: f64 = 1e6;

/// A reading of the guest's clock, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measurement {
    /// Unadjusted time of the host in the middle between question and answer.
    pub raw: i64,
    /// Half the time between question and answer: the reading was made at most that much earlier or later.
    pub spread: i64,
    /// The guest's wall clock.
    pub reading: i64,
}

/// The line.
#[derive(Debug)]
pub struct GuestLine {
    /// Unadjusted time of the host at which the guest's clock shows `reading`.
    raw: i64,
    reading: i64,
    /// Uncertainty of `reading`.
    spread: f64,
    rate: Rate,
    skew: Estimate,
    base: Base,
}

/// A measurement in the past, from which the skew is computed.
#[derive(Debug)]
struct Base {
    /// What the guest's clock would show now without skew.
    path: i64,
    spread: f64,
    /// Time that the guest's clock has measured since then.
    time: f64,
}

impl GuestLine {
    /// Returns the line of a guest whose kernel has read the host's clock at boot; `real` is the host's clock at `raw`.
    pub fn new(raw: i64, real: i64) -> GuestLine {
        GuestLine {
            raw,
            reading: real,
            spread: BOOT_SPREAD,
            rate: Rate::BOOT,
            skew: Estimate { value: 0.0, spread: SKEW },
            base: Base { path: real, spread: BOOT_SPREAD, time: 0.0 },
        }
    }

    /// Returns what the guest's clock shows at `raw`.
    pub fn at(&self, raw: i64) -> i64 {
        let time = raw - self.raw;
        self.reading.saturating_add(time).saturating_add((time as f64 * self.deviation()).round() as i64)
    }

    /// Returns the deviation of the guest's clock from the host's unadjusted clock.
    pub fn deviation(&self) -> f64 {
        self.deviation_with(self.rate)
    }

    /// Returns the deviation that the guest's clock would have with `rate`.
    pub fn deviation_with(&self, rate: Rate) -> f64 {
        (1.0 + rate.deviation()) * (1.0 + self.skew.value) - 1.0
    }

    /// Returns the rate that gives the guest's clock a deviation from the host's unadjusted clock.
    pub fn rate_for(&self, deviation: f64) -> Rate {
        Rate::nearest((1.0 + deviation) / (1.0 + self.skew.value) - 1.0)
    }

    /// Returns the time in nanoseconds until the uncertainty exceeds `bound`.
    pub fn certain_for(&self, bound: f64) -> f64 {
        ((bound - self.spread) / self.skew.spread).max(0.0)
    }

    /// Takes a measurement. Returns false if it contradicts the line: the guest's clock was changed in the guest.
    pub fn measured(&mut self, measured: Measurement) -> bool {
        self.advance(measured.raw);
        let spread = measured.spread as f64;
        let found = |from: i64| measured.reading.saturating_sub(from) as f64;
        let predicted = Estimate { value: 0.0, spread: self.spread };
        let seen = Estimate { value: found(self.reading), spread };
        let skew = self.skew_seen(found(self.base.path), spread);
        let fresh = Base { path: measured.reading, spread, time: 0.0 };
        match (predicted.agree(seen), skew) {
            (Some(position), Some(skew)) => {
                self.skew = Estimate { value: skew.value.clamp(-SKEW_MAX, SKEW_MAX), ..skew };
                self.reading = self.reading.saturating_add(position.value.round() as i64);
                self.spread = position.spread;
                if spread < self.base.spread / 2.0 {
                    self.base = fresh;
                }
                true
            }
            _ => {
                (self.reading, self.spread, self.base) = (measured.reading, spread, fresh);
                self.skew.spread = (4.0 * self.skew.spread).clamp(SKEW, SKEW_MAX);
                false
            }
        }
    }

    /// Returns the skew after `ahead` was measured, the difference from a clock without skew.
    fn skew_seen(&self, ahead: f64, spread: f64) -> Option<Estimate> {
        let Base { time, spread: before, .. } = self.base;
        if time < BASELINE_MIN {
            return Some(self.skew);
        }
        self.skew.agree(Estimate { value: ahead / time, spread: (before + spread) / time })
    }

    /// Takes the guest's answer to a change of its clock by `step` and to `rate`: its clock just before that. Returns
    /// false if the answer contradicts the line.
    pub fn changed(&mut self, before: Measurement, step: i64, rate: Rate) -> bool {
        let agrees = self.measured(before);
        // The guest's own clock tells when it was changed, more exactly than question and answer do.
        let ahead = before.reading.saturating_sub(self.reading) as f64 / (1.0 + self.deviation());
        let limit = before.spread as f64;
        self.advance(before.raw + ahead.clamp(-limit, limit).round() as i64);
        let blur = (rate.deviation() - self.rate.deviation()).abs() * self.spread.min(limit);
        self.spread += blur;
        self.base.spread += blur;
        self.reading = self.reading.saturating_add(step);
        self.base.path = self.base.path.saturating_add(step);
        self.rate = rate;
        agrees
    }

    /// Moves the point from which the line is computed to `raw`.
    fn advance(&mut self, raw: i64) {
        let elapsed = (raw - self.raw) as f64;
        let told = elapsed * (1.0 + self.rate.deviation());
        self.reading = self.at(raw);
        self.spread += told.abs() * self.skew.spread;
        self.base.path = self.base.path.saturating_add(told.round() as i64);
        self.base.time += told;
        self.raw = raw;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn measured(raw: i64, reading: i64) -> Measurement {
        Measurement { raw, spread: 50_000, reading }
    }

    #[test]
    fn a_clock_is_predicted_at_the_rate_that_it_was_told() {
        let mut line = GuestLine::new(0, 0);
        assert!(line.measured(measured(0, 0)));
        assert!(line.changed(measured(SECOND, SECOND), -600 * SECOND, Rate::nearest(0.01)));
        assert_eq!(line.at(11 * SECOND), -589 * SECOND + SECOND / 10);
    }

    #[test]
    fn the_moment_of_a_change_is_read_from_the_guest_s_clock() {
        let mut line = GuestLine::new(0, 0);
        assert!(line.measured(Measurement { raw: 0, spread: 1000, reading: 0 }));
        // The answer took two seconds; the guest changed its clock half a second after the question.
        let late = Measurement { raw: SECOND, spread: SECOND, reading: SECOND / 2 };
        assert!(line.changed(late, 0, Rate::nearest(0.1)));
        let error = line.at(10 * SECOND) - (10 * SECOND + 950_000_000);
        assert!(error.abs() < 3000, "{error}");
    }

    #[test]
    fn skew_is_learnt_from_measurements_far_apart() {
        let mut line = GuestLine::new(0, 0);
        let skewed = |raw: i64| raw + raw / 100_000;
        for second in [0, 10, 40, 160, 640] {
            assert!(line.measured(measured(second * SECOND, skewed(second * SECOND))), "{line:?}");
        }
        let error = line.at(1280 * SECOND) - skewed(1280 * SECOND);
        assert!(error.abs() < 200_000, "{error}");
        assert!(line.certain_for(300e3) > 1000e9, "{line:?}");
    }

    #[test]
    fn an_imprecise_measurement_does_not_replace_a_precise_prediction() {
        let mut line = GuestLine::new(0, 0);
        assert!(line.measured(measured(0, 0)));
        assert!(line.measured(Measurement { raw: SECOND, spread: 5_000_000, reading: SECOND + 3_000_000 }));
        assert_eq!(line.at(SECOND), SECOND);
    }

    #[test]
    fn a_clock_that_the_guest_has_set_is_measured_anew() {
        let mut line = GuestLine::new(0, 0);
        assert!(line.measured(measured(0, 0)));
        assert!(!line.measured(measured(SECOND, 77 * SECOND)));
        assert_eq!(line.at(2 * SECOND), 78 * SECOND);
    }

    #[test]
    fn no_reading_overflows() {
        let mut line = GuestLine::new(0, i64::MAX);
        for reading in [0, i64::MAX, 0, i64::MAX] {
            line.measured(measured(SECOND, reading));
            line.changed(measured(SECOND, reading), i64::MAX, Rate::nearest(0.1));
            line.changed(measured(SECOND, reading), i64::MIN, Rate::nearest(-0.1));
            line.at(i64::MAX / 2);
        }
    }
}
