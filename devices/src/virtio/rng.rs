//! virtio-rng (VIRTIO 1.2, 5.4; device ID 4): one queue of buffers that the device fills with the host's entropy.
//!
//! It offers no features and has no configuration space.

use std::io::{self, Write};

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vmm_sys_util::epoll::EventSet;

use super::queue::{Reader, Served, VirtQueue, Writer};
use super::{Activation, DeviceInfo, VirtioDevice};
use crate::{Interrupt, LoopHandle, Seat, StateError};

/// Limit of bytes for one request; the driver can send another one. Linux requests at most 64.
const MAX_ENTROPY: usize = 256;

const QUEUE_SIZE: u16 = 4;

/// The entropy device. It has no state, so the driver can start it any number of times.
pub struct Rng {
    seat: Seat,
}

impl Rng {
    /// Returns an entropy device that the loop of `events` serves.
    pub fn new(events: LoopHandle) -> Rng {
        // In a static program the first call may open /dev/urandom, which the loop's thread may not be able to do.
        let _ = getrandom::fill(&mut [0]);
        Rng { seat: events.seat() }
    }
}

impl VirtioDevice for Rng {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { device_id: VIRTIO_ID_RNG, features: 0, queue_sizes: vec![QUEUE_SIZE] }
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let Activation { queues, interrupt, .. } = activation;
        self.seat.put(Box::new(Handler { queue: queues.into_iter().next(), interrupt }))
    }

    fn reset(&mut self) {
        self.seat.clear();
    }

    fn save(&self, _served: &[bool]) -> Result<Vec<u8>, StateError> {
        Ok(Vec::new())
    }
}

struct Handler {
    /// `None` after an error: the queue is no longer served.
    queue: Option<VirtQueue>,
    interrupt: Interrupt,
}

impl MutEventSubscriber for Handler {
    fn init(&mut self, ops: &mut EventOps) {
        let Some(queue) = self.queue.as_ref().filter(|queue| queue.is_ready()) else { return };
        // Edge-triggered, so that the eventfd need not be read after each kick.
        let kick = Events::new(queue.kick(), EventSet::IN | EventSet::EDGE_TRIGGERED);
        if let Err(error) = ops.add(kick) {
            self.interrupt.needs_reset(format_args!("wait for the queue: {error}"));
        }
    }

    fn process(&mut self, _events: Events, ops: &mut EventOps) {
        let Some(queue) = &mut self.queue else { return };
        let Err(error) = queue.serve(fill) else { return };
        // This fails if the descriptor could not be added.
        let _ = ops.remove(Events::empty(queue.kick()));
        error.report(&self.interrupt);
        self.queue = None;
    }
}

/// Fills a request's buffer with at most [`MAX_ENTROPY`] bytes.
fn fill(_: Reader, mut buffer: Writer) -> io::Result<Served> {
    let mut entropy = [0; MAX_ENTROPY];
    let entropy = &mut entropy[..buffer.available_bytes().min(MAX_ENTROPY)];
    if entropy.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no room for entropy"));
    }
    getrandom::fill(entropy).map_err(io::Error::other)?;
    buffer.write_all(entropy)?;
    Ok(Served::Done(entropy.len() as u32))
}

#[cfg(test)]
mod tests;
