//! A container's log, in the format of Docker's json-file driver: one JSON object per line of output, with stream and
//! time. A file that reaches its limit is rotated, and only a number of rotated files is kept.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::podfile::{Log, Result, invalid};
use crate::logging;

pub mod reader;

/// Maximum length of a line in one piece; a longer line is logged in parts.
const LINE_MAX: usize = 16 << 10;
/// Default size of a file, in bytes. The pod's directory is usually in memory.
const DEFAULT_SIZE: u64 = 10 << 20;
/// Default number of files.
const DEFAULT_FILES: u32 = 2;
/// Maximum number of files.
const FILES_MAX: u32 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output, or output of a terminal.
    Stdout,
    Stderr,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The text with its newline. Without a newline, it continues in the next line.
    pub log: String,
    pub stream: Stream,
    /// RFC 3339, in UTC.
    pub time: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a file.
    pub size: u64,
    pub files: u32,
}

impl Limits {
    /// Returns a podfile's limits, or `None` if nothing is logged.
    pub fn of(log: &Log) -> Result<Option<Limits>> {
        if log.kind == "none" {
            return Ok(None);
        }
        let mut limits = Limits { size: DEFAULT_SIZE, files: DEFAULT_FILES };
        if let Some(text) = log.config.get("max-size") {
            let why =
                || invalid("log.config.max-size", format!("{text:?} is not a size in bytes, k, m or g"));
            limits.size = bytes(text).filter(|size| *size > 0).ok_or_else(why)?;
        }
        if let Some(text) = log.config.get("max-file") {
            let why = || invalid("log.config.max-file", format!("{text:?} is not from 1 to {FILES_MAX}"));
            let files = text.parse().ok().filter(|files| (1..=FILES_MAX).contains(files));
            limits.files = files.ok_or_else(why)?;
        }
        Ok(Some(limits))
    }
}

fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.to_ascii_lowercase().trim_end_matches('b').as_bytes() {
        [digits @ .., b'k'] => (digits.len(), 10),
        [digits @ .., b'm'] => (digits.len(), 20),
        [digits @ .., b'g'] => (digits.len(), 30),
        digits => (digits.len(), 0),
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    limits: Limits,
    file: File,
    size: u64,
    /// A failed write was reported already.
    broken: bool,
}

