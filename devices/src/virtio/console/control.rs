//! The protocol of the control queues (VIRTIO 1.2, 5.3.6.2): the ports, their names, and which side has them open.
//!
//! This module does no I/O: messages go in, effects and replies come out. When the driver is ready, all messages about
//! all ports are sent together, which takes one interrupt. The driver handles control messages in order, so a port
//! exists when its name arrives.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::{Decoder, Encoder, StateError};

/// The driver is ready for control messages (driver to device).
const DEVICE_READY: u16 = 0;
/// The device has a port (device to driver).
const PORT_ADD: u16 = 1;
/// The driver has set a port up, or could not (driver to device).
const PORT_READY: u16 = 3;
/// The port is a console (device to driver).
const CONSOLE_PORT: u16 = 4;
/// One side has opened or closed the port (both directions).
const PORT_OPEN: u16 = 6;
/// The port's name, which follows the message (device to driver).
const PORT_NAME: u16 = 7;

/// Length of `struct virtio_console_control`: id u32, event u16, value u16, little-endian.
pub(super) const MESSAGE_LEN: usize = 8;

/// A `struct virtio_console_control`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub id: u32,
    pub event: u16,
    pub value: u16,
}

impl Message {
    /// Parses the bytes of a message.
    pub fn decode(bytes: [u8; MESSAGE_LEN]) -> Message {
        let [a, b, c, d, e, f, g, h] = bytes;
        Message {
            id: u32::from_le_bytes([a, b, c, d]),
            event: u16::from_le_bytes([e, f]),
            value: u16::from_le_bytes([g, h]),
        }
    }

    /// Returns the bytes of the message.
    pub fn encode(&self) -> [u8; MESSAGE_LEN] {
        let [a, b, c, d] = self.id.to_le_bytes();
        let [e, f] = self.event.to_le_bytes();
        let [g, h] = self.value.to_le_bytes();
        [a, b, c, d, e, f, g, h]
    }
}

/// The effect of a driver's message on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// No effect.
    None,
    /// The guest has opened or closed a port.
    Opened {
        /// Number of the port.
        port: usize,
        /// True if opened, false if closed.
        open: bool,
    },
}

/// What the two sides have told each other. The handler, which owns the protocol, changes it; the device reads it when it
/// is saved. Bit n of a mask is port n.
#[derive(Debug)]
pub(super) struct Told {
    announced: AtomicBool,
    host_open: AtomicU64,
    guest_open: AtomicU64,
    /// Messages that the driver has not got yet.
    waiting: AtomicUsize,
}

impl Told {
    /// The initial state: the host has all ports open, the guest none.
    pub fn new() -> Arc<Told> {
        Arc::new(Told {
            announced: AtomicBool::new(false),
            host_open: AtomicU64::new(u64::MAX),
            guest_open: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
        })
    }

    /// Returns the state as plain data.
    pub fn save(&self) -> Result<Vec<u8>, StateError> {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            return Err(StateError::Busy("the console has messages for the guest"));
        }
        let mut state = Encoder::default();
        state.u8(self.announced.load(Ordering::SeqCst).into());
        state.u64(self.host_open.load(Ordering::SeqCst)).u64(self.guest_open.load(Ordering::SeqCst));
        Ok(state.finish())
    }

    /// Takes over what [`save`](Self::save) returned.
    pub fn restore(&self, state: &[u8]) -> Result<(), StateError> {
        let mut state = Decoder::new(state);
        self.announced.store(state.u8()? != 0, Ordering::SeqCst);
        self.host_open.store(state.u64()?, Ordering::SeqCst);
        self.guest_open.store(state.u64()?, Ordering::SeqCst);
        state.end()
    }

    fn is_set(mask: &AtomicU64, port: usize) -> bool {
        mask.load(Ordering::SeqCst) >> port & 1 != 0
    }

    fn set(mask: &AtomicU64, port: usize, on: bool) {
        if on {
            mask.fetch_or(1 << port, Ordering::SeqCst);
        } else {
            mask.fetch_and(!(1 << port), Ordering::SeqCst);
        }
    }
}

