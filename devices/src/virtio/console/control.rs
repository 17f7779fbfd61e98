//! The control queues' protocol (VIRTIO 1.2, 5.3.6.2): which ports there are, what they are called, who has them open.
//!
//! Pure: messages in, effects and replies out. Everything there is to say about the ports is said in one go when the
//! driver is ready, so that it costs one interrupt: the driver takes control messages in order, so a port exists by
//! the time its name arrives.

use std::collections::VecDeque;

/// The driver is ready for control messages (driver to device).
const DEVICE_READY: u16 = 0;
/// There is a port (device to driver).
const PORT_ADD: u16 = 1;
/// The driver has set a port up, or failed to (driver to device).
const PORT_READY: u16 = 3;
/// The port is a console (device to driver).
const CONSOLE_PORT: u16 = 4;
/// One side has opened or closed the port (both directions).
const PORT_OPEN: u16 = 6;
/// The port's name, which follows the message (device to driver).
const PORT_NAME: u16 = 7;

/// The length of `struct virtio_console_control`: id u32, event u16, value u16, little-endian.
pub(super) const MESSAGE_LEN: usize = 8;

/// One control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub id: u32,
    pub event: u16,
    pub value: u16,
}

impl Message {
    /// Reads a message off the wire.
    pub fn decode(bytes: [u8; MESSAGE_LEN]) -> Message {
        let [a, b, c, d, e, f, g, h] = bytes;
        Message {
            id: u32::from_le_bytes([a, b, c, d]),
            event: u16::from_le_bytes([e, f]),
            value: u16::from_le_bytes([g, h]),
        }
    }

    /// Puts the message on the wire.
    pub fn encode(&self) -> [u8; MESSAGE_LEN] {
        let [a, b, c, d] = self.id.to_le_bytes();
        let [e, f] = self.event.to_le_bytes();
        let [g, h] = self.value.to_le_bytes();
        [a, b, c, d, e, f, g, h]
    }
}

/// What a message from the driver means for a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// The guest has opened or closed the port.
    Opened {
        /// Which port.
        port: usize,
        /// Opened, not closed.
        open: bool,
    },
}

struct Face {
    /// None: a console.
    name: Option<String>,
    host_open: bool,
    guest_open: bool,
}

/// The device's side of the control protocol.
pub(super) struct Control {
    ports: Vec<Face>,
    announced: bool,
    replies: VecDeque<Vec<u8>>,
}

impl Control {
    /// Returns the state before the driver has said anything; a port without a name is a console.
    pub fn new(names: impl Iterator<Item = Option<String>>) -> Control {
        let ports = names.map(|name| Face { name, host_open: true, guest_open: false }).collect();
        Control { ports, announced: false, replies: VecDeque::new() }
    }

    /// The guest has the port open.
    pub fn is_guest_open(&self, port: usize) -> bool {
        self.ports.get(port).is_some_and(|face| face.guest_open)
    }

    /// Takes a message from the driver.
    ///
    /// Replies are bounded whatever the driver sends: it gets to hear of the ports once.
    pub fn handle(&mut self, message: Message) -> Result<Effect, &'static str> {
        if message.event == DEVICE_READY {
            return self.announce(message.value);
        }
        let port =
            usize::try_from(message.id).map_err(|_| "control message for a port that does not exist")?;
        let face = self.ports.get_mut(port).ok_or("control message for a port that does not exist")?;
        match (message.event, message.value) {
            (PORT_READY, 1) => Ok(Effect::None),
            (PORT_READY, _) => Err("driver could not set up a port"),
            (PORT_OPEN, 0 | 1) if face.guest_open == (message.value == 1) => Ok(Effect::None),
            (PORT_OPEN, 0 | 1) => {
                face.guest_open = message.value == 1;
                Ok(Effect::Opened { port, open: face.guest_open })
            }
            _ => Err("unknown control message"),
        }
    }

    /// Says what ports there are.
    fn announce(&mut self, value: u16) -> Result<Effect, &'static str> {
        if value != 1 {
            return Err("driver could not set up the device");
        }
        if self.announced {
            return Err("driver is ready twice");
        }
        self.announced = true;
        for (id, face) in (0..).zip(&self.ports) {
            self.replies.push_back(reply(id, PORT_ADD, 1, ""));
            self.replies.push_back(match &face.name {
                None => reply(id, CONSOLE_PORT, 1, ""),
                Some(name) => reply(id, PORT_NAME, 1, name),
            });
            if face.host_open {
                self.replies.push_back(reply(id, PORT_OPEN, 1, ""));
            }
        }
        Ok(Effect::None)
    }

    /// Tells the driver that the host's side of a port has opened or closed, if that is news.
    pub fn set_host_open(&mut self, port: usize, open: bool) {
        let Some(face) = self.ports.get_mut(port).filter(|face| face.host_open != open) else { return };
        face.host_open = open;
        if self.announced {
            // One that is still waiting is replaced, so that replies stay bounded.
            let [now, before] = [open, !open].map(|open| reply(port as u32, PORT_OPEN, open.into(), ""));
            match self.replies.iter().position(|waiting| *waiting == before) {
                Some(at) => self.replies[at] = now,
                None => self.replies.push_back(now),
            }
        }
    }

    /// The next message for the driver.
    pub fn reply(&self) -> Option<&[u8]> {
        self.replies.front().map(Vec::as_slice)
    }

    /// The driver has that message.
    pub fn sent(&mut self) {
        self.replies.pop_front();
    }
}

/// A message on the wire, with a port's name behind it if it carries one.
fn reply(id: u32, event: u16, value: u16, name: &str) -> Vec<u8> {
    [&Message { id, event, value }.encode(), name.as_bytes()].concat()
}

#[cfg(test)]
mod tests;
