//! REVIVE: makes this machine, which continues from a saved one, one of its own.
//!
//! All machines that continue from one have the same memory, so also the same state of the random number generator, and the
//! wall clock of the save. The host sends this command before any that starts something, or while the containers of a
//! checkpoint are suspended. What else a machine of a template has of its own (host name, hardware addresses) comes with
//! STARTPOD, as in any machine.

use agent_proto::payload::clock::{ClockAdjustment, TICK};
use agent_proto::revival::Revival;
use rustix::fd::AsFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result as IoResult};

use crate::clock;
use crate::error::{Error, Step};
use crate::sys::{self, Timex, random};

const RANDOM: &str = "/dev/urandom";
/// The host's entropy device.
const HOST_RANDOM: &str = "/dev/hwrng";
/// Bytes of it that the kernel may have read before the save: its own buffer and the driver's, 64 each (Linux 6.1,
/// rng_buffer_size() and `struct virtrng_info`).
const HOST_RANDOM_BUFFERED: usize = 128;

/// Reads the command's payload.
pub(crate) fn parse(payload: &[u8]) -> Result<Revival, Error> {
    Revival::decode(payload).ok_or_else(|| Error::bad_request("Revive: not a time and entropy"))
}

/// Executes REVIVE in the guest.
pub(crate) fn revive(new: &Revival) -> Result<(), Error> {
    let device =
        rustix::fs::open(RANDOM, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).step("open", RANDOM)?;
    random::add_entropy(device.as_fd(), &new.entropy).step("add entropy to", RANDOM)?;
    random::reseed(device.as_fd()).step("reseed", RANDOM)?;
    drain().step("read", HOST_RANDOM)?;
    set_clock(new.realtime, sys::adjust_clock)
}

/// Reads the bytes of the host's entropy that all machines of the saved one have, so that nobody else does. A kernel without the
/// device has none.
fn drain() -> IoResult<()> {
    let device = match rustix::fs::open(HOST_RANDOM, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        device => device?,
    };
    let mut left = HOST_RANDOM_BUFFERED;
    while left > 0 {
        let mut bytes = [0; HOST_RANDOM_BUFFERED];
        match rustix::io::read(&device, &mut bytes[..left])? {
            0 => break,
            count => left -= count,
        }
    }
    Ok(())
}

/// Steps the wall clock to `realtime`. The monotonic clock, which stood still since the save, goes on.
fn set_clock(realtime: u64, set: impl FnOnce(&Timex) -> IoResult<()>) -> Result<(), Error> {
    let (seconds, nanoseconds) = sys::wall_clock();
    let now = seconds * 1_000_000_000 + nanoseconds;
    let step = (i128::from(realtime) - i128::from(now)) / 1000;
    let step = i64::try_from(step).unwrap_or(i64::MAX);
    clock::adjust(&ClockAdjustment { tick: TICK, frequency: 0, step }, set).map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    /// Returns the step in microseconds that is made for a host that is `ahead` microseconds ahead.
    fn step(ahead: i64) -> i64 {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as i64;
        let mut asked = None;
        let set = |change: &Timex| {
            asked = Some(change.seconds * 1_000_000 + change.microseconds);
            Ok(())
        };
        set_clock((now + ahead * 1000) as u64, set).unwrap();
        asked.unwrap()
    }

    #[test]
    fn clock_is_stepped_by_its_difference_to_the_host_s() {
        for ahead in [3_600_000_000, -3_600_000_000] {
            // The clock goes on meanwhile, by less than a minute.
            let made = step(ahead);
            assert!((ahead - 60_000_000..=ahead).contains(&made), "{made} for {ahead}");
        }
    }

    #[test]
    fn payload_of_another_length_is_refused() {
        assert!(parse(&[0; 40]).is_ok());
        assert_eq!(parse(&[0; 39]).unwrap_err(), Error::bad_request("Revive: not a time and entropy"));
    }
}
