//! Copies the kernel's log to the console, for the host's timeline of the boot.

use alloc::string::String;
use alloc::vec;
use core::fmt::Write;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Parameter on the kernel command line that requests the copy.
const WORD: &str = "vmm.marks";
/// Limit of bytes of the command line that are read: the kernel's own limit.
const CMDLINE_MAX: usize = 4 << 10;
/// Limit of a record of the kernel's log.
const RECORD_MAX: usize = 8 << 10;
/// Limit of records that are copied.
const RECORDS_MAX: usize = 2000;

/// Writes the log's records to the console, each as a line `vmm.mark <microseconds> <text>`, if the host requests them.
/// Does nothing without a log or a console.
pub fn copy_if_wanted() {
    if is_wanted() {
        let _ = copy();
    }
}

fn is_wanted() -> bool {
    let Ok(file) = rustix::fs::open("/proc/cmdline", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else {
        return false;
    };
    let mut text = vec![0; CMDLINE_MAX];
    let count = rustix::io::read(&file, &mut text[..]).unwrap_or(0);
    let text = String::from_utf8_lossy(&text[..count]);
    text.split_ascii_whitespace().any(|word| word == WORD)
}

fn copy() -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let log = rustix::fs::open("/dev/kmsg", flags, Mode::empty())?;
    let console =
        rustix::fs::open("/dev/console", OFlags::WRONLY | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    let mut record = vec![0; RECORD_MAX];
    let mut lines = String::new();
    for _ in 0..RECORDS_MAX {
        match rustix::io::read(&log, &mut record[..]) {
            Ok(count) => add_line(&mut lines, &String::from_utf8_lossy(&record[..count])),
            // Records have been overwritten meanwhile.
            Err(Errno::PIPE) => {}
            Err(_) => break,
        }
    }
    let mut left = lines.as_bytes();
    while !left.is_empty() {
        let count = rustix::io::write(&console, left)?;
        left = &left[count..];
    }
    Ok(())
}

/// Adds a record of /dev/kmsg, `priority,sequence,microseconds,flags;text`, as a line.
fn add_line(lines: &mut String, record: &str) {
    let Some((prefix, text)) = record.split_once(';') else { return };
    let Some(time) = prefix.split(',').nth(2).and_then(|time| time.parse::<u64>().ok()) else { return };
    let text = text.lines().next().unwrap_or("");
    // Writing to a String cannot fail.
    let _ = writeln!(lines, "vmm.mark {time} {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(record: &str, expected: &str) {
        let mut lines = String::new();
        add_line(&mut lines, record);
        assert_eq!(lines, expected);
    }

    #[test]
    fn record_is_a_line_with_its_time() {
        check(
            "6,339,5140900,-;NET: Registered PF_INET6\n SUBSYSTEM=net\n",
            "vmm.mark 5140900 NET: Registered PF_INET6\n",
        );
    }

    #[test]
    fn text_with_semicolons_stays_whole() {
        check("6,1,7,-;a;b", "vmm.mark 7 a;b\n");
    }

    #[test]
    fn malformed_records_are_left_out() {
        check("nonsense", "");
        check("6,1,x,-;text", "");
    }
}
