//! virtio-console (VIRTIO 1.2, 5.3; device ID 3).
//!
//! | queue | use | entries |
//! |---|---|---|
//! | 0, 1 | port 0: receive (host to guest), transmit | 16, 16 |
//! | 2, 3 | control: receive, transmit | 16, 4 |
//! | 2n + 2, 2n + 3 | port n: receive, transmit | 16, 16 |
//!
//! The device offers VIRTIO_CONSOLE_F_MULTIPORT; a driver that declines it gets only port 0. It does not offer F_SIZE
//! (the console is a log) or F_EMERG_WRITE (the serial port serves the same purpose).
//!
//! Queues are small because Linux's driver fills each receive queue with pages while the guest boots. 16 pages hold as
//! much as a pipe.
//!
//! Bytes from the guest are copied once, into a buffer that all ports share, before they are passed to a backend:
//! backends take `&[u8]`, and the guest may change its memory at any time.

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use self::control::Told;
use self::handler::Handler;
pub use self::log_port::{LOG_TAIL_MAX, LogPort, LogTail};
pub use self::ports::{Port, PortBackend, PortEvents};
use self::queues::{CONTROL_QUEUE, MULTIPORT};
pub use self::socket_port::{PENDING_MAX, SocketPort};
use super::{Activation, DeviceInfo, VirtioDevice, copy_config};
use crate::{LoopHandle, Seat, StateError};

mod control;
mod handler;
mod log_port;
mod ports;
mod queues;
mod socket_port;

/// Limit of ports of one console.
pub const MAX_PORTS: usize = 64;

const PORT_QUEUE_SIZE: u16 = 16;
/// Size of the last port's queues, which carry the most data. Linux's driver adds one page per entry of the receive
/// queue.
const LAST_PORT_QUEUE_SIZE: u16 = 64;
const CONTROL_RECEIVE_SIZE: u16 = 16;
/// Linux's driver sends one control message at a time and waits for its completion.
const CONTROL_TRANSMIT_SIZE: u16 = 4;

/// A console device with 1 to [`MAX_PORTS`] ports.
pub struct Console {
    seat: Seat,
    port_count: usize,
    /// The ports, until the driver starts the device and they move to the event loop.
    ports: Option<Vec<Port>>,
    told: Arc<Told>,
}

impl Console {
    /// Returns a console whose `ports` the loop of `events` serves.
    ///
    /// # Panics
    ///
    /// If there is no port, or there are more than [`MAX_PORTS`]. The number never depends on the guest.
    pub fn new(events: LoopHandle, ports: Vec<Port>) -> Console {
        assert!((1..=MAX_PORTS).contains(&ports.len()), "a console has 1 to {MAX_PORTS} ports");
        Console { seat: events.seat(), port_count: ports.len(), ports: Some(ports), told: Told::new() }
    }

    /// `struct virtio_console_config`: cols u16, rows u16, max_nr_ports u32, emerg_wr u32.
    fn config(&self) -> [u8; 12] {
        let mut config = [0; 12];
        config[4..8].copy_from_slice(&(self.port_count as u32).to_le_bytes());
        config
    }
}

impl VirtioDevice for Console {
    fn info(&self) -> DeviceInfo {
        let mut queue_sizes = vec![PORT_QUEUE_SIZE; 2 * (self.port_count + 1)];
        queue_sizes.iter_mut().rev().take(2).for_each(|size| *size = LAST_PORT_QUEUE_SIZE);
        queue_sizes[CONTROL_QUEUE] = CONTROL_RECEIVE_SIZE;
        queue_sizes[CONTROL_QUEUE + 1] = CONTROL_TRANSMIT_SIZE;
        DeviceInfo { device_id: VIRTIO_ID_CONSOLE, features: MULTIPORT, queue_sizes }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> io::Result<()> {
        for queue in activation.queues.iter_mut().step_by(2) {
            // Linux's driver fills the receive queues at once. Kicks for these buffers would be wasted, as there is
            // nothing to receive yet.
            queue.quiet();
            queue.kick_in_batches();
        }
        let ports =
            self.ports.take().ok_or_else(|| io::Error::other("the console's ports were started before"))?;
        self.seat.put(Box::new(Handler::new(ports, self.told.clone(), activation)))
    }

    fn reset(&mut self) {
        self.seat.clear();
    }

    /// Bytes that a backend keeps are not part of the state: another machine has other backends.
    fn save(&self, _served: &[bool]) -> Result<Vec<u8>, StateError> {
        self.told.save()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.told.restore(state)
    }
}

#[cfg(test)]
mod tests;
