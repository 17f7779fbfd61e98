//! virtio-console (VIRTIO 1.2, 5.3; device ID 3).
//!
//! | queue | use | entries |
//! |---|---|---|
//! | 0, 1 | port 0: receive (host to guest), transmit | 16, 16 |
//! | 2, 3 | control: receive, transmit | 16, 4 |
//! | 2n + 2, 2n + 3 | port n: receive, transmit | 16, 16 |
//!
//! Offers VIRTIO_CONSOLE_F_MULTIPORT; a driver that declines it gets port 0 alone. Refuses F_SIZE (the console is a log)
//! and F_EMERG_WRITE (the kernel has nothing to say there that the serial port could not carry).
//!
//! Queue sizes are small on purpose: Linux's driver fills each receive queue with pages while the guest boots. 16 of
//! them hold what a pipe holds.
//!
//! Bytes from the guest are copied once, into a buffer that all ports share, before a backend sees them: backends take
//! `&[u8]`, and guest memory, which the guest may change at any time, cannot be one.

use std::io;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use self::handler::Handler;
pub use self::log_port::{LOG_TAIL_MAX, LogPort, LogTail};
pub use self::ports::{Port, PortBackend, PortEvents};
pub use self::socket_port::{PENDING_MAX, SocketPort};
use super::{Activation, DeviceInfo, VirtioDevice, copy_config};
use crate::{LoopHandle, Seat};

mod control;
mod handler;
mod log_port;
mod ports;
mod socket_port;

/// VIRTIO_CONSOLE_F_MULTIPORT, as a mask.
const MULTIPORT: u64 = 1 << 1;

/// The most ports of one console.
pub const MAX_PORTS: usize = 64;

const PORT_QUEUE_SIZE: u16 = 16;
/// The last port's queues: the one that carries much. Linux's driver gives its receive queue a page for each place.
const LAST_PORT_QUEUE_SIZE: u16 = 64;
const CONTROL_RECEIVE_SIZE: u16 = 16;
/// Linux's driver sends one control message and waits for it.
const CONTROL_TRANSMIT_SIZE: u16 = 4;

/// The control receive queue; the transmit queue is the next.
const CONTROL_QUEUE: usize = 2;

/// A console device with any number of ports.
pub struct Console {
    seat: Seat,
    port_count: usize,
    /// Moved to the event loop by the driver's start.
    ports: Option<Vec<Port>>,
}

impl Console {
    /// Returns a console whose `ports` are served by the loop behind `events`.
    ///
    /// # Panics
    ///
    /// If there is no port, or there are more than [`MAX_PORTS`]: the program decides how many, not the guest.
    pub fn new(events: LoopHandle, ports: Vec<Port>) -> Console {
        assert!((1..=MAX_PORTS).contains(&ports.len()), "a console has 1 to {MAX_PORTS} ports");
        Console { seat: events.seat(), port_count: ports.len(), ports: Some(ports) }
    }

    /// struct virtio_console_config: cols u16, rows u16, max_nr_ports u32, emerg_wr u32.
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
            // Linux's driver fills the receive queues first: no kick is needed before there is something to receive.
            queue.quiet();
            queue.kick_in_batches();
        }
        let ports = self.ports.take().ok_or_else(|| io::Error::other("a console's ports start only once"))?;
        self.seat.put(Box::new(Handler::new(ports, activation)))
    }

    fn reset(&mut self) {
        self.seat.clear();
    }
}

/// A port's receive queue; the transmit queue is the next (5.3.2).
fn receive_queue(port: usize) -> usize {
    if port == 0 { 0 } else { 2 * port + 2 }
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    ControlReceive,
    ControlTransmit,
    Receive(usize),
    Transmit(usize),
}

/// The inverse of [`receive_queue`], for any queue.
fn role(queue: usize) -> Role {
    let port = match queue / 2 {
        0 => 0,
        1 if queue.is_multiple_of(2) => return Role::ControlReceive,
        1 => return Role::ControlTransmit,
        pair => pair - 1,
    };
    if queue.is_multiple_of(2) { Role::Receive(port) } else { Role::Transmit(port) }
}

#[cfg(test)]
mod tests;
