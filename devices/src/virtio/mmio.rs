//! virtio over MMIO with the modern register layout (VIRTIO 1.2, 4.2.2, version 2).
//!
//! The transport offers VIRTIO_F_VERSION_1, VIRTIO_F_INDIRECT_DESC and VIRTIO_F_EVENT_IDX in addition to the device's
//! features. It does not support the legacy layout, packed rings, reset of single queues and shared memory regions.
//! Control registers accept only aligned 32-bit accesses; other reads return zero and other writes are ignored.
//!
//! The registers that a driver reads are in a page of memory ([`page`]), which a monitor can map into the guest.
//!
//! A reset after DRIVER_OK completes when no queue is processing a request. Until then Status keeps its value, as 2.4.2
//! requires. Whether the driver can start the device again depends on the device (see [`VirtioDevice::activate`]).

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

pub use self::page::MMIO_SIZE;
use self::page::RegisterPage;
use self::queue_registers::QueueRegisters;
use super::queue::{Gate, QueueLinks};
use super::{Activation, DeviceInfo, VirtQueue, VirtioDevice};
use crate::{Action, BusDevice, Interrupt, StateError};

pub mod page;
mod queue_registers;
mod state;
mod status;

/// Offset of QueueNotify: a 32-bit write of a queue's number kicks that queue.
pub const NOTIFY_OFFSET: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// MagicValue: "virt" in little-endian bytes.
const MAGIC: u32 = 0x7472_6976;
/// Version of the modern register layout.
const VERSION: u32 = 2;
/// VendorID: "vmm" in ASCII. VIRTIO assigns no vendor numbers.
const VENDOR: u32 = u32::from_le_bytes(*b"vmm\0");

/// Registers of a shared memory region. 4.2.2.2: length and base of a region that does not exist read as -1.
const NO_REGION: [u32; 4] =
    [VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_SHM_LEN_HIGH, VIRTIO_MMIO_SHM_BASE_LOW, VIRTIO_MMIO_SHM_BASE_HIGH];

const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// The MMIO registers of a virtio device.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    info: DeviceInfo,
    page: RegisterPage,
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
    kicks: Vec<Arc<EventFd>>,
    queues: Vec<QueueRegisters>,
    gate: Arc<Gate>,
    resetting: bool,
    status: u32,
    queue_select: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
}

impl MmioTransport {
    /// Returns the registers of `device`, whose interrupt raises `irq`. The driver reads them from `page`. Fails if an
    /// eventfd cannot be created.
    pub fn new(
        mut device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        irq: Arc<EventFd>,
        page: RegisterPage,
    ) -> io::Result<MmioTransport> {
        let info = device.info();
        let kick = |_: &u16| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map(Arc::new);
        let kicks = info.queue_sizes.iter().map(kick).collect::<io::Result<Vec<_>>>()?;
        for (register, value) in [(VIRTIO_MMIO_MAGIC_VALUE, MAGIC), (VIRTIO_MMIO_VERSION, VERSION)] {
            page.store(register, value);
        }
        page.store(VIRTIO_MMIO_VENDOR_ID, VENDOR);
        NO_REGION.iter().for_each(|register| page.store(*register, u32::MAX));
        device.show(&page);
        let transport = MmioTransport {
            queues: info.queue_sizes.iter().map(|max| QueueRegisters::new(*max)).collect(),
            interrupt: Interrupt::of_device(info.device_id, irq, page.clone()),
            gate: Arc::new(Gate::new(page.clone())),
            device,
            info,
            page,
            memory,
            kicks,
            resetting: false,
            status: 0,
            queue_select: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
        };
        transport.answer();
        Ok(transport)
    }

    /// Each queue's kick, in the device's order. KVM signals it when the driver writes the queue's number to
    /// [`NOTIFY_OFFSET`]. A write there that reaches [`BusDevice::write`] also signals it.
    pub fn kicks(&self) -> &[Arc<EventFd>] {
        &self.kicks
    }

    fn offered_features(&self) -> u64 {
        self.info.features | TRANSPORT_FEATURES
    }

    /// Puts the registers into the page that a write may have changed.
    fn answer(&self) {
        let queue = self.queues.get(self.queue_select as usize);
        let features = feature_word(self.offered_features(), self.device_features_select);
        self.page.store(VIRTIO_MMIO_DEVICE_FEATURES, features);
        self.page.store(VIRTIO_MMIO_QUEUE_NUM_MAX, queue.map_or(0, |q| q.max().into()));
        // Linux expects QueueReady to read 0 immediately after it has requested a reset.
        let ready = !self.resetting && queue.is_some_and(QueueRegisters::is_ready);
        self.page.store(VIRTIO_MMIO_QUEUE_READY, ready.into());
        // During a reset, Status keeps its value until the gate stores 0.
        if !self.resetting {
            self.page.store(VIRTIO_MMIO_STATUS, self.status);
            self.interrupt.show_broken();
        }
    }

