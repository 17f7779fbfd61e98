//! A machine whose vCPUs run, and its end.

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
    /// It was stopped from outside.
    Stopped,
    /// The guest asked for a reset, which here is its way to say that it is done.
    Reset,
    /// The guest switched itself off.
    Shutdown,
    /// It could not go on; the text says why, where, and what the CPU was doing.
    Failed(String),
}

/// The first end that any vCPU reports, and a descriptor that becomes readable with it.
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
            // The only byte that is ever written fits.
            let _ = (&self.writer).write(&[0]);
        }
    }
}

/// A machine whose vCPUs run. Dropping it stops it.
pub struct RunningVm {
    pub(crate) vcpus: Vec<VcpuThread>,
    pub(crate) events: EventLoop,
    pub(crate) board: Arc<Board>,
    pub(crate) end: Arc<End>,
    /// Held until the threads are joined.
    pub(crate) _vm: KvmVm,
}

impl RunningVm {
    /// Readable once the machine has ended.
    pub fn end_fd(&self) -> BorrowedFd<'_> {
        self.end.reader.as_fd()
    }

    /// How the machine ended, once it has.
    pub fn end(&self) -> Option<VmEnd> {
        self.end.reason.get().cloned()
    }

    /// The devices' event loop.
    pub fn events(&self) -> LoopHandle {
        self.events.handle()
    }

    /// The machine's memory, as [`Vm::memory`](crate::Vm::memory).
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.board.memory
    }

    /// Stops the machine if it still runs, joins every thread and says how it ended.
    pub fn stop(mut self) -> VmEnd {
        self.halt();
        self.end().unwrap_or(VmEnd::Stopped)
    }

    /// Gets every vCPU out of the guest and joins all threads. A machine that ended by itself keeps that end.
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
