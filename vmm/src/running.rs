//! A running machine, and how it ended.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use devices::virtio::mmio::page::RegisterPages;
use devices::{Encoder, EventLoop, LoopHandle};
use kvm_ioctls::VcpuFd;
use vm_memory::{GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

use crate::end::{End, VmEnd};
use crate::kvm::KvmVm;
use crate::signal::VcpuThread;
use crate::snapshot::extent::Extent;
use crate::snapshot::{Parts, Snapshot, SnapshotError, WorkingSet, memory, plain, step, vcpu};
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
    pub(crate) vm: KvmVm,
    /// The parts of memory that are mapped from a saved machine's file.
    pub(crate) mapped: Vec<Extent>,
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

    /// Stops the machine and saves it: its memory to `file`, which is empty, and everything else in the snapshot, with
    /// `label`. `seal` makes the file unchangeable once it is written. A guest that waits for something is saved soonest;
    /// one that works is saved wherever it is.
    ///
    /// # Errors
    ///
    /// A device refuses, the file cannot be written, or the machine has ended by itself.
    pub fn save(
        mut self,
        file: &File,
        label: Vec<u8>,
        seal: impl FnOnce(&File) -> std::io::Result<()>,
    ) -> Result<Snapshot, SnapshotError> {
        // A vCPU that has left the guest for a device enters it once more before its thread ends, with `immediate_exit`,
        // so that KVM finishes the instruction.
        let vcpus = self.halt();
        match self.end() {
            None | Some(VmEnd::Stopped) => {}
            Some(end) => return Err(SnapshotError::Ended(end)),
        }
        let listed = self.vm.listed_msrs()?;
        let vcpus = vcpus.iter().map(|vcpu| vcpu::state(vcpu, &listed)).collect::<Result<Vec<_>, _>>()?;
        self.gather(&vcpus, (file, None), label, seal)
    }

    /// Saves the machine, whose threads do not run. `vcpus` are the states of its vCPUs. `pages` is /proc/self/pagemap;
    /// without it, all pages are looked at.
    pub(crate) fn gather(
        &self,
        vcpus: &[Vec<u8>],
        (file, pages): (&File, Option<&File>),
        label: Vec<u8>,
        seal: impl FnOnce(&File) -> std::io::Result<()>,
    ) -> Result<Snapshot, SnapshotError> {
        if self.board.pio.save()?.iter().any(|(_, state)| !state.is_empty()) {
            return Err(devices::StateError::Busy("an i/o port's device has a state").into());
        }
        let devices = self.board.mmio.save()?;
        let processors = self.processors(vcpus)?;
        let guest = &self.board.memory;
        let memory_mib = (guest.iter().map(GuestMemoryRegion::len).sum::<u64>() >> 20) as u32;
        let own = pages.is_none().then(|| File::open("/proc/self/pagemap").ok()).flatten();
        let (extents, memory_sum) = memory::write(guest, &self.mapped, (file, pages.or(own.as_ref())))
            .map_err(step("write the memory's file"))?;
        seal(file).map_err(step("seal the memory's file"))?;
        let vcpus = vcpus.len() as u8;
        Snapshot::new(Parts { label, memory_mib, vcpus, extents, memory_sum, processors, devices }, file)
    }

    /// Finds what a machine that continues from a saved one has used of its memory so far.
    pub fn working_set(&self) -> std::io::Result<WorkingSet> {
        WorkingSet::of(&self.board.memory, &self.mapped)
    }

    /// Returns the state of the vCPUs, the interrupt controllers and the clock, preceded by the CPUID that they are for.
    fn processors(&self, vcpus: &[Vec<u8>]) -> Result<Vec<u8>, SnapshotError> {
        let mut state = Encoder::default();
        let table = self.vm.cpuid(vcpus.len() as u8)?;
        state.u32(table.len() as u32);
        table.iter().for_each(|entry| plain::put(&mut state, entry));
        let mut shared = Encoder::default();
        self.vm.save(&mut shared)?;
        Ok([state.finish(), vcpus.concat(), shared.finish()].concat())
    }

    /// Makes every vCPU leave the guest and joins all threads. Does not replace an end that a vCPU has reported. Returns the
    /// vCPUs.
    fn halt(&mut self) -> Vec<VcpuFd> {
        self.board.stopping.store(true, Ordering::SeqCst);
        for vcpu in &self.vcpus {
            vcpu.kick();
        }
        // vCPUs that did not run yet, or that wait while the machine is saved, find that they are to stop.
        self.release();
        self.board.pause.end();
        let mut fds = Vec::new();
        for vcpu in self.vcpus.drain(..) {
            match vcpu.join() {
                Some(fd) => fds.push(fd),
                None => self.end.report(VmEnd::Failed("a vcpu thread panicked".to_owned())),
            }
        }
        self.events.stop();
        fds
    }
}

impl Drop for RunningVm {
    fn drop(&mut self) {
        self.halt();
    }
}
