//! Counts a guest's faults and logs them at a limited rate.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts a guest's faults and logs the 1st, 2nd, 4th, 8th and so on, so that a guest cannot fill the log.
#[derive(Debug, Default)]
pub struct GuestFaults(AtomicU64);

impl GuestFaults {
    /// Counts a fault of device `who`, and logs it if the count is a power of two.
    pub fn note(&self, who: impl fmt::Display, what: impl fmt::Display) {
        let count = self.0.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if count.is_power_of_two() {
            log::warn!("{who}: guest fault {count}: {what}");
        }
    }

    /// Number of faults so far.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    struct Counted<'a>(&'a Cell<u32>);

    impl fmt::Display for Counted<'_> {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.set(self.0.get() + 1);
            Ok(())
        }
    }

    struct Everything;

    impl log::Log for Everything {
        fn enabled(&self, _: &log::Metadata) -> bool {
            true
        }
        fn log(&self, record: &log::Record) {
            let _ = record.args().to_string();
        }
        fn flush(&self) {}
    }

    #[test]
    fn a_thousand_faults_make_ten_lines() {
        // Only the first test can set the logger. Every logger in this crate's tests formats its records.
        let _ = log::set_logger(&Everything);
        log::set_max_level(log::LevelFilter::Warn);
        let (faults, lines) = (GuestFaults::default(), Cell::new(0));
        for _ in 0..1000 {
            faults.note("test", Counted(&lines));
        }
        assert_eq!((faults.count(), lines.get()), (1000, 10));
    }
}
