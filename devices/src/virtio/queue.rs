//! A virtqueue with its one owner (VIRTIO 1.2, 2.6 and 2.7: split virtqueues).
//!
//! What the driver writes into the rings is hostile. A request whose descriptors make no sense (a loop, an index or
//! address outside, a length of zero, a device-readable part behind a device-writable one, a bad indirect table) is
//! completed with length 0 and counted; a head that is no descriptor at all is dropped and counted. Only rings that
//! cannot be read, or an available index further ahead than the queue is long, are a [`QueueError`]: then its owner
//! gives the queue up.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::Interrupt;

mod loan;
mod room;

pub use loan::{Loan, Rings};
pub use room::{Demand, Received, Room};

/// Reads a request's device-readable bytes.
pub type Reader<'a> = virtio_queue::Reader<'a, ()>;
/// Writes a request's device-writable bytes.
pub type Writer<'a> = virtio_queue::Writer<'a, ()>;
/// One request as a chain of descriptors, for whoever wants guest memory itself.
pub type Chain<'a> = virtio_queue::DescriptorChain<&'a GuestMemoryMmap>;

/// The longest descriptor chain a device takes: as many pieces as one vectored host call takes (UIO_MAXIOV).
pub const MAX_CHAIN: usize = 1024;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// Done; so many bytes were written for the driver.
    Done(u32),
    /// As `Done`, and the driver is told at once instead of after the last request: for requests that take long.
    DoneNow(u32),
    /// Leave it in the queue and stop here; the owner serves the queue again when it can go on.
    Later,
}

/// Why a queue is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The rings lie outside of memory, or the available index is too far ahead.
    #[error("use the rings of queue {index}")]
    Rings {
        /// Which of the device's queues.
        index: u16,
        /// What is wrong with it.
        #[source]
        source: virtio_queue::Error,
    },
    /// The driver has reset the device: the rings are its own again.
    #[error("use queue {index} after a reset")]
    Reset {
        /// Which of the device's queues.
        index: u16,
    },
}

impl QueueError {
    /// Tells the driver and the log, unless the driver took the queue back itself.
    pub fn report(&self, interrupt: &Interrupt) {
        if let QueueError::Rings { source, .. } = self {
            interrupt.needs_reset(format_args!("{self}: {source}"));
        }
    }

    /// The driver has taken the queue back, which is no fault of its.
    pub fn is_reset(&self) -> bool {
        matches!(self, QueueError::Reset { .. })
    }
}

/// Tells a device's queues, wherever their owners run, that the driver has taken its memory back.
#[derive(Debug, Default)]
pub struct Gate {
    closed: AtomicBool,
    inside: AtomicU32,
}

