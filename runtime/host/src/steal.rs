//! Steal time: how long threads were ready to run while the host's CPUs did something else. KVM tells guests the same number
//! of their vCPUs.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// Maximum length of a counter's file: three numbers of 64 bits and what separates them.
const LENGTH_MAX: usize = 64;

/// Counters of threads. They can be read after the process has given up its file system.
#[derive(Debug, Default)]
pub struct StealCounters(Vec<File>);

impl StealCounters {
    /// Opens the counters of all threads of this process.
    ///
    /// # Errors
    ///
    /// There is no /proc.
    pub fn of_this_process() -> io::Result<StealCounters> {
        let threads = fs::read_dir("/proc/self/task")?;
        // A thread may end meanwhile.
        let files = threads.flatten().filter_map(|thread| File::open(thread.path().join("schedstat")).ok());
        Ok(StealCounters(files.collect()))
    }

    /// Returns the sum of the threads' times since their start. A wait counts when it has ended, and a thread that has ended
    /// counts no more.
    pub fn read(&self) -> Duration {
        self.0.iter().filter_map(stolen).sum()
    }
}

fn stolen(counter: &File) -> Option<Duration> {
    let mut text = [0; LENGTH_MAX];
    let length = counter.read_at(&mut text, 0).ok()?;
    parse(std::str::from_utf8(&text[..length]).ok()?)
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
    fn each_thread_has_a_counter() {
        let counters = StealCounters::of_this_process().unwrap();
        assert!(!counters.0.is_empty());
        let own = File::open("/proc/thread-self/schedstat").unwrap();
        assert!(stolen(&own).is_some());
        assert!(counters.0.iter().any(|counter| stolen(counter).is_some()));
    }
}
