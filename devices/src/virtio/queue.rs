//! A virtqueue with its one owner (VIRTIO 1.2, 2.6 and 2.7: split virtqueues).
//!
//! The content of the rings is hostile. A malformed request (a loop, an index or address out of range, a length of
//! zero, a device-readable buffer after a device-writable one, an invalid indirect table) is completed with length 0
//! and counted as a fault. A head that is not the index of a descriptor is dropped and counted. Only rings that cannot
//! be read, or an available index that is ahead by more than the queue's size, are a [`QueueError`]; the owner then
//! stops serving the queue.

use std::io;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_STATUS};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::mmio::page::RegisterPage;
use crate::Interrupt;
use crate::pieces::Pieces;

mod chain_pieces;
mod loan;
mod receive_buffers;

use chain_pieces::split;
pub use loan::{Loan, Rings};
pub use receive_buffers::{Demand, ReceiveBuffers, Received};

/// Reads a request's device-readable bytes.
pub type Reader<'a> = virtio_queue::Reader<'a, ()>;
/// Writes a request's device-writable bytes.
pub type Writer<'a> = virtio_queue::Writer<'a, ()>;
/// One request as a chain of descriptors, for devices that access guest memory directly.
pub type Chain<'a> = virtio_queue::DescriptorChain<&'a GuestMemoryMmap>;

/// Limit of descriptors in a chain: the limit of a vectored system call of the host (UIO_MAXIOV).
pub const MAX_CHAIN: usize = 1024;

/// The result of serving a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// The request is completed; the number is that of the bytes written for the driver.
    Done(u32),
    /// Like `Done`, but the driver is interrupted immediately instead of after the last request: for requests that take
    /// long.
    DoneNow(u32),
    /// The request stays in the queue and serving stops. The owner serves the queue again when it can continue.
    Later,
}

/// Why a queue cannot be served any more.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The rings are outside of guest memory, or the available index is too far ahead.
    #[error("use the rings of queue {index}")]
    Rings {
        /// Number of the queue within the device.
        index: u16,
        /// The error of virtio-queue.
        #[source]
        source: virtio_queue::Error,
    },
    /// The driver has reset the device, so the rings belong to the driver.
    #[error("use queue {index} after a reset")]
    Reset {
        /// Number of the queue within the device.
        index: u16,
    },
}

impl QueueError {
    /// Tells the driver that the device needs a reset and logs the error, unless the error is a reset.
    pub fn report(&self, interrupt: &Interrupt) {
        if let QueueError::Rings { source, .. } = self {
            interrupt.needs_reset(format_args!("{self}: {source}"));
        }
    }

    /// Whether the driver has reset the device, which is not a fault.
    pub fn is_reset(&self) -> bool {
        matches!(self, QueueError::Reset { .. })
    }
}

/// Stops a device's queues on all threads when the driver resets the device and takes its memory back.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<GateState>,
    /// Its Status becomes 0 when the gate is closed and no queue is processing a request.
    page: RegisterPage,
}

#[derive(Debug, Default)]
struct GateState {
    closed: bool,
    /// Queues that are processing a request.
    inside: u32,
}

impl Gate {
    /// Returns the open gate of the device with the registers `page`.
    pub fn new(page: RegisterPage) -> Gate {
        Gate { state: Mutex::default(), page }
    }

    /// From now on no queue starts another request. Never waits for one.
    pub fn close(&self) {
        self.state().closed = true;
    }

    /// Whether no queue is processing a request. If true after [`Self::close`], it stays true.
    pub fn is_idle(&self) -> bool {
        self.state().inside == 0
    }

    fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Counts the caller as processing a request, or returns `None` if the gate is closed.
    fn enter(self: &Arc<Gate>) -> Option<Inside> {
        let mut state = self.state();
        if state.closed {
            return None;
        }
        state.inside += 1;
        Some(Inside(self.clone()))
    }

