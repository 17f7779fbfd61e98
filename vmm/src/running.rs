//! A running machine, and how it ended.

use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use devices::{EventLoop, LoopHandle};
use vm_memory::GuestMemoryMmap;

use crate::kvm::KvmVm;
use crate::signal::VcpuThread;
use crate::vcpu::Board;

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
}

/// A machine whose vCPUs run. Dropping it stops the machine.
pub struct RunningVm {
    pub(crate) vcpus: Vec<VcpuThread>,
    pub(crate) events: EventLoop,
    pub(crate) board: Arc<Board>,
    pub(crate) end: Arc<End>,
    /// Kept open until all vCPU threads have been joined.
    pub(crate) _vm: KvmVm,
}

impl RunningVm {
    /// A descriptor that becomes readable when the machine has ended.
    pub fn end_fd(&self) -> BorrowedFd<'_> {
        self.end.reader.as_fd()
    }

    /// How the machine ended, or `None` while it runs.
    pub fn end(&self) -> Option<VmEnd> {
        self.end.reason.get().cloned()
    }

    /// Handle of the machine's event loop.
    pub fn events(&self) -> LoopHandle {
        self.events.handle()
    }

    /// The machine's memory, like [`Vm::memory`](crate::Vm::memory).
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.board.memory
    }

    /// Stops the machine if it still runs, joins all its threads and returns how it ended.
    pub fn stop(mut self) -> VmEnd {
        self.halt();
        self.end().unwrap_or(VmEnd::Stopped)
    }

    /// Makes every vCPU leave the guest and joins all threads. Does not replace an end that a vCPU has reported.
    fn halt(&mut self) {
        self.board.stopping.store(true, Ordering::SeqCst);
        for vcpu in &self.vcpus {
            vcpu.kick();
        }
        for vcpu in self.vcpus.drain(..) {
            if vcpu.join().is_none() {
                self.end.report(VmEnd::Failed("a vcpu thread panicked".to_owned()));
            }
        }
        self.events.stop();
    }
}

impl Drop for RunningVm {
    fn drop(&mut self) {
        self.halt();
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
