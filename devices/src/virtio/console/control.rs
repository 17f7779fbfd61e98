//! The protocol of the control queues (VIRTIO 1.2, 5.3.6.2): the ports, their names, and which side has them open.
//!
//! This module does no I/O: messages go in, effects and replies come out. When the driver is ready, all messages about
//! all ports are sent together, which takes one interrupt. The driver handles control messages in order, so a port
//! exists when its name arrives.

use std::collections::VecDeque;

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

struct PortState {
    /// `None` for a console.
    name: Option<String>,
    host_open: bool,
    guest_open: bool,
}

/// The device's side of the control protocol.
pub(super) struct Control {
    ports: Vec<PortState>,
    announced: bool,
    replies: VecDeque<Vec<u8>>,
}

impl Control {
    /// Returns the initial state, for ports with these names. A port without a name is a console.
    pub fn new(names: impl Iterator<Item = Option<String>>) -> Control {
        let ports = names.map(|name| PortState { name, host_open: true, guest_open: false }).collect();
        Control { ports, announced: false, replies: VecDeque::new() }
    }

    /// Whether the guest has the port open.
    pub fn is_guest_open(&self, port: usize) -> bool {
        self.ports.get(port).is_some_and(|state| state.guest_open)
    }

    /// Handles a message from the driver.
    ///
    /// The number of waiting replies is bounded, because the ports are announced only once.
    pub fn handle(&mut self, message: Message) -> Result<Effect, &'static str> {
        if message.event == DEVICE_READY {
            return self.announce(message.value);
        }
        let port =
            usize::try_from(message.id).map_err(|_| "control message for a port that does not exist")?;
        let state = self.ports.get_mut(port).ok_or("control message for a port that does not exist")?;
        match (message.event, message.value) {
            (PORT_READY, 1) => Ok(Effect::None),
            (PORT_READY, _) => Err("driver could not set up a port"),
            (PORT_OPEN, 0 | 1) if state.guest_open == (message.value == 1) => Ok(Effect::None),
            (PORT_OPEN, 0 | 1) => {
                state.guest_open = message.value == 1;
                Ok(Effect::Opened { port, open: state.guest_open })
            }
            _ => Err("unknown control message"),
        }
    }

    /// Queues the messages that describe all ports.
    fn announce(&mut self, value: u16) -> Result<Effect, &'static str> {
        if value != 1 {
            return Err("driver could not set up the device");
        }
        if self.announced {
            return Err("driver is ready twice");
        }
        self.announced = true;
        for (id, state) in (0..).zip(&self.ports) {
            self.replies.push_back(reply(id, PORT_ADD, 1, ""));
            self.replies.push_back(match &state.name {
                None => reply(id, CONSOLE_PORT, 1, ""),
                Some(name) => reply(id, PORT_NAME, 1, name),
            });
            if state.host_open {
                self.replies.push_back(reply(id, PORT_OPEN, 1, ""));
            }
        }
        Ok(Effect::None)
    }

    /// Sets whether the host's side of a port is open, and tells the driver of a change.
    pub fn set_host_open(&mut self, port: usize, open: bool) {
        let Some(state) = self.ports.get_mut(port).filter(|state| state.host_open != open) else { return };
        state.host_open = open;
        if self.announced {
            // A contrary message that still waits is replaced, so that the number of replies stays bounded.
            let [now, before] = [open, !open].map(|open| reply(port as u32, PORT_OPEN, open.into(), ""));
            match self.replies.iter().position(|waiting| *waiting == before) {
                Some(at) => self.replies[at] = now,
                None => self.replies.push_back(now),
            }
        }
    }

    /// Returns the next message for the driver.
    pub fn reply(&self) -> Option<&[u8]> {
        self.replies.front().map(Vec::as_slice)
    }

    /// Removes the message that [`Self::reply`] returned, after it has been sent.
    pub fn sent(&mut self) {
        self.replies.pop_front();
    }
}

/// Returns the bytes of a message, followed by the port's name if the message has one.
fn reply(id: u32, event: u16, value: u16, name: &str) -> Vec<u8> {
    [&Message { id, event, value }.encode(), name.as_bytes()].concat()
}

#[cfg(test)]
mod tests;
