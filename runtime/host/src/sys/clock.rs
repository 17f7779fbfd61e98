// UNSAFETY: clock_gettime(2) and timerfd_create(2), which std does not provide for these clocks.
#![allow(unsafe_code)]
//! The host's clocks: the wall clock beside the unadjusted clock, and a descriptor that says when the former was set.

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};
use std::time::Duration;

use super::check;

/// Number of readings from which [`sample`] takes the most precise one.
const READINGS: usize = 3;

/// Both clocks at one moment, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// CLOCK_MONOTONIC_RAW, which nothing adjusts. It stands still while the host is suspended.
    pub raw: i64,
    /// CLOCK_REALTIME.
    pub real: i64,
    /// Uncertainty of `raw`, in either direction.
    pub spread: i64,
}

/// Reads both clocks. The wall clock is read between two readings of the other one.
pub fn sample() -> Sample {
    let reading = || {
        let (before, real, after) =
            (read(libc::CLOCK_MONOTONIC_RAW), read(libc::CLOCK_REALTIME), read(libc::CLOCK_MONOTONIC_RAW));
        let spread = (after - before) / 2;
        Sample { raw: before + spread, real, spread }
    };
    let first = reading();
    (1..READINGS)
        .map(|_| reading())
        .fold(first, |best, next| if next.spread < best.spread { next } else { best })
}

/// Returns CLOCK_MONOTONIC_RAW in nanoseconds.
pub fn raw() -> i64 {
    read(libc::CLOCK_MONOTONIC_RAW)
}

/// Returns CLOCK_REALTIME in nanoseconds.
pub fn real() -> i64 {
    read(libc::CLOCK_REALTIME)
}

/// Returns the CPU time of this process.
pub fn cpu_time() -> Duration {
    Duration::from_nanos(read(libc::CLOCK_PROCESS_CPUTIME_ID).unsigned_abs())
}

fn read(clock: libc::clockid_t) -> i64 {
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: the kernel fills the timespec; a zeroed one is valid, should it refuse the clock.
    let time = unsafe {
        libc::clock_gettime(clock, time.as_mut_ptr());
        time.assume_init()
    };
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

/// A descriptor that is readable after the wall clock was set, or the host was suspended (TFD_TIMER_CANCEL_ON_SET).
#[derive(Debug)]
pub struct SetWatch(File);

impl SetWatch {
    pub fn new() -> io::Result<SetWatch> {
        let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
        // SAFETY: no memory is involved.
        let fd = check(unsafe { libc::timerfd_create(libc::CLOCK_REALTIME, flags) })?;
        // SAFETY: the kernel has just created `fd`, which has no other owner.
        let watch = SetWatch(unsafe { File::from_raw_fd(fd) });
        // An expiry that never comes: only a timer that is armed can be cancelled.
        let never = libc::timespec { tv_sec: libc::time_t::MAX, tv_nsec: 0 };
        let timer =
            libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: never };
        let flags = libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET;
        // SAFETY: `timer` is a whole itimerspec, and the pointer for the old one may be null.
        check(unsafe { libc::timerfd_settime(fd, flags, &raw const timer, std::ptr::null_mut()) })?;
        Ok(watch)
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Whether the clock was set since the last call.
    pub fn was_set(&self) -> bool {
        // The timer stays armed when the read fails with ECANCELED.
        matches!((&self.0).read(&mut [0; 8]), Err(error) if error.raw_os_error() == Some(libc::ECANCELED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_advance_together() {
        let (first, second) = (sample(), sample());
        assert!(first.raw > 0 && first.real > 0 && first.spread >= 0);
        assert!(second.raw > first.raw, "{first:?} {second:?}");
    }

    #[test]
    fn watch_is_silent_while_nobody_sets_the_clock() {
        let watch = SetWatch::new().unwrap();
        assert!(!super::super::is_ready(watch.fd(), libc::POLLIN));
        assert!(!watch.was_set());
    }
}
