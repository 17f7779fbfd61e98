//! A place for a network device: a device as any other once something is in it, and nothing before.
//!
//! The machine's map of devices does not change, but what stands behind one may. An empty place has device ID 0, by which a
//! driver knows that nothing is there (VIRTIO 1.2, 4.2.2: "0x0 is to be used to define a system memory map with placeholder
//! devices"); a driver that looks again finds what has come.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Net, description};
use crate::virtio::{Activation, DeviceInfo, VirtioDevice};

/// The place. Its clones are the same one: the bus has one, and whoever plugs devices in another.
#[derive(Clone, Default)]
pub struct Slot(Arc<Mutex<Option<Net>>>);

impl Slot {
    /// Puts a device in. Its driver has to be told to look.
    pub fn plug(&self, net: Net) {
        *self.inside() = Some(net);
    }

    /// Takes the device out. Its driver should have let go of it before; one that has not keeps queues that nobody serves,
    /// and nothing of the tap.
    pub fn unplug(&self) {
        let net = self.inside().take();
        // Dropped without the lock: the end of a tap takes its time.
        drop(net);
    }

    /// The lock is held for no longer than a register access takes.
    fn inside(&self) -> MutexGuard<'_, Option<Net>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VirtioDevice for Slot {
    fn info(&self) -> DeviceInfo {
        description()
    }

    fn is_present(&self) -> bool {
        self.inside().is_some()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        match &*self.inside() {
            Some(net) => net.read_config(offset, data),
            None => data.fill(0),
        }
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        match &mut *self.inside() {
            Some(net) => net.activate(activation),
            None => Err(io::Error::new(io::ErrorKind::NotFound, "there is no device")),
        }
    }

    fn reset(&mut self) {
        if let Some(net) = &mut *self.inside() {
            net.reset();
        }
    }
}

#[cfg(test)]
mod tests;
