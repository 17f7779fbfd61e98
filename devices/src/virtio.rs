//! virtio devices (VIRTIO 1.2), and the interface between a device and its transport.

use std::io;

use vm_memory::GuestMemoryMmap;

use crate::{Interrupt, StateError};
use mmio::page::RegisterPage;

pub mod fs;
pub mod queue;

pub mod mmio;

pub mod balloon;
pub mod console;
pub mod net;
pub mod p9;
pub mod rng;

#[cfg(any(test, feature = "driver"))]
pub mod driver;
#[cfg(any(test, feature = "driver"))]
pub mod hostile;

pub use mmio::{MMIO_SIZE, MmioTransport};
pub use queue::{Reader, Served, VirtQueue, Writer};

/// Type, features and queues of a device, as the transport presents them to the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Device type (VIRTIO 1.2, 5).
    pub device_id: u32,
    /// Device-specific feature bits. The transport adds VIRTIO_F_VERSION_1 and the features of its queues.
    pub features: u64,
    /// Maximum size of each queue, a power of two. The length of the vector is the number of queues.
    pub queue_sizes: Vec<u16>,
}

/// What the transport passes to a device when the driver sets DRIVER_OK.
pub struct Activation {
    /// Guest memory. A clone shares the mapping.
    pub memory: GuestMemoryMmap,
    /// The device's interrupt.
    pub interrupt: Interrupt,
    /// The negotiated feature bits.
    pub features: u64,
    /// All queues, in the device's order. A queue that the driver did not set up is not ready and never has a request.
    pub queues: Vec<VirtQueue>,
}

/// A virtio device behind a transport.
///
/// `activate` and `reset` run on vCPU threads. `activate` passes the queues to the thread that serves them, and
/// returns.
pub trait VirtioDevice: Send {
    /// Returns the device's type, features and queues. They do not change.
    fn info(&self) -> DeviceInfo;
    /// Shows the device in its registers: its type and its configuration space. An empty [`net::Slot`] shows no device
    /// until a NIC is plugged in.
    fn show(&mut self, page: &RegisterPage) {
        page.show_device(Some(self.info().device_id), |offset, data| self.read_config(offset, data));
    }
    /// Fills `data` from the device's configuration space. Bytes outside of it read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Handles a write to the configuration space. Most devices have no writable fields.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// Starts serving the queues.
    ///
    /// Called again when the driver resets the device and sets it up anew. The previous queues are unusable by then
    /// ([`queue::QueueError::Reset`]). A device that can be started only once returns an error.
    fn activate(&mut self, activation: Activation) -> io::Result<()>;
    /// Handles a reset by the driver. From now on no queue starts another request. The device must release what it
    /// holds of the queues, above all a loan ([`VirtQueue::lend`]). Must not wait.
    fn reset(&mut self) {}
    /// Returns what the device knows beyond its queues, while the driver uses it. `served` has for each queue whether the
    /// device has used a buffer of it. A device refuses if it cannot continue from that.
    fn save(&self, served: &[bool]) -> Result<Vec<u8>, StateError>;
    /// Goes on after [`save`](Self::save), which may have made a thread of the device wait. The machine continues itself.
    fn go_on(&mut self) {}
    /// Takes over what [`save`](Self::save) returned. [`activate`](Self::activate) follows.
    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        if state.is_empty() { Ok(()) } else { Err(StateError::Foreign("this one keeps nothing")) }
    }
}

/// Fills `data` from `offset` of the configuration space `config`. Bytes outside of it are zero.
pub fn copy_config(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let from = usize::try_from(offset).map_or(config.len(), |offset| offset.min(config.len()));
    let len = data.len().min(config.len() - from);
    data[..len].copy_from_slice(&config[from..from + len]);
}
