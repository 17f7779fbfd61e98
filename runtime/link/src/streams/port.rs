//! The stream table as the device behind the port of the stream channel.

use std::io;
use std::os::fd::RawFd;

use devices::virtio::console::{PortBackend, PortEvents};
use vmm_sys_util::epoll::EventSet;

use super::{StreamTable, Watch};

/// Edge-triggered: the table reads and writes until the descriptor would block, so that a descriptor that is not served
/// does not keep the thread busy.
fn watch(events: &mut PortEvents<'_, '_>, fd: RawFd, token: u16, watch: Watch) -> io::Result<()> {
    match watch {
        Watch::In => events.add(fd, token, EventSet::IN | EventSet::EDGE_TRIGGERED),
        Watch::Out => events.add(fd, token, EventSet::OUT | EventSet::EDGE_TRIGGERED),
        Watch::Stop => events.remove(fd),
    }
}

impl PortBackend for StreamTable {
    fn start(&mut self, events: &mut PortEvents<'_, '_>) -> io::Result<()> {
        self.begin(&mut |fd, token, what| watch(events, fd, token, what))
    }

    fn output(&mut self, data: &[u8], events: &mut PortEvents<'_, '_>) {
        self.take(data, &mut |fd, token, what| watch(events, fd, token, what));
    }

    fn takes_output(&self) -> bool {
        StreamTable::takes_output(self)
    }

    fn input(&mut self, buffer: &mut [u8]) -> usize {
        self.fill(buffer)
    }

    fn ready(&mut self, token: u16, _ready: EventSet, events: &mut PortEvents<'_, '_>) {
        StreamTable::ready(self, token, &mut |fd, token, what| watch(events, fd, token, what));
    }
}
