//! The program's log: lines on stderr or in a file, as text, or as JSON objects that container engines read from runc's
//! `--log`.

use host::{HostError, sys};
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::SystemTime;

use log::{LevelFilter, Log, Metadata, Record};

use crate::cli::LogArgs;
use host::text;

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("log level {0:?}: not off, error, warn, info, debug or trace")]
    Level(String),
    #[error("log format {0:?}: not text or json")]
    Format(String),
}

struct Logger {
    /// `None` for stderr.
    file: Option<File>,
    json: bool,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Starts logging. The level is the flag's, else `VMM_LOG_LEVEL`'s, else `warn`.
pub fn start(args: &LogArgs) -> Result<(), LogError> {
    let level = match args.log_level.clone().or_else(|| std::env::var("VMM_LOG_LEVEL").ok()) {
        Some(text) => text.parse().map_err(|_| LogError::Level(text))?,
        None => LevelFilter::Warn,
    };
    let json = match args.log_format.as_deref() {
        None | Some("text") => false,
        Some("json") => true,
        Some(other) => return Err(LogError::Format(other.to_owned())),
    };
    let file = match &args.log {
        Some(path) => {
            let open = OpenOptions::new().append(true).create(true).open(path);
            Some(open.map_err(HostError::at("open log", path))?)
        }
        None => None,
    };
    // A second call changes nothing: the first logger stays.
    if log::set_logger(LOGGER.get_or_init(|| Logger { file, json })).is_ok() {
        log::set_max_level(level);
    }
    Ok(())
}

/// Reports the error of a command on stderr, and in the log if that is a file.
pub fn failure(args: &LogArgs, message: &str) {
    eprintln!("vmm: {}", text::lines(message));
    if args.log.is_some() {
        log::error!("{message}");
    }
}

/// Reports the error of a background process, for which no other process waits, in the log.
pub fn failed(message: &str) {
    if LOGGER.get().is_some_and(|logger| logger.file.is_some()) {
        eprintln!("vmm: {}", text::lines(message));
    }
    log::error!("{message}");
}

/// Reports a forbidden system call of this process. Only makes one system call, because it is called in the handler of a
/// signal that may have interrupted any code: it allocates nothing, and the line has no time.
pub fn forbidden(message: fmt::Arguments<'_>) {
    let logger = LOGGER.get();
    let mut line = StackLine { bytes: [0; LINE_MAX], len: 0 };
    // A message that is too long is truncated. It has no characters that JSON would escape.
    let _ = match logger {
        Some(Logger { json: true, .. }) => {
            writeln!(line, r#"{{"level":"error","msg":"{message}"}}"#)
        }
        Some(Logger { file: Some(_), .. }) => writeln!(line, "error: {message}"),
        _ => writeln!(line, "vmm: error: {message}"),
    };
    let bytes = &line.bytes[..line.len];
    // There is no other place to report that this failed.
    let _ = match logger.and_then(|logger| logger.file.as_ref()) {
        Some(file) => sys::write(file.as_fd(), bytes),
        None => sys::write(io::stderr().as_fd(), bytes),
    };
}

/// Maximum length of a report.
const LINE_MAX: usize = 256;

/// A line without an allocation.
struct StackLine {
    bytes: [u8; LINE_MAX],
    len: usize,
}

impl fmt::Write for StackLine {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let rest = &mut self.bytes[self.len..];
        let len = text.len().min(rest.len());
        rest[..len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
        if len == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

impl Log for Logger {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = self.line(record, SystemTime::now());
        // A failed write to the log must not stop the program.
        let _ = match &self.file {
            Some(file) => (&mut &*file).write_all(line.as_bytes()),
            None => io::stderr().write_all(line.as_bytes()),
        };
    }

    fn flush(&self) {}
}

impl Logger {
    fn line(&self, record: &Record<'_>, now: SystemTime) -> String {
        let level = record.level().as_str().to_ascii_lowercase();
        let time = humantime::format_rfc3339_seconds(now);
        // Control characters are replaced, because a part of the message may come from the guest.
        let message = text::lines(&record.args().to_string());
        if self.json {
            format!("{}\n", serde_json::json!({"level": level, "msg": message, "time": time.to_string()}))
        } else if self.file.is_some() {
            format!("{time} {level}: {message}\n")
        } else {
            format!("vmm: {level}: {message}\n")
        }
    }
}

/// RFC 3339, in UTC, with nanoseconds.
pub(crate) fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_nanos(time).to_string()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn times_follow_the_calendar() {
        for (seconds, time) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_600, "2025-01-01T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            let exact = time.replace('Z', ".000000000Z");
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)), exact);
        }
    }

    #[test]
    fn no_record_contains_control_characters() {
        let record = Record::builder().args(format_args!("a\u{1b}[2J\u{202e}\n  b")).build();
        for json in [false, true] {
            let line = Logger { file: None, json }.line(&record, UNIX_EPOCH);
            assert!(!line.contains(['\u{1b}', '\u{202e}']), "{line}");
        }
    }

    #[test]
    fn a_line_has_the_requested_format() {
        let line = |file, json| {
            let record = Record::builder().level(log::Level::Warn).args(format_args!("a \"b\"")).build();
            Logger { file, json }.line(&record, UNIX_EPOCH)
        };
        assert_eq!(line(None, false), "vmm: warn: a \"b\"\n");
        let file = || Some(tempfile::tempfile().unwrap());
        assert_eq!(line(file(), false), "1970-01-01T00:00:00Z warn: a \"b\"\n");
        let json: serde_json::Value = serde_json::from_str(&line(file(), true)).unwrap();
        assert_eq!(json["msg"], "a \"b\"");
        assert_eq!(json["level"], "warn");
    }
}