    /// Locks the state. Callers hold the lock for a few instructions.
    fn state(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Inside(Arc<Gate>);

impl Drop for Inside {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.inside -= 1;
        if state.closed && state.inside == 0 {
            // The reset is complete. The lock keeps the transport from starting the next session before these stores.
            self.0.page.store(VIRTIO_MMIO_INTERRUPT_STATUS, 0);
            self.0.page.store(VIRTIO_MMIO_STATUS, 0);
        }
    }
}

/// The objects that a queue shares with its transport.
#[derive(Clone, Debug)]
pub struct QueueLinks {
    /// Guest memory, which contains the rings and the buffers.
    pub memory: GuestMemoryMmap,
    /// The eventfd of the driver's kicks.
    pub kick: Arc<EventFd>,
    /// The device's interrupt.
    pub interrupt: Interrupt,
    /// Gate of all queues of the device. A reset closes it.
    pub gate: Arc<Gate>,
}

/// A virtqueue: rings, memory, the driver's kick and the device's interrupt. Its one owner serves it.
#[derive(Debug)]
pub struct VirtQueue {
    index: u16,
    queue: Queue,
    links: QueueLinks,
    faults: u64,
    /// The driver is asked to kick once per batch of requests.
    batched: bool,
    /// Highest number of requests that were available at once.
    capacity: u16,
}

impl VirtQueue {
    /// Returns queue number `index` of a device. A queue that is not ready never has a request.
    pub fn new(index: u16, queue: Queue, links: QueueLinks) -> VirtQueue {
        VirtQueue { index, queue, links, faults: 0, batched: false, capacity: 0 }
    }

    /// The eventfd of the driver's kicks. A level-triggered poller must drain it with [`Self::take_kick`].
    pub fn kick(&self) -> &EventFd {
        &self.links.kick
    }

    /// Drains the eventfd, so that a level-triggered poller does not report it again. Must be called before serving.
    pub fn take_kick(&self) {
        // The eventfd is non-blocking: an error means that there was no kick.
        let _ = self.links.kick.read();
    }

    /// Guest memory, which contains the rings and the buffers.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.links.memory
    }

    /// Tells the driver that the device needs a reset and logs `error`, unless `error` is a reset.
    pub fn break_down(&self, error: &QueueError) {
        error.report(&self.links.interrupt);
    }

    /// Number of the queue within the device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Whether the driver has set the queue up.
    pub fn is_ready(&self) -> bool {
        self.queue.ready()
    }

    /// Asks the driver not to kick when it adds requests. For receive queues, whose buffers are not needed before the
    /// device has something to write. Must be called before the first request. Takes effect until the queue has been
    /// served until empty.
    pub fn quiet(&mut self) {
        if !self.is_ready() {
            return;
        }
        let memory = &self.links.memory;
        let result = if self.queue.event_idx_enabled() {
            // The driver has already passed this index.
            set_avail_event(&self.queue, memory, u16::MAX)
        } else {
            self.queue.disable_notification(memory)
        };
        if let Err(error) = result {
            // Serving the queue later fails with the same error.
            self.links.interrupt.fault(format_args!("queue {}: {error}", self.index));
        }
    }

    /// From now on, whenever the queue has been served until empty, asks the driver to kick only when half of the
    /// highest number of requests that were ever available at once are available again. For receive buffers, which the
    /// driver adds again as soon as it has read them: with one kick per buffer, a large transfer would proceed buffer
    /// by buffer. Takes effect only with VIRTIO_F_EVENT_IDX.
    pub fn kick_in_batches(&mut self) {
        self.batched = self.queue.event_idx_enabled();
    }

    /// Whether a request is available, or the rings cannot be read, which serving the queue reports.
    pub fn has_requests(&self) -> bool {
        let available = || self.queue.avail_idx(&self.links.memory, Ordering::Acquire);
        self.is_ready() && available().map_or(true, |end| end.0 != self.queue.next_avail())
    }

    /// Number of malformed requests so far.
    pub fn faults(&self) -> u64 {
        self.faults
    }

    /// Serves all available requests, then interrupts once if the driver wants an interrupt.
    ///
    /// If `op` returns `Err`, the request is completed with length 0 and counted as a fault. The driver's kicks are
    /// disabled meanwhile, and stay disabled after `Served::Later`. One call serves a bounded number of requests: if
    /// the driver adds more meanwhile, the queue kicks itself and the rest is served by the next call.
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

