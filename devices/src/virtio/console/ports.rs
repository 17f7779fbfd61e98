//! What stands behind a console's ports.

use std::io;
use std::os::fd::RawFd;

use event_manager::{EventOps, Events};
use vmm_sys_util::epoll::EventSet;

/// One port of a console.
pub struct Port {
    /// What the guest finds it by, in /sys/class/virtio-ports; none: the port is a console (hvc).
    pub name: Option<String>,
    /// What its bytes come from and go to.
    pub backend: Box<dyn PortBackend>,
}

/// What stands behind a port. Runs in the devices' thread and never blocks.
pub trait PortBackend: Send {
    /// Registers the backend's own descriptors.
    fn start(&mut self, events: &mut PortEvents) -> io::Result<()>;
    /// Takes all of `data`, which the guest sent; what bounds it is the protocol above, or
    /// [`takes_output`](Self::takes_output).
    fn output(&mut self, data: &[u8], events: &mut PortEvents);
    /// What the guest sends is taken now. Asked before each of its buffers, which otherwise stays where it is, and again
    /// after [`ready`](Self::ready).
    fn takes_output(&self) -> bool {
        true
    }
    /// Fills `buffer` with bytes for the guest and returns how many; 0 if there is nothing now. Asked again after
    /// every other call, and not while the guest has no room.
    fn input(&mut self, buffer: &mut [u8]) -> usize;
    /// One of its descriptors became ready.
    fn ready(&mut self, token: u16, ready: EventSet, events: &mut PortEvents);
    /// The guest opened or closed the port.
    fn opened(&mut self, _open: bool) {}
    /// The host's side is there. Asked after every other call; the guest is told of a change.
    fn is_open(&self) -> bool {
        true
    }
}

/// Where an event of the console's comes from, as the 32 bits that the event loop carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The driver's kick of a queue.
    Kick(u16),
    /// A descriptor of a port's backend.
    Backend {
        /// Which port; below 2^15.
        port: u16,
        /// The backend's own number for the descriptor.
        token: u16,
    },
}

impl Source {
    const KICK: u32 = 1 << 31;

    pub fn encode(self) -> u32 {
        match self {
            Source::Kick(queue) => Source::KICK | u32::from(queue),
            Source::Backend { port, token } => u32::from(port) << 16 | u32::from(token),
        }
    }

    pub fn decode(data: u32) -> Source {
        match data & Source::KICK {
            0 => Source::Backend { port: (data >> 16) as u16, token: data as u16 },
            _ => Source::Kick(data as u16),
        }
    }
}

/// Registers a backend's descriptors with the devices' event loop.
///
/// Registering edge-triggered saves a `modify` for every time there is no room: the console asks [`PortBackend::input`]
/// again when there is.
pub struct PortEvents<'a, 'b> {
    port: u16,
    ops: &'a mut EventOps<'b>,
}

impl<'a, 'b> PortEvents<'a, 'b> {
    pub(super) fn new(port: u16, ops: &'a mut EventOps<'b>) -> Self {
        PortEvents { port, ops }
    }

    /// Has [`PortBackend::ready`] called with `token` when `fd` is ready for `interest`.
    pub fn add(&mut self, fd: RawFd, token: u16, interest: EventSet) -> io::Result<()> {
        self.ops.add(self.events(fd, token, interest)).map_err(io::Error::other)
    }

    /// Changes what `fd` is waited for.
    pub fn modify(&mut self, fd: RawFd, token: u16, interest: EventSet) -> io::Result<()> {
        self.ops.modify(self.events(fd, token, interest)).map_err(io::Error::other)
    }

    /// Forgets `fd`. To be called before it is closed.
    pub fn remove(&mut self, fd: RawFd) -> io::Result<()> {
        self.ops.remove(Events::empty_raw(fd)).map_err(io::Error::other)
    }

    fn events(&self, fd: RawFd, token: u16, interest: EventSet) -> Events {
        Events::with_data_raw(fd, Source::Backend { port: self.port, token }.encode(), interest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_survive_the_event_loop() {
        for source in [
            Source::Kick(0),
            Source::Kick(u16::MAX),
            Source::Backend { port: 0, token: 0 },
            Source::Backend { port: 0x7fff, token: u16::MAX },
        ] {
            assert_eq!(Source::decode(source.encode()), source);
        }
    }
}
