//! Reads a log back: the rotated files and the current one, and new lines while it is followed.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Line, aside};

/// Maximum length of a line in the file: a kept line whose every byte is written as an escape.
const FILE_LINE_MAX: u64 = 8 * super::LINE_MAX as u64;

/// The lines that a reader wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LineFilter {
    /// Only so many of the last lines.
    pub tail: Option<usize>,
    /// Only lines from this time on, in the format of [`Line::time`].
    pub since: Option<String>,
}

/// A log that is being read.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    file: Option<BufReader<File>>,
    /// The beginning of a line that is still being written.
    part: Vec<u8>,
    since: Option<String>,
}

impl LogReader {
    /// Opens a log. Returns a reader at its end, and the lines before that which pass the filter.
    pub fn open(path: &Path, filter: &LineFilter) -> io::Result<(LogReader, VecDeque<Line>)> {
        let mut reader =
            LogReader { path: path.to_owned(), file: None, part: Vec::new(), since: filter.since.clone() };
        let mut lines = VecDeque::new();
        let mut keep = |line| {
            lines.push_back(line);
            if filter.tail.is_some_and(|tail| lines.len() > tail) {
                lines.pop_front();
            }
        };
        let mut numbers = Vec::new();
        while aside(path, numbers.len() as u32 + 1).exists() {
            numbers.push(numbers.len() as u32 + 1);
        }
        for number in numbers.into_iter().rev() {
            reader.file = open(&aside(path, number))?;
            reader.read_file(&mut keep)?;
            reader.part.clear();
        }
        reader.file = open(path)?;
        reader.read_file(&mut keep)?;
        Ok((reader, lines))
    }

    /// Reads new lines. If the file was rotated meanwhile, the old file is read to its end first.
    pub fn more(&mut self, mut take: impl FnMut(Line)) -> io::Result<()> {
        self.read_file(&mut take)?;
        let identity = |file: &BufReader<File>| file.get_ref().metadata().map(|metadata| metadata.ino());
        let own = self.file.as_ref().map(identity).transpose()?;
        if fs::metadata(&self.path).ok().map(|metadata| metadata.ino()) != own {
            self.part.clear();
            self.file = open(&self.path)?;
            self.read_file(&mut take)?;
        }
        Ok(())
    }

    fn read_file(&mut self, take: &mut impl FnMut(Line)) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        // A log with a single file is truncated when it is full.
        if file.stream_position()? > file.get_ref().metadata()?.len() {
            file.seek(SeekFrom::Start(0))?;
            self.part.clear();
        }
        loop {
            let room = FILE_LINE_MAX.saturating_sub(self.part.len() as u64);
            if file.by_ref().take(room).read_until(b'\n', &mut self.part)? == 0 && room > 0 {
                return Ok(());
            }
            if !self.part.ends_with(b"\n") && room > 0 {
                continue;
            }
            let line: Option<Line> = serde_json::from_slice(&self.part).ok();
            self.part.clear();
            // Lines in another format are ignored.
            if let Some(line) =
                line.filter(|line| self.since.as_ref().is_none_or(|since| line.time >= *since))
            {
                take(line);
            }
        }
    }
}

fn open(path: &Path) -> io::Result<Option<BufReader<File>>> {
    match File::open(path) {
        Ok(file) => Ok(Some(BufReader::new(file))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::{Duration, UNIX_EPOCH};

    use super::super::{Limits, LogFile, Stream};
    use super::*;

    fn write(log: &mut LogFile, from: u64, to: u64) {
        for n in from..to {
            log.write(format!("{n}\n").as_bytes(), Stream::Stdout, UNIX_EPOCH + Duration::from_secs(n));
        }
    }

    fn numbers(lines: impl IntoIterator<Item = Line>) -> Vec<u64> {
        lines.into_iter().map(|line| line.log.trim_end().parse().unwrap()).collect()
    }

    #[test]
    fn the_wanted_lines_of_all_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = LogFile::open(&path, Limits { size: 500, files: 50 }).unwrap();
        write(&mut log, 0, 60);
        let read = |filter: &LineFilter| numbers(LogReader::open(&path, filter).unwrap().1);
        assert_eq!(read(&LineFilter::default()), (0..60).collect::<Vec<_>>());
        assert_eq!(read(&LineFilter { tail: Some(3), since: None }), [57, 58, 59]);
        assert!(read(&LineFilter { tail: Some(0), since: None }).is_empty());
        let since = Some("1970-01-01T00:00:58".to_owned());
        assert_eq!(read(&LineFilter { tail: None, since }), [58, 59]);
    }

    #[test]
    fn a_reader_follows_rotated_files() {
        for files in [2, 50] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("log");
            let (mut reader, lines) = LogReader::open(&path, &LineFilter::default()).unwrap();
            assert!(lines.is_empty());
            let mut log = LogFile::open(&path, Limits { size: 1000, files }).unwrap();
            let mut seen = Vec::new();
            for n in 0..30 {
                write(&mut log, n, n + 1);
                reader.more(|line| seen.push(line)).unwrap();
            }
            assert_eq!(numbers(seen), (0..30).collect::<Vec<_>>());
        }
    }

    #[test]
    fn half_a_line_waits_for_its_other_half_and_invalid_lines_are_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut file = File::create(&path).unwrap();
        let (mut reader, _) = LogReader::open(&path, &LineFilter::default()).unwrap();
        let mut seen = Vec::new();
        for piece in ["wonder\n{\"log\":\"1\\n\",\"stream\"", ":\"stdout\",\"time\":\"x\"}", "\n"] {
            assert_eq!(seen.len(), 0);
            file.write_all(piece.as_bytes()).unwrap();
            reader.more(|line| seen.push(line)).unwrap();
        }
        assert_eq!(numbers(seen), [1]);
    }
}
