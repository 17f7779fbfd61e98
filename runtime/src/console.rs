//! Destinations of the guest's kernel log besides the tail in memory: a file or stderr, and the kernel's milestones for
//! the timeline.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use host::text::{Lines, printable};
use plan::Console;

/// Prefix of lines that the agent prints on the console for the kernel's milestones if the command line has
/// `vmm.marks`: `vmm.mark <microseconds of the guest's clock> <what>`.
const MARK: &str = "vmm.mark ";
/// Maximum length of a parsed line.
const LINE_MAX: usize = 256;
/// Maximum number of milestones.
const MARKS_MAX: usize = 1024;

/// One of the guest kernel's milestones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelMark {
    /// Microseconds on the guest's clock.
    pub at: Duration,
    pub name: String,
}

/// The milestones so far, shared with the thread that reads the console.
pub type KernelMarks = Arc<Mutex<Vec<KernelMark>>>;

#[derive(Default)]
pub struct ConsoleWriters {
    /// Writer for the serial port, if the machine has one.
    pub serial: Option<Box<dyn Write + Send>>,
    /// Writer for a copy of the console.
    pub console: Option<Box<dyn Write + Send>>,
}

impl ConsoleWriters {
    /// Opens the destinations. `marks` gets the kernel's milestones.
    pub fn open(console: Option<&Console>, marks: Option<KernelMarks>) -> io::Result<ConsoleWriters> {
        let Some(console) = console else {
            let console = marks.map(|marks| Box::new(MarkReader::new(marks, None)) as Box<dyn Write + Send>);
            return Ok(ConsoleWriters { serial: None, console });
        };
        let file = console.to.as_ref().map(File::create).transpose()?;
        let writer = |file: Option<File>| -> Box<dyn Write + Send> {
            match file {
                Some(file) => Box::new(file),
                // The output may go to a terminal.
                None => Box::new(Lines::new(io::stderr())),
            }
        };
        // Both writers share one open file description, so that neither overwrites the other.
        let second = file.as_ref().map(File::try_clone).transpose()?;
        let serial = console.serial.then(|| writer(second));
        let copy = writer(file);
        let console = match marks {
            Some(marks) => Box::new(MarkReader::new(marks, Some(copy))),
            None => copy,
        };
        Ok(ConsoleWriters { serial, console: Some(console) })
    }
}

/// Extracts milestones from the console's bytes and passes on all bytes.
struct MarkReader {
    marks: KernelMarks,
    line: Vec<u8>,
    next: Option<Box<dyn Write + Send>>,
}

impl MarkReader {
    fn new(marks: KernelMarks, next: Option<Box<dyn Write + Send>>) -> MarkReader {
        MarkReader { marks, line: Vec::new(), next }
    }

    fn take_line(&mut self) {
        let mark = parse(&String::from_utf8_lossy(&self.line));
        self.line.clear();
        let mut marks = self.marks.lock().unwrap();
        if let Some(mark) = mark.filter(|_| marks.len() < MARKS_MAX) {
            marks.push(mark);
        }
    }
}

fn parse(line: &str) -> Option<KernelMark> {
    let (at, name) = line.trim_end().strip_prefix(MARK)?.split_once(' ')?;
    Some(KernelMark { at: Duration::from_micros(at.parse().ok()?), name: printable(name) })
}

impl Write for MarkReader {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        for &byte in data {
            match byte {
                b'\n' => self.take_line(),
                _ if self.line.len() < LINE_MAX => self.line.push(byte),
                _ => {}
            }
        }
        match &mut self.next {
            Some(next) => next.write_all(data).map(|()| data.len()),
            None => Ok(data.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.next.as_mut().map_or(Ok(()), |next| next.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milestones_are_extracted_from_the_log() {
        let marks = KernelMarks::default();
        let mut reader = MarkReader::new(marks.clone(), None);
        for chunk in
            ["[ 0.1] x\nvmm.ma", "rk 1500 Run /init\r\nvmm.mark", " x y\nvmm.mark 7\n", "vmm.mark 2000 a b"]
        {
            reader.write_all(chunk.as_bytes()).unwrap();
        }
        reader.write_all(b"\n").unwrap();
        let found: Vec<_> =
            marks.lock().unwrap().iter().map(|m| (m.at.as_micros(), m.name.clone())).collect();
        assert_eq!(found, [(1500, "Run /init".to_owned()), (2000, "a b".to_owned())]);
    }

    #[test]
    fn a_guest_that_floods_the_console_uses_limited_memory() {
        let marks = KernelMarks::default();
        let mut reader = MarkReader::new(marks.clone(), None);
        reader.write_all(&[b'x'; 100_000]).unwrap();
        assert_eq!(reader.line.len(), LINE_MAX);
        reader.write_all("\nvmm.mark 1 m".repeat(2000).as_bytes()).unwrap();
        assert_eq!(marks.lock().unwrap().len(), MARKS_MAX);
    }

    #[test]
    fn console_and_serial_port_share_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let console = Console { serial: true, to: Some(path.clone()) };
        let mut outputs = ConsoleWriters::open(Some(&console), Some(KernelMarks::default())).unwrap();
        outputs.serial.as_mut().unwrap().write_all(b"early\n").unwrap();
        outputs.console.as_mut().unwrap().write_all(b"late\n").unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), "early\nlate\n");
    }
}
