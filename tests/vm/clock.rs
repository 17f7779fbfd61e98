//! The guest's wall clock beside the host's, while the host's is set and slewed.
//!
//! These tests change the host's clock, and so run only in the emulated host, where each test runs alone.

use std::process::Command;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use tests::{Bundle, Running, check_output};

/// Error that a guest's clock may have, in nanoseconds.
const BOUND: i128 = 1_000_000;
/// Time in which a guest's clock is right after a change of the host's.
const DEADLINE: Duration = Duration::from_secs(30);
/// Time for which the host's clock is slewed.
const SLEW: Duration = Duration::from_secs(5);
/// Readings from which the quickest one counts.
const READINGS: usize = 8;

/// Whether the host's clock may be changed.
fn may_set() -> bool {
    let may = std::env::var_os("VMM_TEST_SET_CLOCK").is_some();
    if !may {
        eprintln!("skipped: VMM_TEST_SET_CLOCK is not set, so this host's clock stays as it is");
    }
    may
}

fn nanoseconds(clock: ClockId) -> i128 {
    let now = clock_gettime(clock);
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

fn set(nanoseconds: i128) {
    let seconds = i64::try_from(nanoseconds.div_euclid(1_000_000_000)).expect("a time");
    let rest = i64::try_from(nanoseconds.rem_euclid(1_000_000_000)).expect("a part of a second");
    clock_settime(ClockId::Realtime, Timespec { tv_sec: seconds, tv_nsec: rest }).expect("set the clock");
}

fn set_tick(microseconds: u32) {
    check_output(Command::new("/bin/busybox").args(["adjtimex", "-q", "-t", &microseconds.to_string()]));
}

/// Restores the host's clock.
struct HostClock {
    /// How far the wall clock is ahead of the clock that nothing adjusts.
    ahead: i128,
}

impl HostClock {
    fn new() -> HostClock {
        HostClock { ahead: nanoseconds(ClockId::Realtime) - nanoseconds(ClockId::MonotonicRaw) }
    }

    fn step(&self, seconds: i128) {
        set(nanoseconds(ClockId::Realtime) + seconds * 1_000_000_000);
    }

    fn restore(&self) {
        set_tick(10_000);
        set(self.ahead + nanoseconds(ClockId::MonotonicRaw));
    }
}

impl Drop for HostClock {
    fn drop(&mut self) {
        self.restore();
    }
}

/// A container that tells its clock, and its bundle, which lasts as long.
struct Guest {
    running: Running,
    _bundle: Bundle,
}

impl Guest {
    fn start() -> Guest {
        let bundle = Bundle::guest("clock");
        let mut guest = Guest { running: bundle.start(), _bundle: bundle };
        guest.awaits();
        guest
    }

    /// Returns how far the guest's clock is ahead of the host's, and the error of that number.
    #[track_caller]
    fn error(&mut self) -> (i128, i128) {
        let mut reading = || {
            let before = nanoseconds(ClockId::Realtime);
            self.running.write(b"\n");
            let guest: i128 = self.running.wait_for("\n").trim().parse().expect("a number");
            let after = nanoseconds(ClockId::Realtime);
            (guest - (before + after) / 2, (after - before) / 2)
        };
        (0..READINGS).map(|_| reading()).min_by_key(|(_, spread)| *spread).expect("a reading")
    }

    /// Waits until the guest's clock is right.
    #[track_caller]
    fn awaits(&mut self) {
        let start = Instant::now();
        loop {
            let (error, spread) = self.error();
            if error.abs() <= BOUND + spread {
                return;
            }
            assert!(start.elapsed() < DEADLINE, "{error} ns from the host's clock, known to {spread} ns");
        }
    }
}

#[test]
fn a_step_of_the_host_s_clock_is_a_step_of_the_guest_s() {
    if !may_set() {
        return;
    }
    let host = HostClock::new();
    let mut guest = Guest::start();
    for seconds in [-600, 600, 86_400] {
        host.step(seconds);
        guest.awaits();
    }
    host.restore();
    guest.awaits();
    guest.running.finish().code(0);
}

#[test]
fn a_slew_of_the_host_s_clock_is_followed_at_its_rate() {
    if !may_set() {
        return;
    }
    let _host = HostClock::new();
    let mut guest = Guest::start();
    for tick in [10_100, 9_900, 10_000] {
        set_tick(tick);
        // The first seconds are the guest's to learn the rate. At 1 % one that does not learn it is wrong by 50 ms later.
        let start = Instant::now();
        while start.elapsed() < SLEW {
            guest.error();
        }
        guest.awaits();
        let (error, spread) = guest.error();
        assert!(error.abs() <= BOUND + spread, "tick {tick}: {error} ns, known to {spread} ns");
    }
    guest.running.finish().code(0);
}

#[test]
fn a_process_that_was_stopped_has_the_host_s_time_when_it_continues() {
    if !may_set() {
        return;
    }
    let host = HostClock::new();
    let mut guest = Guest::start();
    guest.running.signal("STOP");
    host.step(-600);
    guest.running.signal("CONT");
    guest.awaits();
    host.restore();
    guest.awaits();
    guest.running.finish().code(0);
}