/// The device's side of the control protocol.
pub(super) struct Control {
    /// Names of the ports, at most [`MAX_PORTS`](super::MAX_PORTS); `None` for a console.
    names: Vec<Option<String>>,
    told: Arc<Told>,
    replies: VecDeque<Vec<u8>>,
}

impl Control {
    /// Returns the protocol for ports with these names, from the state `told` on. A port without a name is a console.
    pub fn new(names: impl Iterator<Item = Option<String>>, told: Arc<Told>) -> Control {
        Control { names: names.collect(), told, replies: VecDeque::new() }
    }

    /// Whether the guest has the port open.
    pub fn is_guest_open(&self, port: usize) -> bool {
        port < self.names.len() && Told::is_set(&self.told.guest_open, port)
    }

    /// Handles a message from the driver.
    ///
    /// The number of waiting replies is bounded, because the ports are announced only once.
    pub fn handle(&mut self, message: Message) -> Result<Effect, &'static str> {
        if message.event == DEVICE_READY {
            return self.announce(message.value);
        }
        let port = usize::try_from(message.id).ok().filter(|port| *port < self.names.len());
        let port = port.ok_or("control message for a port that does not exist")?;
        let open = message.value == 1;
        match (message.event, message.value) {
            (PORT_READY, 1) => Ok(Effect::None),
            (PORT_READY, _) => Err("driver could not set up a port"),
            (PORT_OPEN, 0 | 1) if self.is_guest_open(port) == open => Ok(Effect::None),
            (PORT_OPEN, 0 | 1) => {
                Told::set(&self.told.guest_open, port, open);
                Ok(Effect::Opened { port, open })
            }
            _ => Err("unknown control message"),
        }
    }

    /// Queues the messages that describe all ports.
    fn announce(&mut self, value: u16) -> Result<Effect, &'static str> {
        if value != 1 {
            return Err("driver could not set up the device");
        }
        if self.told.announced.swap(true, Ordering::SeqCst) {
            return Err("driver is ready twice");
        }
        for (id, name) in (0..).zip(&self.names) {
            self.replies.push_back(reply(id, PORT_ADD, 1, ""));
            self.replies.push_back(match name {
                None => reply(id, CONSOLE_PORT, 1, ""),
                Some(name) => reply(id, PORT_NAME, 1, name),
            });
            if Told::is_set(&self.told.host_open, id as usize) {
                self.replies.push_back(reply(id, PORT_OPEN, 1, ""));
            }
        }
        self.count();
        Ok(Effect::None)
    }

    /// Sets whether the host's side of a port is open, and tells the driver of a change.
    pub fn set_host_open(&mut self, port: usize, open: bool) {
        if port >= self.names.len() || Told::is_set(&self.told.host_open, port) == open {
            return;
        }
        Told::set(&self.told.host_open, port, open);
        if self.told.announced.load(Ordering::SeqCst) {
            // A contrary message that still waits is replaced, so that the number of replies stays bounded.
            let [now, before] = [open, !open].map(|open| reply(port as u32, PORT_OPEN, open.into(), ""));
            match self.replies.iter().position(|waiting| *waiting == before) {
                Some(at) => self.replies[at] = now,
                None => self.replies.push_back(now),
            }
            self.count();
        }
    }

    /// Returns the next message for the driver.
    pub fn reply(&self) -> Option<&[u8]> {
        self.replies.front().map(Vec::as_slice)
    }

    /// Removes the message that [`Self::reply`] returned, after it has been sent.
    pub fn sent(&mut self) {
        self.replies.pop_front();
        self.count();
    }

    fn count(&self) {
        self.told.waiting.store(self.replies.len(), Ordering::SeqCst);
    }
}

/// Returns the bytes of a message, followed by the port's name if the message has one.
fn reply(id: u32, event: u16, value: u16, name: &str) -> Vec<u8> {
    [&Message { id, event, value }.encode(), name.as_bytes()].concat()
}

#[cfg(test)]
mod tests;
