//! A running machine, and how it ended.

use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use devices::virtio::mmio::page::RegisterPages;
use devices::{EventLoop, LoopHandle};
use vm_memory::GuestMemoryMmap;

use crate::end::{End, VmEnd};
use crate::kvm::KvmVm;
use crate::signal::VcpuThread;
use crate::vcpu::Board;

/// A machine whose vCPUs run. Dropping it stops the machine.
pub struct RunningVm {
    pub(crate) vcpus: Vec<VcpuThread>,
    pub(crate) events: EventLoop,
    pub(crate) board: Arc<Board>,
    pub(crate) end: Arc<End>,
    /// Set when the guest may run.
    pub(crate) gate: Arc<OnceLock<()>>,
    /// Kept open until all vCPU threads have been joined.
    pub(crate) _vm: KvmVm,
    /// Mapped into the guest.
    pub(crate) _pages: RegisterPages,
}

impl RunningVm {
    /// Lets the guest run, if the machine is held.
    pub fn release(&self) {
        // A second call changes nothing.
        let _ = self.gate.set(());
    }

    /// A descriptor that becomes readable when the machine has ended.
    pub fn end_fd(&self) -> BorrowedFd<'_> {
        self.end.fd()
    }

    /// How the machine ended, or `None` while it runs.
    pub fn end(&self) -> Option<VmEnd> {
        self.end.reason()
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
        // vCPUs that did not run yet find that they are to stop.
        self.release();
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
