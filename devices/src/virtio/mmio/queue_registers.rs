//! The registers of one queue: they collect what the driver writes, and check it when the queue is enabled.

use std::mem;

use virtio_bindings::virtio_mmio::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};

use crate::{Decoder, Encoder, StateError};

/// The driver's settings of one queue. They are unchecked until [`QueueRegisters::enable`].
#[derive(Debug)]
pub(super) struct QueueRegisters {
    max: u16,
    size: u32,
    descriptors: u64,
    avail: u64,
    used: u64,
    ready: Option<Queue>,
}

impl QueueRegisters {
    /// Returns the registers of a queue of at most `max` entries.
    pub fn new(max: u16) -> QueueRegisters {
        QueueRegisters { max, size: max.into(), descriptors: 0, avail: 0, used: 0, ready: None }
    }

    /// The value of QueueNumMax.
    pub fn max(&self) -> u16 {
        self.max
    }

    /// The value of QueueReady.
    pub fn is_ready(&self) -> bool {
        self.ready.is_some()
    }

    /// Writes the size or an address; `register` is the register's offset. Refused while the queue is ready.
    pub fn write(&mut self, register: u32, value: u32) -> Result<(), &'static str> {
        if self.is_ready() {
            return Err("queue register written while the queue is ready");
        }
        match register {
            VIRTIO_MMIO_QUEUE_NUM => self.size = value,
            VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut self.descriptors, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut self.descriptors, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut self.avail, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut self.avail, value),
            VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut self.used, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut self.used, value),
            _ => return Err("no such queue register"),
        }
        Ok(())
    }

    /// Makes the queue ready if its size is valid and its rings are aligned and inside guest memory.
    pub fn enable(&mut self, memory: &GuestMemoryMmap) -> Result<(), &'static str> {
        if self.is_ready() {
            return Ok(());
        }
        let mut queue = Queue::new(self.max).map_err(|_| "queue does not exist")?;
        let size = u16::try_from(self.size).map_err(|_| "queue size too large")?;
        queue.try_set_size(size).map_err(|_| "queue size too large or not a power of two")?;
        queue.try_set_desc_table_address(GuestAddress(self.descriptors)).map_err(|_| "misaligned table")?;
        queue
            .try_set_avail_ring_address(GuestAddress(self.avail))
            .map_err(|_| "misaligned available ring")?;
        queue.try_set_used_ring_address(GuestAddress(self.used)).map_err(|_| "misaligned used ring")?;
        // VIRTIO 1.2, 2.7: sizes of the three areas. Each ring ends with an event index.
        let size = usize::from(size);
        let parts = [(self.descriptors, 16 * size), (self.avail, 6 + 2 * size), (self.used, 6 + 8 * size)];
        if !parts.iter().all(|(base, len)| memory.check_range(GuestAddress(*base), *len)) {
            return Err("queue ring outside of memory");
        }
        queue.set_ready(true);
        self.ready = Some(queue);
        Ok(())
    }

    /// Makes the queue not ready, so that the driver can set it up again.
    pub fn disable(&mut self) {
        self.ready = None;
    }

    /// Returns the queue to serve. A queue that the driver did not set up is not ready.
    pub fn build(&self, event_idx: bool) -> Option<Queue> {
        let Some(queue) = &self.ready else { return Queue::new(self.max).ok() };
        let mut queue = Queue::try_from(queue.state()).ok()?;
        queue.set_event_idx(event_idx);
        Some(queue)
    }

    /// Writes the registers, and how many buffers the device has used (modulo 2^16). A queue's owner completes requests in
    /// their order before it leaves the queue, so the next request is the one of that number.
    ///
    /// Returns whether the device has used a buffer.
    pub fn save(&self, memory: &GuestMemoryMmap, state: &mut Encoder) -> Result<bool, StateError> {
        let used = match &self.ready {
            // VIRTIO 1.2, 2.7.8: flags u16, idx u16.
            Some(queue) => memory
                .read_obj(GuestAddress(queue.used_ring() + 2))
                .map(u16::from_le)
                .map_err(|_| StateError::Busy("a queue's rings cannot be read"))?,
            None => 0,
        };
        state.u16(self.max).u32(self.size).u64(self.descriptors).u64(self.avail).u64(self.used);
        state.u8(self.is_ready().into()).u16(used);
        Ok(used != 0)
    }

    /// Takes over what [`save`](Self::save) wrote.
    pub fn restore(&mut self, state: &mut Decoder, memory: &GuestMemoryMmap) -> Result<(), StateError> {
        if state.u16()? != self.max {
            return Err(StateError::Foreign("a queue has another size"));
        }
        (self.size, self.descriptors) = (state.u32()?, state.u64()?);
        (self.avail, self.used) = (state.u64()?, state.u64()?);
        let (ready, used) = (state.u8()?, state.u16()?);
        if ready != 0 {
            self.enable(memory).map_err(StateError::Damaged)?;
        }
        if let Some(queue) = &mut self.ready {
            queue.set_next_avail(used);
            queue.set_next_used(used);
        }
        Ok(())
    }

    /// Resets all registers to their initial values.
    pub fn reset(&mut self) {
        let max = self.max;
        let _ = mem::replace(self, QueueRegisters::new(max));
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !0xffff_ffff | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & 0xffff_ffff | u64::from(value) << 32;
}
