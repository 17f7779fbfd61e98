//! A number that is known with a bounded error.

/// A value, and how far the true one may be from it in either direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// Greatest error, not negative.
    pub spread: f64,
}

impl Estimate {
    /// Returns the estimate that both allow; `None` if they exclude each other.
    pub fn agree(self, other: Estimate) -> Option<Estimate> {
        let low = (self.value - self.spread).max(other.value - other.spread);
        let high = (self.value + self.spread).min(other.value + other.spread);
        (low <= high).then(|| Estimate { value: f64::midpoint(low, high), spread: (high - low) / 2.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agree(one: (f64, f64), other: (f64, f64)) -> Option<(f64, f64)> {
        let estimate = |(value, spread)| Estimate { value, spread };
        estimate(one).agree(estimate(other)).map(|both| (both.value, both.spread))
    }

    #[test]
    fn two_estimates_have_in_common_what_both_allow() {
        assert_eq!(agree((0.0, 4.0), (3.0, 3.0)), Some((2.0, 2.0)));
        assert_eq!(agree((0.0, 4.0), (1.0, 1.0)), Some((1.0, 1.0)));
        assert_eq!(agree((0.0, 1.0), (3.0, 1.0)), None);
    }
}
