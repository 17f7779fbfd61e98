//! The protocol of the control port: a request to L1's PID 1, and the lines of its reply. `tests/host/init.c` is the
//! other side.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Maximum size of a request in bytes, which PID 1 enforces.
pub const REQUEST_MAX: usize = 4 << 20;

/// A request: records `KEY VALUE\0`, and an empty record at the end. Values are not quoted.
#[derive(Default)]
pub struct Request(Vec<u8>);

impl Request {
    /// Appends a record. Panics if the value contains NUL, as no path, argument or environment variable does.
    pub fn record(&mut self, key: &str, value: impl AsRef<OsStr>) {
        let value = value.as_ref().as_bytes();
        assert!(!value.contains(&0), "the value of {key} contains NUL");
        self.0.extend_from_slice(key.as_bytes());
        self.0.push(b' ');
        self.0.extend_from_slice(value);
        self.0.push(0);
    }

    /// Appends the environment variable `key=value`.
    pub fn env(&mut self, key: &OsStr, value: &OsStr) {
        let mut entry = key.to_os_string();
        entry.push("=");
        entry.push(value);
        self.record("env", entry);
    }

    /// Appends the empty record and returns the request's bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.0.push(0);
        self.0
    }
}

/// A line of PID 1.
#[derive(Debug, PartialEq)]
pub enum Line {
    /// L1 has booted, and PID 1 waits for a request.
    Ready,
    /// Heartbeat, once a second.
    Beat,
    /// The command opened this file, if the request has a `trace` record.
    Opened(PathBuf),
    /// PID 1 could not carry out the request, with step, operand and cause.
    Fail(String),
    /// The command has ended.
    Exit(Exit),
}

/// Result of a command.
#[derive(Debug, PartialEq, Clone, Copy)]
pub struct Exit {
    /// Exit code, or 128 + signal.
    pub status: i32,
    /// Total number of bytes of stdout and stderr.
    pub bytes: [u64; 2],
    /// Time for mounts and staging, by L1's clock.
    pub mount_us: u64,
    /// Time of the command, by L1's clock.
    pub command_us: u64,
    /// Time for writing files back to the outer machine, by L1's clock.
    pub sync_us: u64,
}

impl Line {
    /// Parses a line without its newline. Returns `None` if it is not part of the protocol.
    pub fn parse(line: &str) -> Option<Line> {
        if line.is_empty() {
            return Some(Line::Beat);
        }
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "ready" => Some(Line::Ready),
            "opened" => Some(Line::Opened(rest.into())),
            "fail" => Some(Line::Fail(rest.to_string())),
            "exit" => {
                let numbers: Option<Vec<u64>> = rest.split(' ').map(|word| word.parse().ok()).collect();
                let &[status, out, err, mount_us, command_us, sync_us] = numbers?.as_slice() else {
                    return None;
                };
                let status = i32::try_from(status).ok()?;
                Some(Line::Exit(Exit { status, bytes: [out, err], mount_us, command_us, sync_us }))
            }
            _ => None,
        }
    }
}

/// Splits a byte stream into lines.
#[derive(Default)]
pub struct Lines(Vec<u8>);

impl Lines {
    /// Appends received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Removes and returns the next complete line. A line that is not part of the protocol is an error with its text.
    pub fn next(&mut self) -> Option<Result<Line, String>> {
        let end = self.0.iter().position(|&byte| byte == b'\n')?;
        let line: Vec<u8> = self.0.drain(..=end).collect();
        let text = String::from_utf8_lossy(&line[..end]).into_owned();
        Some(Line::parse(&text).ok_or(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_records_and_an_empty_record() {
        let mut request = Request::default();
        request.record("folder", "/a b");
        request.record("arg", "it's \"$HOME\"\n");
        request.record("arg", "");
        request.env(OsStr::new("A"), OsStr::from_bytes(b"\xff=1"));
        assert_eq!(request.finish(), b"folder /a b\0arg it's \"$HOME\"\n\0arg \0env A=\xff=1\0\0");
    }

    #[test]
    #[should_panic(expected = "contains NUL")]
    fn a_value_with_nul_panics() {
        Request::default().record("arg", "a\0b");
    }

    #[test]
    fn each_kind_of_line_is_parsed() {
        let exit = Exit { status: 137, bytes: [10, 0], mount_us: 1, command_us: 2, sync_us: 3 };
        assert_eq!(Line::parse("exit 137 10 0 1 2 3"), Some(Line::Exit(exit)));
        assert_eq!(Line::parse("ready"), Some(Line::Ready));
        assert_eq!(Line::parse(""), Some(Line::Beat));
        assert_eq!(Line::parse("fail /a b: No such file"), Some(Line::Fail("/a b: No such file".into())));
        assert_eq!(Line::parse("opened /a b"), Some(Line::Opened("/a b".into())));
        for wrong in ["exit", "exit 1", "exit 1 2 3 4 5 x", "exit 1 2 3 4 5 6 7", "hello"] {
            assert_eq!(Line::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn lines_do_not_depend_on_the_boundaries_of_reads() {
        let mut lines = Lines::default();
        lines.push(b"rea");
        assert_eq!(lines.next(), None);
        lines.push(b"dy\n\nodd\r\nfa");
        assert_eq!(lines.next(), Some(Ok(Line::Ready)));
        assert_eq!(lines.next(), Some(Ok(Line::Beat)));
        assert_eq!(lines.next(), Some(Err("odd\r".into())));
        assert_eq!(lines.next(), None);
    }
}
