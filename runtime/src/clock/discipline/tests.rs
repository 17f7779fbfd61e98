//! The discipline between a simulated host and a simulated guest.

use super::*;

const SECOND: i64 = 1_000_000_000;
const MS: f64 = 1e6;

/// Both clocks, in nanoseconds. The fields that the tests change are deviations from the unadjusted clock.
struct World {
    raw: i64,
    /// Advance of the host's wall clock over `raw`.
    real: f64,
    host_rate: f64,
    /// Advance of the guest's wall clock over `raw`.
    guest: f64,
    guest_rate: f64,
    skew: f64,
    /// Time of a message in one direction.
    latency: i64,
    /// Uncertainty of the host's readings.
    spread: i64,
    works: bool,
    /// The guest's answers are these instead of its clock.
    lies: Option<fn(i64) -> i64>,
    discipline: Discipline,
    next: i64,
    set: bool,
    reads: usize,
    adjustments: Vec<ClockAdjustment>,
    /// Greatest error so far, at any time.
    worst: f64,
}

impl World {
    fn new() -> World {
        let now = Sample { raw: 1000 * SECOND, real: 1_700_000_000 * SECOND, spread: 100 };
        let ahead = (now.real - now.raw) as f64;
        World {
            raw: now.raw,
            real: ahead,
            host_rate: 0.0,
            guest: ahead,
            guest_rate: 0.0,
            skew: 0.0,
            latency: 40_000,
            spread: 100,
            works: false,
            lies: None,
            discipline: Discipline::new(now),
            next: now.raw,
            set: false,
            reads: 0,
            adjustments: Vec::new(),
            worst: 0.0,
        }
    }

    /// Returns a world in which the host has run for a minute.
    fn settled() -> World {
        let mut world = World::new();
        world.run(60.0);
        world.forget();
        world
    }

    fn forget(&mut self) {
        (self.reads, self.worst) = (0, 0.0);
        self.adjustments.clear();
    }

    fn error(&self) -> f64 {
        self.guest - self.real
    }

    fn pass(&mut self, time: i64) {
        self.raw += time;
        self.real += time as f64 * self.host_rate;
        self.guest += time as f64 * ((1.0 + self.skew) * (1.0 + self.guest_rate) - 1.0);
        self.worst = self.worst.max(self.error().abs());
    }

    fn sample(&self) -> Sample {
        Sample { raw: self.raw, real: self.raw + self.real as i64, spread: self.spread }
    }

    /// Sets the host's clock, which the host's kernel tells at once.
    fn step_host(&mut self, seconds: f64) {
        self.real += seconds * 1e9;
        (self.set, self.next) = (true, self.raw);
    }

    fn exchange(&mut self, order: Order) -> Option<Order> {
        let sent = self.raw;
        self.pass(self.latency);
        let reading = self.lies.map_or(self.raw.saturating_add(self.guest as i64), |lies| lies(self.raw));
        match order {
            Order::Read => self.reads += 1,
            Order::Adjust(told) => {
                self.guest_rate = Rate { tick: told.tick, frequency: told.frequency }.deviation();
                self.guest += told.step as f64 * 1e3;
                self.adjustments.push(told);
            }
        }
        self.pass(self.latency);
        let now = self.sample();
        self.discipline.answered(sent, now, reading)
    }

    fn check(&mut self) {
        let (now, set) = (self.sample(), std::mem::take(&mut self.set));
        let mut order = self.discipline.check(now, set);
        while let Some(next) = order {
            order = self.exchange(next);
        }
        let pause = self.discipline.pause(self.raw, self.works).as_nanos() as i64;
        self.next = self.raw + pause.max(1000);
    }

    fn run(&mut self, seconds: f64) {
        let until = self.raw + (seconds * 1e9) as i64;
        while self.next <= until {
            self.pass((self.next - self.raw).max(0));
            self.check();
        }
        self.pass((until - self.raw).max(0));
    }

    fn steps(&self) -> usize {
        self.adjustments.iter().filter(|told| told.step != 0).count()
    }

    #[track_caller]
    fn assert_within(&self, ms: f64) {
        assert!(self.worst < ms * MS, "{} ms after {:?}", self.worst / MS, self.adjustments);
    }
}

#[test]
fn a_guest_whose_clock_is_right_is_not_told_and_hardly_asked() {
    let mut world = World::new();
    world.run(3600.0);
    assert_eq!(world.adjustments, []);
    assert!(world.reads < 20, "{}", world.reads);
    world.forget();
    world.run(3600.0);
    assert!(world.reads <= 6, "{}", world.reads);
    world.assert_within(0.3);
}

#[test]
fn frequency_corrections_of_ntp_rarely_wake_the_guest() {
    let mut world = World::settled();
    for minute in 0..600 {
        world.host_rate = 1e-7 * f64::from(minute % 7);
        world.run(60.0);
    }
    world.assert_within(0.5);
    assert!(world.adjustments.len() < 30, "{}", world.adjustments.len());
}

#[test]
fn a_slew_of_500_ppm_stays_within_a_millisecond_in_an_idle_guest() {
    let mut world = World::settled();
    world.run(0.3);
    for rate in [500e-6, 0.0, -500e-6, 15e-6] {
        world.host_rate = rate;
        world.run(100.0);
    }
    world.assert_within(0.9);
    assert_eq!(world.steps(), 0);
    assert!(world.adjustments.len() < 30, "{}", world.adjustments.len());
}

