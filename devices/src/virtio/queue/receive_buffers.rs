//! Receive buffers: messages from the host are read directly into the buffers that the driver has put into a queue.
//!
//! The length of a message is known only after it has been read. It is therefore read into enough buffers for the
//! longest possible message. Buffers that it did not reach are used for the next message, and finally returned to the
//! ring.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, VolatileSlice};

use super::{Chain, MAX_CHAIN, QueueError, QueueLinks, VirtQueue, check_chain, next_chain};

/// Limit of messages in one call of [`VirtQueue::receive`]; further messages wait until other queues have been served.
const MESSAGES_MAX: usize = 256;

/// Limit of pieces of guest memory for a message: one less than a vectored system call takes, because the caller adds
/// one.
const PIECES_MAX: usize = MAX_CHAIN - 1;

/// Requirements on the receive buffers.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// Minimum length of a buffer in bytes. Smaller buffers are refused.
    pub buffer: usize,
    /// Length of the longest message in bytes. If it is larger than `buffer`, a message may continue in the next
    /// buffers.
    pub message: usize,
}

/// The result of reading a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A message of this length, at most that of the buffers, is in the buffers.
    Message(usize),
    /// A message was read and discarded.
    Lost,
    /// There is no message. The queue's owner calls [`VirtQueue::receive`] again when there may be one.
    Nothing,
}

/// One receive buffer: the head of its descriptor chain, its number of pieces, and its length in bytes.
struct Buffer {
    head: u16,
    pieces: usize,
    len: usize,
}

/// The receive buffers for the next message.
#[derive(Default)]
pub struct ReceiveBuffers<'a> {
    buffers: VecDeque<Buffer>,
    pieces: VecDeque<VolatileSlice<'a>>,
    len: usize,
}

impl<'a> ReceiveBuffers<'a> {
    /// Length of all buffers in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no buffers.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The buffers as pieces of guest memory.
    pub fn pieces(&mut self) -> &[VolatileSlice<'a>] {
        self.pieces.make_contiguous()
    }

    /// Number of buffers that a message of `message` bytes needs.
    pub fn buffers_for(&self, message: usize) -> usize {
        let mut len = 0;
        let enough = self.buffers.iter().position(|buffer| {
            len += buffer.len;
            len >= message
        });
        enough.map_or(self.buffers.len(), |at| at + 1)
    }

    /// Writes `data` at `offset` of the message. Bytes past the end of the buffers are discarded.
    pub fn write(&self, mut offset: usize, mut data: &[u8]) {
        for piece in &self.pieces {
            if offset >= piece.len() {
                offset -= piece.len();
                continue;
            }
            // This writes as much as fits. It cannot fail, because `offset` is inside the piece.
            let written = piece.write(data, offset).unwrap_or(0);
            (offset, data) = (0, &data[written..]);
            if data.is_empty() {
                return;
            }
        }
    }

    fn add(&mut self, chain: Chain, memory: &'a GuestMemoryMmap, least: usize) -> Result<(), &'static str> {
        check_chain(&chain)?;
        let head = chain.head_index();
        let (before, mut len) = (self.pieces.len(), 0);
        let take = || {
            for descriptor in chain {
                if !descriptor.is_write_only() {
                    return Err("device-readable buffer in a receive queue");
                }
                let piece = memory
                    .get_slice(descriptor.addr(), descriptor.len() as usize)
                    .map_err(|_| "buffer outside of memory")?;
                len += piece.len();
                self.pieces.push_back(piece);
            }
            Ok(())
        };
        let taken = take().and_then(|()| {
            if len < least {
                return Err("buffer too small");
            }
            if self.pieces.len() > PIECES_MAX { Err("buffers have too many pieces") } else { Ok(()) }
        });
        if let Err(fault) = taken {
            self.pieces.truncate(before);
            return Err(fault);
        }
        self.len += len;
        self.buffers.push_back(Buffer { head, pieces: self.pieces.len() - before, len });
        Ok(())
    }

    /// Completes the buffers that contain a message of `len` bytes.
    fn complete(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap, len: usize) -> Result<(), Error> {
        let count = self.buffers_for(len);
        let (first, mut rest) = (queue.next_used(), len);
        for (at, buffer) in (0..).zip(self.buffers.drain(..count)) {
            self.pieces.drain(..buffer.pieces);
            self.len -= buffer.len;
            let written = rest.min(buffer.len);
            rest -= written;
            let used = first.wrapping_add(at);
            if usize::from(at) + 1 == count {
                queue.set_next_used(used);
                queue.add_used(memory, buffer.head, written as u32)?;
            } else {
                // The used index changes only with the last buffer: when the driver sees it, it expects a whole
                // message.
                let element = u64::from(buffer.head) | (written as u64) << 32;
                let slot = queue.used_ring() + 4 + 8 * u64::from(used % queue.size());
                memory.write_obj(element.to_le(), GuestAddress(slot)).map_err(Error::GuestMemory)?;
            }
        }
        Ok(())
    }

    /// Returns the remaining buffers to the ring.
    fn give_back(self, queue: &mut Queue) {
        queue.set_next_avail(queue.next_avail().wrapping_sub(self.buffers.len() as u16));
    }
}

impl VirtQueue {
    /// Calls `op` to read messages into the receive buffers until there is none, then interrupts once if the driver
    /// wants an interrupt. If there are not enough buffers, the driver is asked for a kick; the owner must then call
    /// this again.
    ///
    /// `op` is called only when the longest message would fit, or when the buffers fill the whole ring.
    pub fn receive(
        &mut self,
        demand: Demand,
        op: impl FnMut(&mut ReceiveBuffers) -> Received,
    ) -> Result<(), QueueError> {
        if !self.is_ready() {
            return Ok(());
        }
        let index = self.index;
        let _inside = self.links.gate.enter().ok_or(QueueError::Reset { index })?;
        let told = self.queue.next_used();
        self.fill(demand, op)
            .and_then(|()| tell_since(told, &self.queue, &self.links))
            .map_err(|source| QueueError::Rings { index, source })
    }

