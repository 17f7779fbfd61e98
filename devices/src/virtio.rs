//! virtio devices (VIRTIO 1.2): the face that each device shows to its transport.

use std::io;

use vm_memory::GuestMemoryMmap;

use crate::Interrupt;

pub mod fs;
pub mod queue;

pub mod mmio;

pub mod console;
pub mod net;
pub mod p9;
pub mod rng;
mod vectored;

#[cfg(any(test, feature = "driver"))]
pub mod driver;
#[cfg(any(test, feature = "driver"))]
pub mod hostile;

pub use mmio::{MMIO_SIZE, MmioTransport};
pub use queue::{Reader, Served, VirtQueue, Writer};

/// What a device is: data that the transport shows to the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// VIRTIO 1.2, section 5: the device type.
    pub device_id: u32,
    /// Device-specific feature bits; the transport adds VIRTIO_F_VERSION_1 and what the queues support.
    pub features: u64,
    /// The largest size of each queue, a power of two; its length is the number of queues.
    pub queue_sizes: Vec<u16>,
}

/// What moves into a device when its driver says DRIVER_OK.
pub struct Activation {
    /// Guest memory; a clone shares the mapping.
    pub memory: GuestMemoryMmap,
    /// The device's interrupt.
    pub interrupt: Interrupt,
    /// The feature bits that both sides agreed on.
    pub features: u64,
    /// Every queue in order. One that the driver left alone is not ready and never has a request.
    pub queues: Vec<VirtQueue>,
}

/// A virtio device behind a transport.
///
/// `activate` runs on a vCPU thread: it hands queues and events to the thread that serves them and returns.
pub trait VirtioDevice: Send {
    /// Returns what the device is.
    fn info(&self) -> DeviceInfo;
    /// Whether it is there; a place for one that may come shows a driver device ID 0 until then.
    fn is_present(&self) -> bool {
        true
    }
    /// Fills `data` from the device's configuration space; bytes outside of it read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Takes what the driver wrote to the configuration space; most devices have nothing to write.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// Starts serving the queues.
    ///
    /// Called again if the driver resets the device and comes back. The old queues are dead by then
    /// ([`queue::QueueError::Reset`]); a device that cannot serve twice returns an error.
    fn activate(&mut self, activation: Activation) -> io::Result<()>;
    /// The driver resets the device, on a vCPU thread. No queue starts another request from here on, and what the device
    /// has started is to be let go of, the loan of a queue ([`VirtQueue::lend`]) first of all. Does not wait.
    fn reset(&mut self) {}
}

/// Fills `data` from a configuration space that holds `config`; bytes outside of it are zero.
pub fn copy_config(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let from = usize::try_from(offset).map_or(config.len(), |offset| offset.min(config.len()));
    let len = data.len().min(config.len() - from);
    data[..len].copy_from_slice(&config[from..from + len]);
}
