//! A queue that somebody outside of this process serves for a while, from its rings in guest memory.

use std::sync::atomic::Ordering;

use virtio_queue::QueueT;

use super::{Inside, QueueError, VirtQueue};

/// Where a queue is, for whoever serves it in its owner's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    /// Entries.
    pub size: u16,
    /// Guest physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest physical address of the available ring.
    pub avail: u64,
    /// Guest physical address of the used ring.
    pub used: u64,
    /// The index of the first request in the available ring that nobody has taken.
    pub next_avail: u16,
}

/// A queue is lent. A reset is complete only when this is dropped, by which time the queue is to be left alone.
#[derive(Debug)]
pub struct Loan {
    /// Where the queue was when it was lent.
    pub rings: Rings,
    _inside: Inside,
}

impl VirtQueue {
    /// Lends the queue, which the driver has set up and whose owner does not serve it meanwhile.
    pub fn lend(&self) -> Result<Loan, QueueError> {
        let inside = self.links.gate.enter().ok_or(QueueError::Reset { index: self.index })?;
        let rings = Rings {
            size: self.queue.size(),
            descriptors: self.queue.desc_table(),
            avail: self.queue.avail_ring(),
            used: self.queue.used_ring(),
            next_avail: self.queue.next_avail(),
        };
        Ok(Loan { rings, _inside: inside })
    }

    /// Takes the queue back from somebody who has completed every request before the one at `next_avail`.
    pub fn take_back(&mut self, _loan: Loan, next_avail: u16) -> Result<(), QueueError> {
        let rings = |source| QueueError::Rings { index: self.index, source };
        // Where the used ring ends only guest memory says. What a guest writes there is its own confusion.
        let used = self.queue.used_idx(&self.links.memory, Ordering::Acquire).map_err(rings)?;
        self.queue.set_next_avail(next_avail);
        self.queue.set_next_used(used.0);
        Ok(())
    }
}
