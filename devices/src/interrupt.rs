//! A device's interrupt line: an eventfd that the hypervisor turns into an edge, and virtio-mmio's reason bits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::EventFd;

/// Raises a virtio-mmio device's interrupt (VIRTIO 1.2, 4.2.2, InterruptStatus). Clones share one line.
#[derive(Clone, Debug)]
pub struct Interrupt {
    status: Arc<AtomicU32>,
    line: Arc<EventFd>,
}

impl Interrupt {
    /// Returns an interrupt that fires `line`.
    pub fn new(line: Arc<EventFd>) -> Interrupt {
        Interrupt { status: Arc::new(AtomicU32::new(0)), line }
    }

    /// Tells the driver that a queue has used buffers.
    pub fn used_buffers(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// Tells the driver that the configuration has changed.
    pub fn config_changed(&self) {
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// The pending reasons, as the InterruptStatus register shows them.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// Takes back the reasons that the driver acknowledged.
    pub fn acknowledge(&self, reasons: u32) {
        self.status.fetch_and(!reasons, Ordering::SeqCst);
    }

    fn raise(&self, reason: u32) {
        self.status.fetch_or(reason, Ordering::SeqCst);
        // The counter cannot overflow before the irqfd drains it; a full counter is a pending interrupt all the same.
        let _ = self.line.write(1);
    }
}
