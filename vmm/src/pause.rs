//! A pause of a running machine, in which it is saved.
//!
//! 1. [`RunningVm::pause`]: every vCPU leaves the guest, and its thread reads its state.
//! 2. [`PausedVm::hold_devices`]: the devices' loop waits.
//! 3. [`PausedVm::save`]: the devices' states, which makes the file server's thread wait, and the memory.
//! 4. The machine goes on when the pause is dropped, or ends after [`PausedVm::end`].
//!
//! A request that a queue has and no device has served is not lost: the machine that continues serves it.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use devices::StateError;

use crate::pause_order::Order;
use crate::running::RunningVm;
use crate::snapshot::{Snapshot, SnapshotError, step};

/// Longest interval in which the machine's end is not noticed.
const INTERVAL: Duration = Duration::from_millis(100);

/// A machine whose vCPUs wait. Dropping this lets them go on.
pub struct PausedVm<'a> {
    vm: &'a RunningVm,
    vcpus: Vec<Vec<u8>>,
}

impl RunningVm {
    /// Makes every vCPU leave the guest, within `patience`, and reads its state.
    ///
    /// # Errors
    ///
    /// The machine has ended, or KVM refuses.
    pub fn pause(&self, patience: Duration) -> Result<PausedVm<'_>, SnapshotError> {
        let (states, all) = channel();
        let listed = self.vm.listed_msrs()?.into();
        *self.board.pause.order() = Some(Order { listed, states, gate: Arc::default() });
        // From here on ended when it is dropped.
        let mut paused = PausedVm { vm: self, vcpus: vec![Vec::new(); self.vcpus.len()] };
        self.vcpus.iter().for_each(|vcpu| vcpu.kick());
        let until = Instant::now() + patience;
        let mut left = self.vcpus.len();
        while left > 0 {
            match all.recv_timeout(INTERVAL) {
                Ok((index, state)) => {
                    paused.vcpus[index] = state?;
                    left -= 1;
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < until && self.end().is_none() => {}
                Err(_) => return Err(self.unpaused()),
            }
        }
        match self.end() {
            None => Ok(paused),
            Some(_) => Err(self.unpaused()),
        }
    }

    fn unpaused(&self) -> SnapshotError {
        match self.end() {
            Some(end) => SnapshotError::Ended(end),
            None => StateError::Busy("a vcpu does not leave the guest").into(),
        }
    }
}

impl PausedVm<'_> {
    /// Makes the devices' loop wait, after what it is doing.
    pub fn hold_devices(&self) -> Result<(), SnapshotError> {
        self.vm.events.hold().map_err(step("stop the devices"))
    }

    /// Saves the machine, like [`RunningVm::save`]. `pages` is this process's /proc/self/pagemap; without it, all pages of
    /// the memory are looked at.
    pub fn save(
        &self,
        file: &File,
        pages: Option<&File>,
        label: Vec<u8>,
        seal: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<Snapshot, SnapshotError> {
        self.vm.gather(&self.vcpus, (file, pages), label, seal)
    }

    /// The machine does not go on: its next step is its end.
    pub fn end(self) {
        let _ = ManuallyDrop::new(self);
    }
}

impl Drop for PausedVm<'_> {
    fn drop(&mut self) {
        self.vm.board.mmio.go_on();
        self.vm.events.go_on();
        self.vm.board.pause.end();
    }
}