#[test]
fn a_slew_of_one_percent_stays_within_a_millisecond_in_a_guest_that_works() {
    let mut world = World::settled();
    world.works = true;
    world.run(1.0);
    for rate in [0.01, 0.0, -0.01] {
        world.host_rate = rate;
        world.run(1.0);
        world.assert_within(0.9);
        world.worst = 0.0;
        world.run(60.0);
        world.assert_within(0.3);
    }
    assert_eq!(world.steps(), 0);
}

#[test]
fn a_fast_slew_is_followed_within_two_seconds_in_an_idle_guest() {
    for rate in [0.01, -0.01, 0.083_333, 0.1, -0.1] {
        let mut world = World::settled();
        world.host_rate = rate;
        world.run(1.0);
        world.assert_within(101.0);
        world.run(if rate.abs() < 0.05 { 1.0 } else { 10.0 });
        world.worst = 0.0;
        // At 10 % the guest's kernel has nothing left with which it could catch up.
        if rate.abs() < 0.1 {
            world.run(100.0);
            world.assert_within(0.3);
        }
        world.host_rate = 0.0;
        world.run(12.0);
        world.worst = 0.0;
        world.run(100.0);
        world.assert_within(0.3);
        assert_eq!(world.steps(), 0, "{rate}");
    }
}

#[test]
fn a_step_of_the_host_is_one_step_of_the_guest() {
    for seconds in [-600.0, 600.0, 0.01, -1e9, 3e9] {
        let mut world = World::settled();
        world.run(0.5);
        world.step_host(seconds);
        world.run(0.001);
        world.worst = 0.0;
        world.run(1000.0);
        world.assert_within(0.2);
        assert_eq!(world.steps(), 1);
        assert!(world.reads < 30, "{}", world.reads);
    }
}

#[test]
fn a_step_that_nobody_told_is_seen_by_the_next_check() {
    let mut world = World::settled();
    world.real -= 600e9;
    world.run(1.1);
    world.worst = 0.0;
    world.run(100.0);
    world.assert_within(0.3);
    assert_eq!(world.steps(), 1);
}

#[test]
fn after_suspend_the_guest_is_right_whether_its_clock_ran_or_not() {
    for ran in [false, true] {
        let mut world = World::settled();
        world.step_host(3600.0);
        world.guest += if ran { 3600e9 } else { 0.0 };
        world.run(0.001);
        world.worst = 0.0;
        world.run(100.0);
        world.assert_within(0.2);
        assert_eq!(world.steps(), usize::from(!ran));
    }
}

#[test]
fn a_suspended_process_needs_no_step_unless_the_host_has_slewed_far() {
    for (rate, steps) in [(0.0, 0), (1e-6, 0), (0.01, 1)] {
        let mut world = World::settled();
        world.host_rate = rate;
        world.pass(100 * SECOND);
        world.next = world.raw;
        world.run(2.0);
        world.worst = 0.0;
        world.run(100.0);
        world.assert_within(0.3);
        assert_eq!(world.steps(), steps, "{rate}");
    }
}

#[test]
fn skew_of_the_guest_s_clock_source_is_learnt() {
    for skew in [0.5e-6, -15e-6, 150e-6] {
        let mut world = World::new();
        world.skew = skew;
        world.run(600.0);
        world.forget();
        world.run(7200.0);
        world.assert_within(0.5);
        assert_eq!(world.steps(), 0);
        assert!(world.reads < 40, "{skew} {}", world.reads);
        assert!(world.adjustments.len() < 60, "{skew} {}", world.adjustments.len());
    }
}

#[test]
fn noisy_clocks_and_slow_answers_do_not_make_the_clock_restless() {
    let mut world = World::new();
    (world.latency, world.spread) = (2_000_000, 8_000);
    world.works = true;
    world.run(600.0);
    world.assert_within(0.3);
    assert_eq!(world.adjustments, []);
}

#[test]
fn a_clock_that_a_container_has_set_becomes_the_host_s_again() {
    let mut world = World::new();
    world.run(7200.0);
    world.guest += 86_400e9;
    world.run(601.0);
    world.forget();
    world.run(100.0);
    world.assert_within(0.3);
}

#[test]
fn a_guest_that_lies_is_asked_seldom() {
    let lies: [fn(i64) -> i64; 3] = [|_| 0, |_| i64::MAX, |raw| (raw / 1000).wrapping_mul(raw) & i64::MAX];
    for lie in lies {
        let mut world = World::new();
        world.lies = Some(lie);
        world.run(60.0);
        let early = world.reads + world.adjustments.len();
        world.run(3600.0);
        let all = world.reads + world.adjustments.len();
        assert!(early < 100 && all < 150, "{early} {all}");
    }
}

#[test]
fn a_guest_that_is_silent_is_asked_once() {
    let mut world = World::new();
    let first = world.discipline.check(world.sample(), false);
    assert_eq!(first, Some(Order::Read));
    for second in 0..1000 {
        world.pass(SECOND);
        assert_eq!(world.discipline.check(world.sample(), second % 10 == 0), None);
    }
    // The answer comes late. Its reading says nothing about the present, and the next ones do.
    let sent = world.raw - 1000 * SECOND;
    let reading = sent + world.guest as i64;
    let mut order = world.discipline.answered(sent, world.sample(), reading);
    while let Some(next) = order {
        order = world.exchange(next);
    }
    world.worst = 0.0;
    world.run(100.0);
    world.assert_within(0.3);
}