    fn fill(
        &mut self,
        demand: Demand,
        mut op: impl FnMut(&mut ReceiveBuffers) -> Received,
    ) -> Result<(), Error> {
        let VirtQueue { index, queue, links, faults, .. } = self;
        let memory = &links.memory;
        let mut refuse = |head: u16, fault: &str| {
            *faults = faults.saturating_add(1);
            links.interrupt.fault(format_args!("queue {index}, descriptor {head}: {fault}"));
        };
        let mut buffers = ReceiveBuffers::default();
        queue.disable_notification(memory)?;
        for _ in 0..MESSAGES_MAX {
            let gathered = gather(&mut buffers, queue, memory, demand, &mut refuse)?;
            if gathered == Gathered::Refused {
                break;
            }
            if gathered == Gathered::TooLittle || links.gate.is_closed() {
                buffers.give_back(queue);
                return Ok(());
            }
            match op(&mut buffers) {
                Received::Message(len) => buffers.complete(queue, memory, len)?,
                Received::Lost => {}
                Received::Nothing => {
                    buffers.give_back(queue);
                    return Ok(());
                }
            }
        }
        buffers.give_back(queue);
        // If the counter is full, a kick is already pending.
        let _ = links.kick.write(1);
        Ok(())
    }
}

/// The result of collecting buffers for the next message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gathered {
    Enough,
    /// The driver must add more buffers, and then kicks.
    TooLittle,
    /// So many buffers were refused that other queues must be served first.
    Refused,
}

/// Takes buffers from the ring until the longest message fits.
fn gather<'a>(
    buffers: &mut ReceiveBuffers<'a>,
    queue: &mut Queue,
    memory: &'a GuestMemoryMmap,
    demand: Demand,
    refuse: &mut impl FnMut(u16, &str),
) -> Result<Gathered, Error> {
    let mut refused = 0;
    while buffers.len < demand.message {
        let Some(chain) = next_chain(queue, memory)? else {
            if queue.enable_notification(memory)? {
                queue.disable_notification(memory)?;
                continue;
            }
            let is_all = !buffers.is_empty() && buffers.pieces.len() >= usize::from(queue.size());
            return Ok(if is_all { Gathered::Enough } else { Gathered::TooLittle });
        };
        let head = chain.head_index();
        match buffers.add(chain, memory, demand.buffer) {
            Ok(()) => {}
            Err(fault) if buffers.is_empty() => {
                refuse(head, fault);
                if head < queue.size() {
                    queue.add_used(memory, head, 0)?;
                }
                refused += 1;
                if refused == MESSAGES_MAX {
                    return Ok(Gathered::Refused);
                }
            }
            // A bad buffer is refused only when it is the first, because buffers are completed in order.
            Err(_) => {
                queue.go_to_previous_position();
                return Ok(Gathered::Enough);
            }
        }
    }
    Ok(Gathered::Enough)
}

/// Interrupts if the driver wants an interrupt for the buffers completed since the used index was `told`.
fn tell_since(told: u16, queue: &Queue, links: &QueueLinks) -> Result<(), Error> {
    let used = queue.next_used();
    if used == told {
        return Ok(());
    }
    // The used index must be written before the driver's flag or used_event is read; the driver does the reverse.
    fence(Ordering::SeqCst);
    let load = |offset: u64| -> Result<u16, Error> {
        let at = GuestAddress(queue.avail_ring() + offset);
        links.memory.load(at, Ordering::Relaxed).map(u16::from_le).map_err(Error::GuestMemory)
    };
    let wanted = if queue.event_idx_enabled() {
        // VIRTIO 1.2, 2.7.7.2: used_event follows the available ring.
        let event = load(4 + 2 * u64::from(queue.size()))?;
        used.wrapping_sub(event).wrapping_sub(1) < used.wrapping_sub(told)
    } else {
        u32::from(load(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0
    };
    if wanted {
        links.interrupt.used_buffers();
    }
    Ok(())
}