    /// Like [`Self::serve`], but passes guest memory and the descriptor chain to `op`.
    pub fn serve_chains(
        &mut self,
        mut op: impl FnMut(&GuestMemoryMmap, Chain) -> io::Result<Served>,
    ) -> Result<(), QueueError> {
        self.serve_unchecked(|memory, chain| {
            check_chain(&chain).map_err(malformed)?;
            op(memory, chain)
        })
    }

    /// Like [`Self::serve`], but passes the request and the space for the reply to `op` as pieces of guest memory. Reads
    /// each descriptor once.
    pub(in crate::virtio) fn serve_pieces(
        &mut self,
        mut op: impl FnMut(Pieces, Pieces) -> io::Result<Served>,
    ) -> Result<(), QueueError> {
        self.serve_unchecked(|memory, chain| {
            let (request, reply) = split(memory, chain)?;
            op(request, reply)
        })
    }

    /// Serves requests whose descriptors `op` must check.
    fn serve_unchecked(
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

    /// Serves the available requests. Returns whether there are completed requests that the driver has not been told
    /// of.
    fn drain(
        &mut self,
        mut op: impl FnMut(&GuestMemoryMmap, Chain) -> io::Result<Served>,
    ) -> Result<bool, virtio_queue::Error> {
        let VirtQueue { index, queue, links, faults, batched, capacity } = self;
        let memory = &links.memory;
        // An honest driver does not add more than four times the ring's size while the device serves it.
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
                // If the counter is full, a kick is already pending.
                let _ = links.kick.write(1);
                return Ok(untold);
            }
            budget -= 1;
            let head = chain.head_index();
            let served = op(memory, chain);
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

/// Asks for a kick when `batch` more requests are available. Returns whether a request is available already.
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
    // The driver did not kick for requests that it added before it could see the new index.
    fence(Ordering::SeqCst);
    Ok(queue.avail_idx(memory, Ordering::Acquire)?.0 != queue.next_avail())
}

/// Sets avail_event to `more` entries after the next request: the driver kicks when its available index passes
/// avail_event (VIRTIO 1.2, 2.7.10).
fn set_avail_event(queue: &Queue, memory: &GuestMemoryMmap, more: u16) -> Result<(), virtio_queue::Error> {
    let at = queue.used_ring() + 4 + 8 * u64::from(queue.size());
    let event = queue.next_avail().wrapping_add(more).to_le();
    memory.store(event, GuestAddress(at), Ordering::Relaxed).map_err(virtio_queue::Error::GuestMemory)
}

/// Interrupts if the driver wants an interrupt for the requests completed since the last one.
fn interrupt(queue: &mut Queue, links: &QueueLinks) -> Result<(), virtio_queue::Error> {
    let QueueLinks { memory, interrupt, .. } = links;
    // virtio-queue evaluates the event index, but not the flag, which is used without it (VIRTIO 1.2, 2.7.7).
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

/// Takes the next request from the available ring.
///
/// An entry that cannot be read is an error. virtio-queue's iterator would just end, as with an empty ring.
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

/// Checks the descriptors of a request before it is passed to a device.
fn check_chain(chain: &Chain) -> Result<(), &'static str> {
    let mut check = Check::default();
    for descriptor in chain.clone() {
        check.add(&descriptor)?;
    }
    check.end()
}

/// The error of a request with a fault that a [`Check`] has found.
fn malformed(fault: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, fault)
}

/// A check of a request's descriptors, one after the other.
#[derive(Default)]
struct Check {
    count: usize,
    ended: bool,
    writable: bool,
}

impl Check {
    fn add(&mut self, descriptor: &Descriptor) -> Result<(), &'static str> {
        self.count += 1;
        if self.count > MAX_CHAIN {
            return Err("chain too long");
        }
        if descriptor.len() == 0 {
            return Err("zero-length buffer");
        }
        if self.writable && !descriptor.is_write_only() {
            return Err("device-readable buffer after a device-writable one");
        }
        self.writable = descriptor.is_write_only();
        self.ended = !descriptor.has_next();
        Ok(())
    }

    /// Checks the end. The iterator ends without an error at a loop, an invalid index, a table outside of memory and a
    /// nested table.
    fn end(&self) -> Result<(), &'static str> {
        match self.ended {
            true => Ok(()),
            false => Err("chain does not end (loop, invalid index or table, or nested table)"),
        }
    }
}

#[cfg(test)]
mod tests;
