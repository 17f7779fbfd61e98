//! Messages from outside into whatever buffers the driver has put into a queue.
//!
//! How long a message is shows when it has been read, so that it is read into as many buffers as the longest could
//! need; those that it did not reach go on to the next message, and at the end back to the ring.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, VolatileSlice};

use super::{Chain, MAX_CHAIN, QueueError, QueueLinks, VirtQueue, check_chain, next_chain};

/// The most messages that the driver gets in one go; the rest waits until others have been served.
const MESSAGES_MAX: usize = 256;

/// The most pieces of a room: one less than a vectored host call takes, so that its caller may add one.
const PIECES_MAX: usize = MAX_CHAIN - 1;

/// What buffers messages need.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// The least bytes of a buffer; a smaller one is refused.
    pub buffer: usize,
    /// Bytes of the longest message; where a buffer may be smaller, a message goes on in the next ones.
    pub message: usize,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes of the room are it, and not more than there are.
    Message(usize),
    /// There was one and it is lost.
    Lost,
    /// There is none; the owner of the queue calls again when there may be.
    Nothing,
}

/// A buffer: its descriptor, its pieces, its bytes.
struct Buffer {
    head: u16,
    pieces: usize,
    len: usize,
}

/// The buffers for the next message.
#[derive(Default)]
pub struct Room<'a> {
    buffers: VecDeque<Buffer>,
    pieces: VecDeque<VolatileSlice<'a>>,
    len: usize,
}

impl<'a> Room<'a> {
    /// Bytes of all buffers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Guest memory, piece by piece.
    pub fn pieces(&mut self) -> &[VolatileSlice<'a>] {
        self.pieces.make_contiguous()
    }

    /// How many buffers a message takes.
    pub fn buffers_for(&self, message: usize) -> usize {
        let mut room = 0;
        let enough = self.buffers.iter().position(|buffer| {
            room += buffer.len;
            room >= message
        });
        enough.map_or(self.buffers.len(), |at| at + 1)
    }

    /// Writes `data` at a place in the message; what lies outside of the room is lost.
    pub fn write(&self, mut offset: usize, mut data: &[u8]) {
        for piece in &self.pieces {
            if offset >= piece.len() {
                offset -= piece.len();
                continue;
            }
            // A piece takes what fits, and never fails on a range inside of itself.
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
                    return Err("buffer to read among those to write to");
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
            if self.pieces.len() > PIECES_MAX { Err("buffers of too many pieces") } else { Ok(()) }
        });
        if let Err(fault) = taken {
            self.pieces.truncate(before);
            return Err(fault);
        }
        self.len += len;
        self.buffers.push_back(Buffer { head, pieces: self.pieces.len() - before, len });
        Ok(())
    }

    /// Completes the buffers that a message of `len` bytes lies in.
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
                // The driver may look as soon as the index moves, and wants all of a message then: it moves last.
                let element = u64::from(buffer.head) | (written as u64) << 32;
                let slot = queue.used_ring() + 4 + 8 * u64::from(used % queue.size());
                memory.write_obj(element.to_le(), GuestAddress(slot)).map_err(Error::GuestMemory)?;
            }
        }
        Ok(())
    }

    /// Puts what is left back into the ring.
    fn give_back(self, queue: &mut Queue) {
        queue.set_next_avail(queue.next_avail().wrapping_sub(self.buffers.len() as u16));
    }
}

impl VirtQueue {
    /// Has `op` read messages into the driver's buffers until there is none, then interrupts once if the driver wants
    /// to know. Without enough buffers the driver is asked for a kick, and its owner calls again then.
    ///
    /// A message is read only when the longest would fit, or the driver has given all that the ring can hold.
    pub fn receive(
        &mut self,
        demand: Demand,
        op: impl FnMut(&mut Room) -> Received,
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

    fn fill(&mut self, demand: Demand, mut op: impl FnMut(&mut Room) -> Received) -> Result<(), Error> {
        let VirtQueue { index, queue, links, faults, .. } = self;
        let memory = &links.memory;
        let mut refuse = |head: u16, fault: &str| {
            *faults = faults.saturating_add(1);
            links.interrupt.fault(format_args!("queue {index}, descriptor {head}: {fault}"));
        };
        let mut room = Room::default();
        queue.disable_notification(memory)?;
        for _ in 0..MESSAGES_MAX {
            let gathered = gather(&mut room, queue, memory, (demand, &mut refuse))?;
            if gathered == Gathered::Refused {
                break;
            }
            if gathered == Gathered::TooLittle || links.gate.is_closed() {
                room.give_back(queue);
                return Ok(());
            }
            match op(&mut room) {
                Received::Message(len) => room.complete(queue, memory, len)?,
                Received::Lost => {}
                Received::Nothing => {
                    room.give_back(queue);
                    return Ok(());
                }
            }
        }
        room.give_back(queue);
        // A full counter is a pending kick all the same.
        let _ = links.kick.write(1);
        Ok(())
    }
}

/// What there is for the next message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gathered {
    Enough,
    /// The driver has to bring more, and kicks then.
    TooLittle,
    /// So many buffers of no use that others come first.
    Refused,
}

/// Takes buffers off the ring until the longest message fits.
fn gather<'a>(
    room: &mut Room<'a>,
    queue: &mut Queue,
    memory: &'a GuestMemoryMmap,
    (demand, refuse): (Demand, &mut impl FnMut(u16, &str)),
) -> Result<Gathered, Error> {
    let mut refused = 0;
    while room.len < demand.message {
        let Some(chain) = next_chain(queue, memory)? else {
            if queue.enable_notification(memory)? {
                queue.disable_notification(memory)?;
                continue;
            }
            let is_all = !room.is_empty() && room.pieces.len() >= usize::from(queue.size());
            return Ok(if is_all { Gathered::Enough } else { Gathered::TooLittle });
        };
        let head = chain.head_index();
        match room.add(chain, memory, demand.buffer) {
            Ok(()) => {}
            Err(fault) if room.is_empty() => {
                refuse(head, fault);
                if head < queue.size() {
                    queue.add_used(memory, head, 0)?;
                }
                refused += 1;
                if refused == MESSAGES_MAX {
                    return Ok(Gathered::Refused);
                }
            }
            // It is refused when it is the first: buffers are completed in their order.
            Err(_) => {
                queue.go_to_previous_position();
                return Ok(Gathered::Enough);
            }
        }
    }
    Ok(Gathered::Enough)
}

/// Interrupts if the driver wants to know of what was completed since the used index was `told`.
fn tell_since(told: u16, queue: &Queue, links: &QueueLinks) -> Result<(), Error> {
    let used = queue.next_used();
    if used == told {
        return Ok(());
    }
    // The used index is written before the driver's wish is read, as the driver does it the other way round.
    fence(Ordering::SeqCst);
    let load = |offset: u64| -> Result<u16, Error> {
        let at = GuestAddress(queue.avail_ring() + offset);
        links.memory.load(at, Ordering::Relaxed).map(u16::from_le).map_err(Error::GuestMemory)
    };
    let wanted = if queue.event_idx_enabled() {
        // VIRTIO 1.2, 2.7.7.2: used_event lies behind the ring.
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
