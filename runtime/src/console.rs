//! Where the guest's kernel log goes beside the tail that is always kept: a file or stderr, and the kernel's own
//! milestones to the timeline.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use host::text::{Lines, printable};
use plan::Console;

/// What the agent prints on the console for each of the kernel's milestones, where the command line has `vmm.marks`:
/// `vmm.mark <microseconds of the guest's clock> <what>`.
const MARK: &str = "vmm.mark ";
/// The longest line that is looked at.
const LINE_MAX: usize = 256;
/// The most milestones kept.
const MARKS_MAX: usize = 1024;

/// One of the guest kernel's milestones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelMark {
    /// When, by the guest's clock.
    pub at: Duration,
    /// What was reached.
    pub name: String,
}

/// The milestones so far, shared with the thread that reads the console.
pub type KernelMarks = Arc<Mutex<Vec<KernelMark>>>;

/// Writers for what the guest says.
#[derive(Default)]
pub struct Outputs {
    /// For the serial port; there is none without it.
    pub serial: Option<Box<dyn Write + Send>>,
    /// A copy of the console.
    pub console: Option<Box<dyn Write + Send>>,
}

impl Outputs {
    /// Opens what was asked for. `marks` gets the kernel's milestones.
    pub fn open(console: Option<&Console>, marks: Option<KernelMarks>) -> io::Result<Outputs> {
        let Some(console) = console else {
            let console = marks.map(|marks| Box::new(MarkReader::new(marks, None)) as Box<dyn Write + Send>);
            return Ok(Outputs { serial: None, console });
        };
        let file = console.to.as_ref().map(File::create).transpose()?;
        let writer = |file: Option<File>| -> Box<dyn Write + Send> {
            match file {
                Some(file) => Box::new(file),
                // It may be a terminal.
                None => Box::new(Lines::new(io::stderr())),
            }
        };
        // Both describe one open file, so that neither overwrites the other.
        let second = file.as_ref().map(File::try_clone).transpose()?;
        let serial = console.serial.then(|| writer(second));
        let copy = writer(file);
        let console = match marks {
            Some(marks) => Box::new(MarkReader::new(marks, Some(copy))),
            None => copy,
        };
        Ok(Outputs { serial, console: Some(console) })
    }
}

/// Picks the milestones out of the console's bytes and passes all of them on.
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
    fn milestones_are_picked_out_of_the_log() {
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
    fn a_guest_that_floods_the_console_costs_no_memory() {
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
        let mut outputs = Outputs::open(Some(&console), Some(KernelMarks::default())).unwrap();
        outputs.serial.as_mut().unwrap().write_all(b"early\n").unwrap();
        outputs.console.as_mut().unwrap().write_all(b"late\n").unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), "early\nlate\n");
    }
}
