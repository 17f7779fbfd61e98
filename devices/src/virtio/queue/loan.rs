//! Loans: the host's kernel (vhost) serves a queue for a while, directly from its rings in guest memory.

use std::sync::atomic::Ordering;

use virtio_queue::QueueT;

use super::{Inside, QueueError, VirtQueue};

/// Addresses and state of a queue's rings, for the borrower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    /// Number of entries.
    pub size: u16,
    /// Guest physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest physical address of the available ring.
    pub avail: u64,
    /// Guest physical address of the used ring.
    pub used: u64,
    /// Index of the next request to take from the available ring.
    pub next_avail: u16,
}

/// A loan of a queue. A reset completes only when the loan is dropped; from then on the borrower must not access the
/// queue.
#[derive(Debug)]
pub struct Loan {
    /// The rings at the start of the loan.
    pub rings: Rings,
    _inside: Inside,
}

impl VirtQueue {
    /// Lends the queue. The driver must have set it up, and the owner must not serve it during the loan.
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

    /// Ends the loan. The borrower has completed all requests before the one at `next_avail`.
    pub fn take_back(&mut self, _loan: Loan, next_avail: u16) -> Result<(), QueueError> {
        let rings = |source| QueueError::Rings { index: self.index, source };
        // Only guest memory has the used index. A guest that overwrites it harms only itself.
        let used = self.queue.used_idx(&self.links.memory, Ordering::Acquire).map_err(rings)?;
        self.queue.set_next_avail(next_avail);
        self.queue.set_next_used(used.0);
        Ok(())
    }
}
