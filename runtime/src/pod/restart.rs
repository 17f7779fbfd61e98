//! When an ended container is restarted: its policy, and delays that double while it keeps ending.

use std::time::{Duration, Instant};

use super::podfile::RestartPolicy;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);
/// A container that ran for this long is healthy: the next delay is the first one again.
const WELL: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Restarts {
    policy: RestartPolicy,
    next: Duration,
    /// Number of restarts so far.
    pub count: u64,
}

impl Restarts {
    pub fn new(policy: RestartPolicy) -> Restarts {
        Restarts { policy, next: FIRST, count: 0 }
    }

    /// Handles the end of a container with `code`. Returns when it is to be restarted, if at all.
    pub fn ended(&mut self, code: u8, started: Instant, now: Instant) -> Option<Instant> {
        let again = match self.policy {
            RestartPolicy::Never => false,
            RestartPolicy::OnFailure => code != 0,
            RestartPolicy::Always => true,
        };
        if !again {
            return None;
        }
        let wait = if now.saturating_duration_since(started) >= WELL { FIRST } else { self.next };
        self.next = (wait * 2).min(LONGEST);
        self.count += 1;
        Some(now + wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the delays, in milliseconds, of a container that runs for each of `runs` milliseconds.
    fn waits(policy: RestartPolicy, code: u8, runs: &[u64]) -> Vec<Option<u64>> {
        let mut restarts = Restarts::new(policy);
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for run in runs {
            let started = now;
            now += Duration::from_millis(*run);
            let again = restarts.ended(code, started, now);
            waits.push(again.map(|again| (again - now).as_millis() as u64));
            now = again.unwrap_or(now);
        }
        waits
    }

    #[test]
    fn a_policy_decides_about_a_restart() {
        for (policy, of_success, of_failure) in [
            (RestartPolicy::Never, None, None),
            (RestartPolicy::OnFailure, None, Some(100)),
            (RestartPolicy::Always, Some(100), Some(100)),
        ] {
            assert_eq!(waits(policy, 0, &[1]), [of_success]);
            assert_eq!(waits(policy, 1, &[1]), [of_failure]);
            assert_eq!(waits(policy, 255, &[1]), [of_failure]);
        }
    }

    #[test]
    fn delays_double_up_to_the_longest() {
        let waits = waits(RestartPolicy::Always, 0, &[5; 13]);
        let wanted = [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000, 60000];
        assert_eq!(waits, wanted.map(Some));
    }

    #[test]
    fn a_healthy_run_resets_the_delay() {
        let waits = waits(RestartPolicy::OnFailure, 1, &[5, 5, 9999, 10_000, 5]);
        assert_eq!(waits, [100, 200, 400, 100, 200].map(Some));
    }

    #[test]
    fn restarts_are_counted() {
        let mut restarts = Restarts::new(RestartPolicy::OnFailure);
        let now = Instant::now();
        assert!(restarts.ended(1, now, now).is_some());
        assert!(restarts.ended(0, now, now).is_none());
        assert_eq!(restarts.count, 1);
    }
}