impl LogFile {
    pub fn open(path: &Path, limits: Limits) -> io::Result<LogFile> {
        let file = File::options().append(true).create(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(LogFile { path: path.to_owned(), limits, file, size, broken: false })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a line or a part of one. A line that cannot be written is lost, which is reported once.
    pub fn write(&mut self, text: &[u8], stream: Stream, now: SystemTime) {
        let time = logging::timestamp(now);
        let line = Line { log: String::from_utf8_lossy(text).into_owned(), stream, time };
        if let Err(error) = self.append(&line)
            && !std::mem::replace(&mut self.broken, true)
        {
            log::warn!("write log {}: {error}", self.path.display());
        }
    }

    fn append(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        if self.size > 0 && self.size + text.len() as u64 > self.limits.size {
            self.rotate()?;
        }
        self.file.write_all(&text)?;
        self.size += text.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        if self.limits.files == 1 {
            self.file.set_len(0)?;
        } else {
            for number in (1..self.limits.files - 1).rev() {
                match fs::rename(aside(&self.path, number), aside(&self.path, number + 1)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            fs::rename(&self.path, aside(&self.path, 1))?;
            self.file = File::options().append(true).create(true).open(&self.path)?;
        }
        self.size = 0;
        Ok(())
    }
}

/// Returns the path of the `number`th rotated file.
fn aside(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// Splits a stream of bytes into lines.
#[derive(Debug, Default)]
pub struct LineSplitter {
    started: Vec<u8>,
}

impl LineSplitter {
    /// Passes `take` every line that `data` completes, with its newline, and parts of lines that are too long.
    pub fn push(&mut self, data: &[u8], mut take: impl FnMut(&[u8])) {
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            self.started.extend_from_slice(piece);
            while self.started.len() > LINE_MAX {
                take(&self.started[..LINE_MAX]);
                self.started.drain(..LINE_MAX);
            }
            if self.started.ends_with(b"\n") {
                take(&self.started);
                self.started.clear();
            }
        }
    }

    /// Passes on the last line if it has no newline.
    pub fn finish(&mut self, take: impl FnOnce(&[u8])) {
        if !self.started.is_empty() {
            take(&self.started);
            self.started.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn limits(config: serde_json::Value) -> Result<Option<Limits>> {
        Limits::of(&serde_json::from_value(config).unwrap())
    }

    #[test]
    fn limits_are_docker_s() {
        let of = |size, files| Some(Limits { size, files });
        for (config, wanted) in [
            (serde_json::json!({}), of(10 << 20, 2)),
            (
                serde_json::json!({"type": "json-file", "config": {"max-size": "5k", "max-file": "3"}}),
                of(5 << 10, 3),
            ),
            (serde_json::json!({"config": {"max-size": "2MB"}}), of(2 << 20, 2)),
            (serde_json::json!({"config": {"max-size": "700"}}), of(700, 2)),
            (serde_json::json!({"type": "none"}), None),
        ] {
            assert_eq!(limits(config).unwrap(), wanted);
        }
        for (key, value) in
            [("max-size", "0"), ("max-size", "x"), ("max-size", "-1"), ("max-file", "0"), ("max-file", "101")]
        {
            let error = limits(serde_json::json!({"config": {key: value}})).unwrap_err().to_string();
            assert!(error.starts_with(&format!("podfile log.config.{key}: ")), "{error}");
        }
    }

    #[test]
    fn a_line_is_an_object_with_stream_and_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = LogFile::open(&path, Limits { size: 1000, files: 2 }).unwrap();
        log.write(b"a \"b\"\xff\n", Stream::Stderr, UNIX_EPOCH + std::time::Duration::from_millis(1500));
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "{\"log\":\"a \\\"b\\\"\u{fffd}\\n\",\"stream\":\"stderr\",\"time\":\"1970-01-01T00:00:01.500000000Z\"}\n"
        );
    }

    #[test]
    fn a_log_keeps_to_its_limits() {
        for files in [1, 2, 4] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("log");
            let mut log = LogFile::open(&path, Limits { size: 300, files }).unwrap();
            for n in 0..100 {
                log.write(format!("line {n}\n").as_bytes(), Stream::Stdout, UNIX_EPOCH);
            }
            let sizes: Vec<u64> = fs::read_dir(folder.path())
                .unwrap()
                .map(|file| file.unwrap().metadata().unwrap().len())
                .collect();
            assert_eq!(sizes.len() as u32, files);
            assert!(sizes.iter().all(|size| *size <= 300), "{sizes:?}");
            assert!(fs::read_to_string(&path).unwrap().contains("line 99\\n"));
        }
    }

    #[test]
    fn lines_are_assembled_and_long_ones_split() {
        let mut lines = LineSplitter::default();
        let mut taken: Vec<Vec<u8>> = Vec::new();
        for piece in ["a", "b\nc\n\n", "d"] {
            lines.push(piece.as_bytes(), |line| taken.push(line.to_vec()));
        }
        assert_eq!(taken, [b"ab\n".to_vec(), b"c\n".to_vec(), b"\n".to_vec()]);
        lines.finish(|line| taken.push(line.to_vec()));
        assert_eq!(taken[3], b"d");
        taken.clear();
        lines.push(&vec![b'x'; 2 * LINE_MAX + 5], |line| taken.push(line.to_vec()));
        lines.push(b"y\n", |line| taken.push(line.to_vec()));
        assert_eq!(taken.iter().map(Vec::len).collect::<Vec<_>>(), [LINE_MAX, LINE_MAX, 7]);
    }
}