    fn write_register(&mut self, register: u32, value: u32) -> Result<(), &'static str> {
        self.finish_reset();
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.write_driver_features(value)?,
            VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                let kick = self.kicks.get(value as usize).ok_or("kick of a queue that does not exist")?;
                // If the counter is full, a kick is already pending.
                let _ = kick.write(1);
            }
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            VIRTIO_MMIO_STATUS => self.write_status(value)?,
            VIRTIO_MMIO_SHM_SEL => {}
            // Linux also writes 0 for each queue after a reset.
            VIRTIO_MMIO_QUEUE_READY if value == 0 && (self.resetting || self.status == 0) => {}
            VIRTIO_MMIO_QUEUE_READY if value == 0 => self.queue()?.disable(),
            VIRTIO_MMIO_QUEUE_READY => self.enable_queue()?,
            _ => self.queue()?.write(register, value)?,
        }
        Ok(())
    }

    fn write_driver_features(&mut self, value: u32) -> Result<(), &'static str> {
        if self.status & VIRTIO_CONFIG_S_DRIVER == 0 || self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            return Err("features written before DRIVER or after FEATURES_OK");
        }
        let shift = match self.driver_features_select {
            0 => 0,
            1 => 32,
            _ if value == 0 => return Ok(()),
            _ => return Err("feature accepted that was not offered"),
        };
        self.driver_features = self.driver_features & !(0xffff_ffff << shift) | u64::from(value) << shift;
        Ok(())
    }

    /// Returns the selected queue if the driver may set it up now (3.1.1: after FEATURES_OK, before DRIVER_OK).
    fn queue(&mut self) -> Result<&mut QueueRegisters, &'static str> {
        let stage = self.status & (VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
        if stage != VIRTIO_CONFIG_S_FEATURES_OK || self.resetting {
            return Err("queue register written before FEATURES_OK or after DRIVER_OK");
        }
        self.queues.get_mut(self.queue_select as usize).ok_or("register of a queue that does not exist")
    }

    fn enable_queue(&mut self) -> Result<(), &'static str> {
        let memory = self.memory.clone();
        let enabled = self.queue()?.enable(&memory);
        if let Err(what) = enabled {
            // The driver assumes that the queue is ready and does not read QueueReady again, so it is told this way.
            self.interrupt.needs_reset(format_args!("queue {}: {what}", self.queue_select));
        }
        Ok(())
    }

    fn write_status(&mut self, value: u32) -> Result<(), &'static str> {
        if value == 0 {
            self.reset();
            return Ok(());
        }
        if self.resetting {
            // Linux does not wait for the end of a reset: it reads Status, adds a bit that is already set, and writes
            // it.
            return if value == self.status { Ok(()) } else { Err("status written during a reset") };
        }
        let mut added = status::added(self.status, value)?;
        if added & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !self.features_agree() {
            // 2.2.2: FEATURES_OK reads back as 0 if the device does not accept the features.
            added &= !(VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
        }
        self.status |= added;
        if added & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.interrupt.begin();
            self.activate();
        }
        Ok(())
    }

    fn features_agree(&self) -> bool {
        self.driver_features & !self.offered_features() == 0
            && self.driver_features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    /// Passes the queues to the device. If the device cannot start, it needs a reset.
    fn activate(&mut self) {
        let event_idx = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let queues = self.queues.iter().zip(&self.kicks).zip(0..).map(|((registers, kick), index)| {
            let links = QueueLinks {
                memory: self.memory.clone(),
                kick: kick.clone(),
                interrupt: self.interrupt.clone(),
                gate: self.gate.clone(),
            };
            Some(VirtQueue::new(index, registers.build(event_idx)?, links))
        });
        let Some(queues) = queues.collect::<Option<Vec<_>>>() else {
            return self.interrupt.needs_reset(format_args!("a queue size is not a power of two"));
        };
        let activation = Activation {
            memory: self.memory.clone(),
            interrupt: self.interrupt.clone(),
            features: self.driver_features,
            queues,
        };
        if let Err(error) = self.device.activate(activation) {
            self.interrupt.needs_reset(format_args!("start: {error}"));
        }
    }

    /// Takes the queues back and wakes their owners, which release them. A second write of 0 during the same reset does
    /// not call [`VirtioDevice::reset`] again: a slot may contain another device by then.
    fn reset(&mut self) {
        if self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 && !self.resetting {
            self.gate.close();
            for kick in &self.kicks {
                // If the counter is full, a kick is already pending.
                let _ = kick.write(1);
            }
            self.device.reset();
            self.device.show(&self.page);
        }
        self.resetting = true;
        self.finish_reset();
    }

    /// Completes a reset if no queue is processing a request. Never waits.
    fn finish_reset(&mut self) {
        if !self.resetting || !self.gate.is_idle() {
            return;
        }
        self.resetting = false;
        self.gate = Arc::new(Gate::new(self.page.clone()));
        self.interrupt.reset();
        self.queues.iter_mut().for_each(QueueRegisters::reset);
        self.status = 0;
        self.queue_select = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
    }
}

impl BusDevice for MmioTransport {
    /// Reads the page, for a monitor that does not map it into the guest.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= VIRTIO_MMIO_CONFIG.into() || register_at(offset).is_some() && data.len() == 4 {
            self.page.read(offset, data);
        } else {
            let len = data.len();
            self.interrupt.fault(format_args!("read of {len} bytes at {offset:#x}, which is not a register"));
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        if let Some(offset) = offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) {
            self.device.write_config(offset, data);
            self.device.show(&self.page);
        } else if let (Some(register), Ok(value)) = (register_at(offset), data.try_into()) {
            if let Err(what) = self.write_register(register, u32::from_le_bytes(value)) {
                self.interrupt.fault(format_args!("{what} (offset {offset:#x})"));
            }
            self.answer();
        } else {
            let len = data.len();
            self.interrupt
                .fault(format_args!("write of {len} bytes at {offset:#x}, which is not a register"));
        }
        Action::None
    }

    fn save(&mut self) -> Result<Vec<u8>, StateError> {
        // A reset that waited for a queue's owner may be complete by now.
        self.finish_reset();
        self.answer();
        self.state()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.resume(state)
    }

    fn go_on(&mut self) {
        self.device.go_on();
    }
}

/// Returns the register at `offset`, or `None` if `offset` is not a multiple of 4 or too large.
fn register_at(offset: u64) -> Option<u32> {
    offset.is_multiple_of(4).then(|| u32::try_from(offset).ok()).flatten()
}

/// Returns the 32 bits of `features` that the selector chooses.
fn feature_word(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
