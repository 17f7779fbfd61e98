//! Counting and reporting what a guest does wrong, without letting it fill the log.

use std::fmt;

/// Counts one device's or queue's guest faults and reports ever fewer of them: the 1st, 2nd, 4th, 8th and so on.
#[derive(Debug, Default)]
pub struct GuestFaults {
    count: u64,
}

impl GuestFaults {
    /// Counts a fault of `who`, and logs it if it is one in a sequence of powers of two.
    pub fn note(&mut self, who: &str, what: fmt::Arguments<'_>) {
        self.count = self.count.saturating_add(1);
        if self.count.is_power_of_two() {
            log::warn!("{who}: guest fault {}: {what}", self.count);
        }
    }

    /// How many faults there were.
    pub fn count(&self) -> u64 {
        self.count
    }
}
