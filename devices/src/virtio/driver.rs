//! The driver's side of virtio, for this crate's tests and, with the feature `driver`, for those of other crates. It
//! uses registers and rings as Linux's drivers do, and panics when the device does not behave.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::EventManager;
use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::VirtioDevice;
use super::mmio::MmioTransport;
use super::mmio::page::RegisterPage;
use super::queue::Gate;
use crate::{BusDevice, LoopHandle, Subscriber};

const MEMORY_LEN: usize = 64 << 20;
const QUEUE_STRIDE: u64 = 0x20_0000;
/// Offset of the available ring, after a table of at most 256 descriptors.
pub const AVAIL: u64 = 0x1000;
/// Offset of the used ring.
pub const USED: u64 = 0x1800;
const BUFFERS: u64 = 0x3000;
/// Length of each buffer of a queue, in bytes.
pub const BUFFER_LEN: u32 = 0x1000;

/// Returns guest memory for a driver.
pub fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_LEN)]).unwrap()
}

/// An event loop that the test runs itself, without a thread.
pub struct Loop(EventManager<Subscriber>);

impl Default for Loop {
    fn default() -> Loop {
        Loop::new()
    }
}

impl Loop {
    /// Returns a new loop.
    pub fn new() -> Loop {
        Loop(EventManager::new().unwrap())
    }

    /// Returns a handle for devices.
    pub fn handle(&self) -> LoopHandle {
        LoopHandle::of(&self.0)
    }

    /// Waits at most so many milliseconds for events and handles them. Returns whether there were any.
    pub fn wait(&mut self, milliseconds: i32) -> bool {
        let count = self.0.run_with_timeout(milliseconds).unwrap();
        self.turn();
        count > 0
    }

    /// Handles events until there are none.
    pub fn turn(&mut self) {
        assert!(self.turn_at_most(1000), "the loop does not become idle");
    }

    /// Like [`Self::turn`], but handles events at most so many times. Returns whether none are left.
    pub fn turn_at_most(&mut self, times: usize) -> bool {
        (0..times).any(|_| self.0.run_with_timeout(0).unwrap() == 0)
    }
}

/// A driver of one device.
pub struct Driver {
    /// The device's registers.
    pub transport: MmioTransport,
    /// Guest memory.
    pub memory: GuestMemoryMmap,
    irq: Arc<EventFd>,
}

/// Returns the open gate of a device whose registers nobody reads.
pub fn gate() -> Arc<Gate> {
    Arc::new(Gate::new(RegisterPage::unmapped().unwrap()))
}

impl Driver {
    /// Returns a driver of `device` with new memory.
    pub fn new(device: Box<dyn VirtioDevice>) -> Driver {
        Driver::with(memory(), device)
    }

    /// Returns a driver of `device` with this memory.
    pub fn with(memory: GuestMemoryMmap, device: Box<dyn VirtioDevice>) -> Driver {
        let irq = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let page = RegisterPage::unmapped().unwrap();
        let transport = MmioTransport::new(device, memory.clone(), irq.clone(), page).unwrap();
        Driver { transport, memory, irq }
    }

    /// Reads a register.
    pub fn read(&mut self, register: u32) -> u32 {
        let mut data = [0xaa; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub fn write(&mut self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    /// The device's status.
    pub fn status(&mut self) -> u32 {
        self.read(VIRTIO_MMIO_STATUS)
    }

    /// Sets a status bit as Linux does: by reading, adding and writing.
    pub fn add_status(&mut self, bit: u32) {
        let status = self.status();
        self.write(VIRTIO_MMIO_STATUS, status | bit);
    }

    /// The features that the device offers.
    pub fn offered(&mut self) -> u64 {
        self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
        let high = self.read(VIRTIO_MMIO_DEVICE_FEATURES);
        self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
        u64::from(high) << 32 | u64::from(self.read(VIRTIO_MMIO_DEVICE_FEATURES))
    }

    /// Accepts features.
    pub fn accept(&mut self, features: u64) {
        self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        self.write(VIRTIO_MMIO_DRIVER_FEATURES, (features >> 32) as u32);
        self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
        self.write(VIRTIO_MMIO_DRIVER_FEATURES, features as u32);
    }

    /// Resets the device and negotiates up to FEATURES_OK. Accepts the offered features that are in the mask
    /// `features`.
    pub fn negotiate(&mut self, features: u64) -> u64 {
        self.write(VIRTIO_MMIO_STATUS, 0);
        self.add_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
        self.add_status(VIRTIO_CONFIG_S_DRIVER);
        let accepted = self.offered() & features;
        self.accept(accepted);
        self.add_status(VIRTIO_CONFIG_S_FEATURES_OK);
        accepted
    }

    /// Sets up one queue at its place in memory.
    pub fn set_up_queue(&mut self, index: u32, event_idx: bool) -> DriverQueue {
        self.write(VIRTIO_MMIO_QUEUE_SEL, index);
        assert_eq!(self.read(VIRTIO_MMIO_QUEUE_READY), 0);
        // As many as fit into the table.
        let size = self.read(VIRTIO_MMIO_QUEUE_NUM_MAX).min(256) as u16;
        let base = QUEUE_STRIDE * u64::from(index + 1);
        self.write(VIRTIO_MMIO_QUEUE_NUM, size.into());
        for (low, high, address) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, base),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, base + AVAIL),
            (VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_QUEUE_USED_HIGH, base + USED),
        ] {
            self.write(low, address as u32);
            self.write(high, (address >> 32) as u32);
        }
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(self.read(VIRTIO_MMIO_QUEUE_READY), 1);
        DriverQueue::new(self.memory.clone(), base, size, event_idx)
    }

