//! The ports of a console, and the interface of their backends.

use std::io;
use std::os::fd::RawFd;

use event_manager::{EventOps, Events};
use vmm_sys_util::epoll::EventSet;

/// One port of a console.
pub struct Port {
    /// Name of the port in the guest's /sys/class/virtio-ports. A port without a name is a console (hvc).
    pub name: Option<String>,
    /// Destination of the guest's output and source of its input.
    pub backend: Box<dyn PortBackend>,
}

/// The host's side of a port. It runs on the devices' thread and must not block.
pub trait PortBackend: Send {
    /// Registers the backend's file descriptors.
    fn start(&mut self, events: &mut PortEvents) -> io::Result<()>;
    /// Accepts all of `data`, which the guest sent. To bound what it has to keep, a backend relies on the protocol that
    /// it carries, or on [`takes_output`](Self::takes_output).
    fn output(&mut self, data: &[u8], events: &mut PortEvents);
    /// Whether the backend accepts output now. Called before each of the guest's buffers, which stays in the queue if
    /// the answer is no, and again after [`ready`](Self::ready).
    fn takes_output(&self) -> bool {
        true
    }
    /// Fills `buffer` with bytes for the guest and returns their number, 0 if there are none now. Called again after
    /// every other method, unless the guest has no receive buffers.
    fn input(&mut self, buffer: &mut [u8]) -> usize;
    /// Called when the file descriptor that was registered with `token` has become ready.
    fn ready(&mut self, token: u16, ready: EventSet, events: &mut PortEvents);
    /// Called when the guest has opened or closed the port.
    fn opened(&mut self, _open: bool) {}
    /// Whether the host's side is open. Called after every other method; the guest is told of a change.
    fn is_open(&self) -> bool {
        true
    }
}

/// Source of an event for the console, encoded in the event loop's 32 bits of user data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The driver's kick of this queue.
    Kick(u16),
    /// A file descriptor of a port's backend.
    Backend {
        /// Number of the port, below 2^15.
        port: u16,
        /// The backend's number for the file descriptor.
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

/// Registers a backend's file descriptors with the devices' event loop.
///
/// With edge-triggered registration a backend need not call `modify` while the guest has no receive buffers: the
/// console calls [`PortBackend::input`] again when there are some.
pub struct PortEvents<'a, 'b> {
    port: u16,
    ops: &'a mut EventOps<'b>,
}

impl<'a, 'b> PortEvents<'a, 'b> {
    pub(super) fn new(port: u16, ops: &'a mut EventOps<'b>) -> Self {
        PortEvents { port, ops }
    }

    /// Registers `fd`: [`PortBackend::ready`] is called with `token` when `fd` is ready for `interest`.
    pub fn add(&mut self, fd: RawFd, token: u16, interest: EventSet) -> io::Result<()> {
        self.ops.add(self.events(fd, token, interest)).map_err(io::Error::other)
    }

    /// Changes the events of `fd` that are reported.
    pub fn modify(&mut self, fd: RawFd, token: u16, interest: EventSet) -> io::Result<()> {
        self.ops.modify(self.events(fd, token, interest)).map_err(io::Error::other)
    }

    /// Removes `fd` from the loop. Must be called before `fd` is closed.
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
