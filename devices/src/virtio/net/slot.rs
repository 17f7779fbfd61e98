//! A slot for a NIC, which can be plugged in and removed while the machine runs.
//!
//! The address range of a slot exists from the machine's start. While the slot is empty it shows device ID 0, which
//! tells the driver that there is no device (VIRTIO 1.2, 4.2.2: "0x0 is to be used to define a system memory map with
//! placeholder devices"). The driver finds a NIC that was plugged in when it probes the slot again.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Net, description};
use crate::StateError;
use crate::virtio::mmio::page::RegisterPage;
use crate::virtio::{Activation, DeviceInfo, VirtioDevice};

/// A slot. Clones share it: the bus has one clone, and the owner that plugs NICs in has another.
#[derive(Clone, Default)]
pub struct Slot(Arc<Mutex<Inside>>);

#[derive(Default)]
struct Inside {
    net: Option<Net>,
    /// The slot's registers, once it is on the bus.
    page: Option<RegisterPage>,
}

impl Inside {
    fn show(&self) {
        let Some(page) = &self.page else { return };
        match &self.net {
            Some(net) => {
                page.show_device(Some(net.info().device_id), |offset, data| net.read_config(offset, data))
            }
            None => page.show_device(None, |_, data| data.fill(0)),
        }
    }
}

impl Slot {
    /// Plugs `net` in. The guest must then be told to probe the slot.
    pub fn plug(&self, net: Net) {
        let mut inside = self.inside();
        inside.net = Some(net);
        inside.show();
    }

    /// Removes the NIC. Its driver should have released it before. A driver that has not keeps queues that are no
    /// longer served, and has no access to the tap.
    pub fn unplug(&self) {
        let mut inside = self.inside();
        let net = inside.net.take();
        inside.show();
        drop(inside);
        // Dropped without the lock, because closing a tap takes long.
        drop(net);
    }

    /// Locks the slot. Callers hold the lock only as long as a register access takes.
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VirtioDevice for Slot {
    fn info(&self) -> DeviceInfo {
        description()
    }

    fn show(&mut self, page: &RegisterPage) {
        let mut inside = self.inside();
        inside.page = Some(page.clone());
        inside.show();
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        match &self.inside().net {
            Some(net) => net.read_config(offset, data),
            None => data.fill(0),
        }
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        match &mut self.inside().net {
            Some(net) => net.activate(activation),
            None => Err(io::Error::new(io::ErrorKind::NotFound, "the slot is empty")),
        }
    }

    fn reset(&mut self) {
        if let Some(net) = &mut self.inside().net {
            net.reset();
        }
    }

    fn save(&self, served: &[bool]) -> Result<Vec<u8>, StateError> {
        match &self.inside().net {
            Some(net) => net.save(served),
            None => Err(StateError::Busy("the guest uses a network interface that was removed")),
        }
    }
}

#[cfg(test)]
mod tests;
