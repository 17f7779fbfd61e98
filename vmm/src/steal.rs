//! Steal time: how long a vCPU was ready to run while the host's CPUs did something else. KVM tells guests the same
//! number.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// Maximum length of the file: three numbers of 64 bits and what separates them.
const LENGTH_MAX: usize = 64;

/// Counter of one thread's steal time. It can be read after the process has given up its file system.
#[derive(Debug)]
pub struct StealCounter(File);

impl StealCounter {
    /// The counter of this thread.
    pub fn of_this_thread() -> io::Result<StealCounter> {
        File::open("/proc/thread-self/schedstat").map(StealCounter)
    }

    /// Returns the time since the thread began. A wait counts when it has ended.
    pub fn read(&self) -> io::Result<Duration> {
        let mut text = [0; LENGTH_MAX];
        let length = self.0.read_at(&mut text, 0)?;
        let text = std::str::from_utf8(&text[..length]).ok();
        text.and_then(parse).ok_or(io::ErrorKind::InvalidData.into())
    }
}

/// Reads the second of the three numbers: nanoseconds on a CPU, nanoseconds in the queue of a CPU, runs.
fn parse(text: &str) -> Option<Duration> {
    text.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_in_the_queue_is_the_second_number() {
        assert_eq!(parse("3310 1500000000 17\n"), Some(Duration::from_millis(1500)));
        assert_eq!(["", "1", "1 x 3"].map(parse), [None; 3]);
    }

    #[test]
    fn the_counter_of_another_thread_can_be_read() {
        let thread = std::thread::spawn(|| StealCounter::of_this_thread().unwrap());
        let own = StealCounter::of_this_thread().unwrap();
        assert!(own.read().is_ok());
        let counter = thread.join().unwrap();
        // The thread is gone: ESRCH.
        assert!(counter.read().is_err());
    }
}
