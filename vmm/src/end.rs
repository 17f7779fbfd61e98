//! How a machine ended.

use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmEnd {
    /// [`RunningVm::stop`] was called, or the [`RunningVm`] was dropped.
    Stopped,
    /// The guest asked for a reset. The machine is not restarted: guests reset to report that they are finished.
    Reset,
    /// The guest powered itself off.
    Shutdown,
    /// The machine could not continue. The text gives the cause, the instruction pointer and the state of the vCPU.
    Failed(String),
}

/// The first end that a vCPU reports, and a pipe that becomes readable when it does.
pub(crate) struct End {
    reader: PipeReader,
    writer: PipeWriter,
    reason: OnceLock<VmEnd>,
}

impl End {
    pub(crate) fn new() -> io::Result<End> {
        let (reader, writer) = io::pipe()?;
        Ok(End { reader, writer, reason: OnceLock::new() })
    }

    pub(crate) fn report(&self, end: VmEnd) {
        if self.reason.set(end).is_ok() {
            // This is the only write to the pipe, so one byte always fits.
            let _ = (&self.writer).write(&[0]);
        }
    }

    /// Returns a descriptor that becomes readable with the first report.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    /// Returns the first report.
    pub(crate) fn reason(&self) -> Option<VmEnd> {
        self.reason.get().cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_first_end_counts_and_is_signalled() {
        let end = End::new().unwrap();
        end.report(VmEnd::Reset);
        end.report(VmEnd::Failed("later".to_owned()));
        assert_eq!(end.reason.get(), Some(&VmEnd::Reset));
        let mut byte = [7];
        (&end.reader).read_exact(&mut byte).unwrap();
        assert_eq!(byte, [0]);
    }
}