impl Gate {
    /// From here on no queue starts another request. Never waits.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// No queue is at work on a request; once closed, this stays so.
    pub fn is_idle(&self) -> bool {
        self.inside.load(Ordering::SeqCst) == 0
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Counts its owner as at work. The order (count, then look) pairs with close() followed by is_idle(): whoever is
    /// not seen as inside sees the gate closed.
    fn enter(self: &Arc<Gate>) -> Option<Inside> {
        self.inside.fetch_add(1, Ordering::SeqCst);
        let inside = Inside(self.clone());
        (!self.is_closed()).then_some(inside)
    }
}

#[derive(Debug)]
struct Inside(Arc<Gate>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a queue shares with its transport.
#[derive(Clone, Debug)]
pub struct QueueLinks {
    /// Guest memory.
    pub memory: GuestMemoryMmap,
    /// The driver's notification.
    pub kick: Arc<EventFd>,
    /// The device's interrupt.
    pub interrupt: Interrupt,
    /// Closed by a reset.
    pub gate: Arc<Gate>,
}

/// A virtqueue: rings, memory, the driver's kick and the device's interrupt. It has one owner, which serves it.
#[derive(Debug)]
pub struct VirtQueue {
    index: u16,
    queue: Queue,
    links: QueueLinks,
    faults: u64,
    /// The driver is asked for kicks in batches.
    batched: bool,
    /// The most requests that waited at once.
    capacity: u16,
}

impl VirtQueue {
    /// Returns the device's queue number `index`. One that is not ready never has a request.
    pub fn new(index: u16, queue: Queue, links: QueueLinks) -> VirtQueue {
        VirtQueue { index, queue, links, faults: 0, batched: false, capacity: 0 }
    }

    /// The driver's notification, to register in a poller (level-triggered) and to drain with [`Self::take_kick`].
    pub fn kick(&self) -> &EventFd {
        &self.links.kick
    }

    /// Takes the notification back, so that a level-triggered poller goes quiet. To be called before serving.
    pub fn take_kick(&self) {
        // Nothing to read means that there was no kick: an eventfd here is non-blocking.
        let _ = self.links.kick.read();
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.links.memory
    }

    /// Tells the driver and the log that the queue is of no more use, unless it is so after a reset.
    pub fn break_down(&self, error: &QueueError) {
        error.report(&self.links.interrupt);
    }

    /// Which of the device's queues this is.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The driver has set the queue up.
    pub fn is_ready(&self) -> bool {
        self.queue.ready()
    }

    /// Asks the driver not to kick when it adds a request. To be called before there is any: a queue of buffers to
    /// write to is of no interest before there is something to write. Holds until the queue has been served empty.
    pub fn quiet(&mut self) {
        if !self.is_ready() {
            return;
        }
        let memory = &self.links.memory;
        let result = if self.queue.event_idx_enabled() {
            // One that it has passed already.
            set_avail_event(&self.queue, memory, u16::MAX)
        } else {
            self.queue.disable_notification(memory)
        };
        if let Err(error) = result {
            // Serving the queue meets the same error and gives the queue up.
            self.links.interrupt.fault(format_args!("queue {}: {error}", self.index));
        }
    }

    /// When the queue has been served empty, asks for the next kick only after half as many requests as have ever waited at
    /// once. For buffers that the driver adds again as soon as it has read them: with a kick for each, a large transfer
    /// would go on buffer by buffer. Takes effect with VIRTIO_F_EVENT_IDX alone, which has a way to say it.
    pub fn kick_in_batches(&mut self) {
        self.batched = self.queue.event_idx_enabled();
    }

    /// How many malformed requests there were.
    pub fn faults(&self) -> u64 {
        self.faults
    }

    /// Serves every available request, then interrupts once if the driver wants to know.
    ///
    /// An `Err` of `op` refuses one request: it is completed with length 0 and counted. The driver's notifications
    /// are off meanwhile, and after `Served::Later` they stay off. A driver that never stops adding requests gets a
    /// bounded share: the rest waits for the next call, for which the queue kicks itself.
    pub fn serve(
        &mut self,
        mut op: impl FnMut(Reader, Writer) -> io::Result<Served>,
    ) -> Result<(), QueueError> {
        self.serve_chains(|memory, chain| {
            let reader = chain.clone().reader(memory).map_err(io::Error::other)?;
            let writer = chain.writer(memory).map_err(io::Error::other)?;
            op(reader, writer)
        })
    }

    /// As [`Self::serve`], with guest memory and the descriptors themselves.
    pub fn serve_chains(
        &mut self,
        op: impl FnMut(&GuestMemoryMmap, Chain) -> io::Result<Served>,
    ) -> Result<(), QueueError> {
        if !self.is_ready() {
            return Ok(());
        }
        let index = self.index;
        let _inside = self.links.gate.enter().ok_or(QueueError::Reset { index })?;
        let result = self.drain(op).and_then(|untold| match untold {
            true => interrupt(&mut self.queue, &self.links),
            false => Ok(()),
        });
        result.map_err(|source| QueueError::Rings { index, source })
    }

    /// Serves what is available; returns whether the driver is still to be told of something completed.
    fn drain(
        &mut self,
        mut op: impl FnMut(&GuestMemoryMmap, Chain) -> io::Result<Served>,
    ) -> Result<bool, virtio_queue::Error> {
        let VirtQueue { index, queue, links, faults, batched, capacity } = self;
        let memory = &links.memory;
        // Four times round the ring is as much as an honest driver adds while the device works.
        let mut budget = 4 * u32::from(queue.size());
        let mut untold = false;
        if *batched {
            let waiting = queue.avail_idx(memory, Ordering::Relaxed)?.0.wrapping_sub(queue.next_avail());
            *capacity = waiting.min(queue.size()).max(*capacity);
        }
        queue.disable_notification(memory)?;
        loop {
            let Some(chain) = next_chain(queue, memory)? else {
                let batch = if *batched { (*capacity / 2).max(1) } else { 1 };
                if ask_for_kick(queue, memory, batch)? {
                    queue.disable_notification(memory)?;
                    continue;
                }
                return Ok(untold);
            };
            if budget == 0 || links.gate.is_closed() {
                queue.go_to_previous_position();
                // A full counter is a pending kick all the same.
                let _ = links.kick.write(1);
                return Ok(untold);
            }
            budget -= 1;
            let head = chain.head_index();
            let served = match check_chain(&chain) {
                Ok(()) => op(memory, chain),
                Err(fault) => Err(io::Error::new(io::ErrorKind::InvalidData, fault)),
            };
            let mut at_once = false;
            let written = match served {
                Ok(Served::Done(written)) => written,
                Ok(Served::DoneNow(written)) => {
                    at_once = true;
                    written
                }
                Ok(Served::Later) => {
                    queue.go_to_previous_position();
                    return Ok(untold);
                }
                Err(error) => {
                    *faults = faults.saturating_add(1);
                    links.interrupt.fault(format_args!("queue {index}, descriptor {head}: {error}"));
                    0
                }
            };
            if head < queue.size() {
                queue.add_used(memory, head, written)?;
                untold = true;
            }
            if at_once {
                interrupt(queue, links)?;
                untold = false;
            }
        }
    }
}

/// Asks for a kick once `batch` more requests are there. Returns whether there is one already.
fn ask_for_kick(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    batch: u16,
) -> Result<bool, virtio_queue::Error> {
    let there = queue.enable_notification(memory)?;
    if there || batch <= 1 {
        return Ok(there);
    }
    set_avail_event(queue, memory, batch - 1)?;
    // Requests that came before the driver could see it had no kick.
    fence(Ordering::SeqCst);
    Ok(queue.avail_idx(memory, Ordering::Acquire)?.0 != queue.next_avail())
}

/// Sets avail_event to the request that comes after so many more: the driver kicks when its index passes it (VIRTIO 1.2,
/// 2.7.10).
fn set_avail_event(queue: &Queue, memory: &GuestMemoryMmap, more: u16) -> Result<(), virtio_queue::Error> {
    let at = queue.used_ring() + 4 + 8 * u64::from(queue.size());
    let event = queue.next_avail().wrapping_add(more).to_le();
    memory.store(event, GuestAddress(at), Ordering::Relaxed).map_err(virtio_queue::Error::GuestMemory)
}

/// Interrupts if the driver wants to know of the requests completed since it was last told.
fn interrupt(queue: &mut Queue, links: &QueueLinks) -> Result<(), virtio_queue::Error> {
    let QueueLinks { memory, interrupt, .. } = links;
    // virtio-queue knows the event index, not the older flag. VIRTIO 1.2, 2.7.7: the flag counts only without it.
    let wanted = queue.needs_notification(memory)?
        && (queue.event_idx_enabled() || {
            let flags: u16 = memory
                .load(GuestAddress(queue.avail_ring()), Ordering::Relaxed)
                .map_err(virtio_queue::Error::GuestMemory)?;
            u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0
        });
    if wanted {
        interrupt.used_buffers();
    }
    Ok(())
}

/// Takes the next request off the available ring.
///
/// An entry that cannot be read is an error here: virtio-queue's iterator only ends, which looks like an empty ring.
fn next_chain<'a>(
    queue: &mut Queue,
    memory: &'a GuestMemoryMmap,
) -> Result<Option<Chain<'a>>, virtio_queue::Error> {
    let end = queue.avail_idx(memory, Ordering::Acquire)?;
    if end.0 == queue.next_avail() {
        return Ok(None);
    }
    match queue.iter(memory)?.next() {
        Some(chain) => Ok(Some(chain)),
        None => Err(virtio_queue::Error::InvalidAvailRingIndex),
    }
}

/// Looks a request's descriptors over before a device sees them.
fn check_chain(chain: &Chain) -> Result<(), &'static str> {
    let mut count = 0;
    let mut ended = false;
    let mut writable = false;
    for descriptor in chain.clone() {
        count += 1;
        if count > MAX_CHAIN {
            return Err("chain too long");
        }
        if descriptor.len() == 0 {
            return Err("zero-length buffer");
        }
        if writable && !descriptor.is_write_only() {
            return Err("device-readable buffer behind a device-writable one");
        }
        writable = descriptor.is_write_only();
        ended = !descriptor.has_next();
    }
    // The iterator stops silently at a loop, at an index outside, at a table outside of memory and at a nested one.
    if ended { Ok(()) } else { Err("chain does not end (loop, index or table outside, or nested table)") }
}

#[cfg(test)]
mod tests;