    /// Starts the device with the features in `mask`, as Linux's drivers do. Returns its queues.
    pub fn start(&mut self, mask: u64) -> Vec<DriverQueue> {
        let accepted = self.negotiate(mask | 1 << VIRTIO_F_VERSION_1);
        assert_ne!(self.status() & VIRTIO_CONFIG_S_FEATURES_OK, 0);
        let event_idx = accepted & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let count = self.transport.kicks().len() as u32;
        let queues = (0..count).map(|index| self.set_up_queue(index, event_idx)).collect();
        self.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
        queues
    }

    /// Kicks a queue.
    pub fn kick(&mut self, queue: u32) {
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue);
    }

    /// Waits for an interrupt, at most so many milliseconds.
    pub fn wait_for_interrupt(&self, milliseconds: i32) {
        let poller = Epoll::new().unwrap();
        let irq = self.irq.as_raw_fd();
        poller.ctl(ControlOperation::Add, irq, EpollEvent::new(EventSet::IN, 0)).unwrap();
        match poller.wait(milliseconds, &mut [EpollEvent::default()]) {
            // A signal that is the fuzzer's.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => drop(other.unwrap()),
        }
    }

    /// Returns the number of interrupts since the last call, and acknowledges them as a handler does.
    pub fn interrupts(&mut self) -> u64 {
        let reasons = self.read(VIRTIO_MMIO_INTERRUPT_STATUS);
        self.write(VIRTIO_MMIO_INTERRUPT_ACK, reasons);
        self.irq.read().unwrap_or(0)
    }
}

/// The driver's side of one split virtqueue, with one buffer per descriptor.
pub struct DriverQueue {
    memory: GuestMemoryMmap,
    base: u64,
    size: u16,
    event_idx: bool,
    avail: u16,
    used: u16,
    free: Vec<u16>,
}

impl DriverQueue {
    /// Returns a queue of `size` entries at `base` of memory, which is zeroed there.
    pub fn new(memory: GuestMemoryMmap, base: u64, size: u16, event_idx: bool) -> DriverQueue {
        let zeros = vec![0; BUFFERS as usize];
        memory.write_slice(&zeros, GuestAddress(base)).unwrap();
        DriverQueue { memory, base, size, event_idx, avail: 0, used: 0, free: (0..size).rev().collect() }
    }

    fn buffer(&self, descriptor: u16) -> GuestAddress {
        GuestAddress(self.base + BUFFERS + u64::from(BUFFER_LEN) * u64::from(descriptor))
    }

    /// Makes one descriptor available. Returns false if no descriptor is free.
    fn add(&mut self, len: u32, flags: u32, data: &[u8]) -> bool {
        let Some(descriptor) = self.free.pop() else { return false };
        let address = self.buffer(descriptor);
        self.memory.write_slice(data, address).unwrap();
        self.put_descriptor(descriptor, (address.0, len, flags as u16, 0));
        self.make_available(descriptor);
        true
    }

    /// Writes a descriptor: address, length, flags and the index of the next descriptor.
    pub fn put_descriptor(&self, index: u16, (address, len, flags, next): (u64, u32, u16, u16)) {
        let at = self.base + 16 * u64::from(index);
        self.memory.write_obj(address, GuestAddress(at)).unwrap();
        self.memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Makes the chain with head `head` available.
    pub fn make_available(&mut self, head: u16) {
        let slot = self.base + AVAIL + 4 + 2 * u64::from(self.avail % self.size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.set_avail(self.avail.wrapping_add(1));
    }

    /// Sets the available index, which may be wrong.
    pub fn set_avail(&mut self, avail: u16) {
        self.avail = avail;
        self.memory.write_obj(avail, GuestAddress(self.base + AVAIL + 2)).unwrap();
    }

    /// Whether a descriptor is free.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Adds a device-readable buffer with `data`, at most one buffer long.
    pub fn send(&mut self, data: &[u8]) {
        assert!(self.add(data.len() as u32, 0, data));
    }

    /// Adds all free descriptors as device-writable buffers of `len` bytes.
    pub fn fill(&mut self, len: u32) {
        while self.add(len, VRING_DESC_F_WRITE, &[]) {}
    }

    /// Returns the buffers that the device has completed since the last call, each truncated to the reported length.
    pub fn completed(&mut self) -> Vec<Vec<u8>> {
        let ring = self.base + USED;
        let end: u16 = self.memory.read_obj(GuestAddress(ring + 2)).unwrap();
        let mut buffers = Vec::new();
        while self.used != end {
            let slot = ring + 4 + 8 * u64::from(self.used % self.size);
            let id: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
            let len: u32 = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
            let mut data = vec![0; len as usize];
            self.memory.read_slice(&mut data, self.buffer(id as u16)).unwrap();
            buffers.push(data);
            self.free.push(id as u16);
            self.used = self.used.wrapping_add(1);
        }
        if self.event_idx {
            // used_event: interrupt for the next buffer.
            let event = self.base + AVAIL + 4 + 2 * u64::from(self.size);
            self.memory.write_obj(self.used, GuestAddress(event)).unwrap();
        }
        buffers
    }

    /// The flags of the available ring: 1 asks for no interrupts.
    pub fn set_flags(&self, flags: u16) {
        self.memory.write_obj(flags, GuestAddress(self.base + AVAIL)).unwrap();
    }

    /// The available ring's index.
    pub fn avail_index(&self) -> u16 {
        self.avail
    }

    /// avail_event: the index at which the device wants a kick.
    pub fn kick_wanted_at(&self) -> u16 {
        self.memory.read_obj(GuestAddress(self.base + USED + 4 + 8 * u64::from(self.size))).unwrap()
    }

    /// The used ring's flags: 1 asks for no kicks.
    pub fn used_flags(&self) -> u16 {
        self.memory.read_obj(GuestAddress(self.base + USED)).unwrap()
    }
}
