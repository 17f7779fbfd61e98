//! virtio-balloon (VIRTIO 1.2, 5.5; device ID 5), reduced to free page reporting: the guest's kernel reports blocks of
//! memory that it does not use, and the host takes their pages back. The guest gets zeroed pages when it next touches
//! them.
//!
//! | queue | use | entries |
//! |---|---|---|
//! | 0 | inflate: not used, because num_pages stays 0 | 32 |
//! | 1 | deflate: not used | 32 |
//! | 2 | reporting | 32 |
//!
//! The device offers only F_PAGE_REPORTING. 5.5.2 numbers the reporting queue 4, after two queues whose features are
//! not offered; Linux numbers only the queues that exist, as QEMU does. Without F_PAGE_POISON, a kernel that expects
//! poison in its free pages does not report them.
//!
//! A report needs no trust. A range that is in use, such as the rings of another device, harms the guest alone: its
//! content becomes zeros, as if the guest had overwritten it.

use std::io;
use std::mem;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, VolatileSlice};
use vmm_sys_util::epoll::EventSet;

use super::queue::{Chain, QueueError, Served, VirtQueue};
use super::{Activation, DeviceInfo, VirtioDevice, copy_config};
use crate::{Interrupt, LoopHandle, Seat, StateError};

/// Bit of VIRTIO_BALLOON_F_PAGE_REPORTING (5.5.3).
const PAGE_REPORTING: u64 = 1 << 5;
/// Number of the reporting queue.
const REPORTING: usize = 2;
/// Limit of ranges in one report. Linux reports that many at a time (PAGE_REPORTING_CAPACITY) and requires a queue of
/// at least that size.
const RANGES_MAX: u16 = 32;
/// Limit of bytes in one report: [`RANGES_MAX`] of the largest blocks of Linux's allocator, 4 MiB each.
const REPORT_MAX: u64 = 128 << 20;

/// Size of the guest's pages, and of the smallest pages of the host.
const PAGE: u64 = 4096;

/// Offset of `actual` in `struct virtio_balloon_config`: num_pages u32, actual u32 (5.5.4).
const ACTUAL: usize = 4;

/// Returns pages to the host, after which they read as zeros. The slice consists of whole pages. The monitor provides
/// the function, because it knows how guest memory is mapped.
pub type Discard = fn(VolatileSlice) -> io::Result<()>;

/// A balloon that is never inflated. It keeps nothing of a driver, so the driver can start it any number of times.
pub struct Balloon {
    seat: Seat,
    discard: Discard,
    /// Size of the balloon as the driver wrote it, which should be 0. It is only read back.
    actual: [u8; 4],
}

impl Balloon {
    /// Returns a device that the loop of `events` serves. It passes reported pages to `discard`.
    pub fn new(events: LoopHandle, discard: Discard) -> Balloon {
        Balloon { seat: events.seat(), discard, actual: [0; 4] }
    }
}

impl VirtioDevice for Balloon {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            device_id: VIRTIO_ID_BALLOON,
            features: PAGE_REPORTING,
            queue_sizes: vec![RANGES_MAX; REPORTING + 1],
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; ACTUAL + 4];
        config[ACTUAL..].copy_from_slice(&self.actual);
        copy_config(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (true, Ok(actual)) = (offset == ACTUAL as u64, data.try_into()) {
            self.actual = actual;
        }
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let Activation { queues, interrupt, .. } = activation;
        let queues = queues.into_iter().map(Some).collect();
        self.seat.put(Box::new(Handler { queues, interrupt, discard: self.discard }))
    }

    fn reset(&mut self) {
        self.actual = [0; 4];
        self.seat.clear();
    }

    fn save(&self, _served: &[bool]) -> Result<Vec<u8>, StateError> {
        Ok(self.actual.to_vec())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.actual = state.try_into().map_err(|_| StateError::Damaged("size of the balloon"))?;
        Ok(())
    }
}

struct Handler {
    /// By number. `None` after an error: the queue is no longer served.
    queues: Vec<Option<VirtQueue>>,
    interrupt: Interrupt,
    discard: Discard,
}

impl MutEventSubscriber for Handler {
    fn init(&mut self, ops: &mut EventOps) {
        for queue in self.queues.iter().flatten().filter(|queue| queue.is_ready()) {
            // Edge-triggered, so that the eventfd need not be read after each kick.
            let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
            if let Err(error) = ops.add(Events::with_data(queue.kick(), queue.index().into(), edge)) {
                self.interrupt.needs_reset(format_args!("wait for queue {}: {error}", queue.index()));
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let index = events.data() as usize;
        let Some(place) = self.queues.get_mut(index) else { return };
        let Some(queue) = place else { return };
        let result = match index {
            REPORTING => take_report(queue, self.discard),
            _ => queue.serve_chains(|_, _| Err(invalid("the balloon has no pages"))),
        };
        let Err(error) = result else { return };
        // This fails if the descriptor could not be added.
        let _ = ops.remove(Events::empty(queue.kick()));
        error.report(&self.interrupt);
        *place = None;
    }
}

/// Serves one report. If there are more, which Linux does not do, the queue kicks itself: other devices have their turn
/// between two reports.
fn take_report(queue: &mut VirtQueue, discard: Discard) -> Result<(), QueueError> {
    let (mut served, mut more) = (false, false);
    queue.serve_chains(|memory, chain| {
        more = mem::replace(&mut served, true);
        if more { Ok(Served::Later) } else { give_back(memory, chain, discard) }
    })?;
    if more {
        // If the counter is full, a kick is already pending.
        let _ = queue.kick().write(1);
    }
    Ok(())
}

/// Discards the reported ranges up to the first invalid one.
fn give_back(memory: &GuestMemoryMmap, chain: Chain, discard: Discard) -> io::Result<Served> {
    let mut rest = REPORT_MAX;
    for (index, range) in (0..).zip(chain) {
        if index == RANGES_MAX {
            return Err(invalid("more ranges than a report may have"));
        }
        if !range.is_write_only() {
            return Err(invalid("a reported range is read-only"));
        }
        let len = u64::from(range.len());
        rest = rest.checked_sub(len).ok_or_else(|| invalid("more memory than a report may have"))?;
        let (start, len) =
            whole_pages(range.addr().0, len).ok_or_else(|| invalid("a reported range has no whole page"))?;
        discard(memory.get_slice(GuestAddress(start), len as usize).map_err(io::Error::other)?)?;
    }
    // The driver reads nothing from the pages, so their used length is 0.
    Ok(Served::Done(0))
}

/// Returns start and length of the whole pages within `len` bytes from `addr`, if there are any.
fn whole_pages(addr: u64, len: u64) -> Option<(u64, u64)> {
    let start = addr.checked_next_multiple_of(PAGE)?;
    let end = addr.checked_add(len)? / PAGE * PAGE;
    Some((start, end.checked_sub(start)?)).filter(|(_, len)| *len > 0)
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests;
