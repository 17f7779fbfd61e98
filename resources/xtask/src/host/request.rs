//! What is said on the control port: the request to L1's PID 1 and the lines that come back. The other end is
//! `tests/host/init.c`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// The most that PID 1 takes, in bytes.
pub const REQUEST_MAX: usize = 4 << 20;

/// Records `KEY VALUE\0`, ended by an empty one: values are bytes as they are, so that nothing is ever quoted.
#[derive(Default)]
pub struct Request(Vec<u8>);

impl Request {
    /// Adds one record. A value that holds a NUL cannot be a path, an argument or an environment entry.
    pub fn record(&mut self, key: &str, value: impl AsRef<OsStr>) {
        let value = value.as_ref().as_bytes();
        assert!(!value.contains(&0), "a value of {key} holds a NUL");
        self.0.extend_from_slice(key.as_bytes());
        self.0.push(b' ');
        self.0.extend_from_slice(value);
        self.0.push(0);
    }

    /// Adds the environment entry `key=value`.
    pub fn env(&mut self, key: &OsStr, value: &OsStr) {
        let mut entry = key.to_os_string();
        entry.push("=");
        entry.push(value);
        self.record("env", entry);
    }

    /// The bytes to send, the closing empty record included.
    pub fn finish(mut self) -> Vec<u8> {
        self.0.push(0);
        self.0
    }
}

/// One line from PID 1.
#[derive(Debug, PartialEq)]
pub enum Line {
    /// The machine has booted and waits for a request.
    Ready,
    /// The machine is alive: sent once a second.
    Beat,
    /// A file was opened.
    Opened(PathBuf),
    /// The machine could not do what the request asks for.
    Fail(String),
    /// The command ended.
    Exit(Exit),
}

/// How the command ended.
#[derive(Debug, PartialEq, Clone, Copy)]
pub struct Exit {
    /// The command's exit code, or 128 + signal.
    pub status: i32,
    /// How many bytes each of stdout and stderr carries from beginning to end.
    pub bytes: [u64; 2],
    /// Time in microseconds of L1's clock for mounts and staging, the command, and writing back.
    pub mount_us: u64,
    /// See `mount_us`.
    pub command_us: u64,
    /// See `mount_us`.
    pub sync_us: u64,
}

impl Line {
    /// Reads one line, without its newline; `None` if PID 1 never says such a thing.
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

/// Cuts a byte stream into lines.
#[derive(Default)]
pub struct Lines(Vec<u8>);

impl Lines {
    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Takes the next complete line; one that PID 1 never says is returned as text, for a message.
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
    #[should_panic(expected = "holds a NUL")]
    fn nul_is_refused() {
        Request::default().record("arg", "a\0b");
    }

    #[test]
    fn lines_are_told_apart() {
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
    fn lines_are_cut_wherever_they_were_split() {
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
