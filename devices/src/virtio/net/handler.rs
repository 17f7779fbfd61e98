//! The network device at work: both queues and the tap, in the devices' event loop.

use std::io;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;

use super::tap::Tap;
use super::{ETHERNET_LEN, HEADER_LEN, LONGEST, NUM_BUFFERS, RECEIVE, TRANSMIT};
use crate::Interrupt;
use crate::virtio::Activation;
use crate::virtio::fs::message::split;
use crate::virtio::queue::{Demand, QueueError, Received, Room, Served, VirtQueue};

/// The tap's events; a queue's are under its number.
const TAP: u32 = 2;

/// Owns a started device's queues and a descriptor of its tap.
pub(super) struct Handler {
    tap: Tap,
    demand: Demand,
    /// In the device's order; none: given up.
    queues: [Option<VirtQueue>; 2],
    interrupt: Interrupt,
    /// A packet waits in the transmit queue until the tap takes it.
    held: bool,
}

impl Handler {
    pub fn new(tap: Tap, demand: Demand, activation: Activation) -> Handler {
        let mut queues = activation.queues.into_iter();
        let queues = [queues.next(), queues.next()];
        Handler { tap, demand, queues, interrupt: activation.interrupt, held: false }
    }

    /// Hands the guest what the tap has, as far as there is room.
    fn receive(&mut self, ops: &mut EventOps) {
        let Handler { tap, demand, queues, interrupt, .. } = self;
        let Some(queue) = &mut queues[RECEIVE] else { return };
        let result = queue.receive(*demand, |room| take_packet(tap, room, interrupt));
        self.check(RECEIVE, result, ops);
    }

    /// Hands the tap what the guest sends.
    fn transmit(&mut self, ops: &mut EventOps) {
        let Handler { tap, queues, held, .. } = self;
        let Some(queue) = &mut queues[TRANSMIT] else { return };
        *held = false;
        let result = queue.serve_chains(|memory, chain| {
            let (packet, room) = split(memory, chain)?;
            if !room.is_empty() || !(HEADER_LEN + ETHERNET_LEN..=LONGEST).contains(&packet.len()) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "no packet, or one that is too long"));
            }
            match tap.write(packet.slices()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    *held = true;
                    Ok(Served::Later)
                }
                // A header that makes no sense, as a rule: the packet is lost, as on a wire.
                other => other.map(|()| Served::Done(0)),
            }
        });
        self.check(TRANSMIT, result, ops);
    }

    /// Gives a queue up whose rings are of no use, and everything after a reset.
    fn check(&mut self, queue: usize, result: Result<(), QueueError>, ops: &mut EventOps) {
        let Err(error) = result else { return };
        if error.is_reset() {
            for queue in &mut self.queues {
                give_up(queue, ops);
            }
            // One that could not be added cannot be removed.
            let _ = ops.remove(Events::empty(&self.tap));
            return;
        }
        give_up(&mut self.queues[queue], ops);
        error.report(&self.interrupt);
    }
}

impl MutEventSubscriber for Handler {
    fn init(&mut self, ops: &mut EventOps) {
        // Edge-triggered, nothing needs to be read to be quiet again, and a tap whose packets nobody can take is quiet.
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let queues = self.queues.iter().flatten().filter(|queue| queue.is_ready());
        let kicks = queues.map(|queue| Events::with_data(queue.kick(), queue.index().into(), edge));
        let tap = Events::with_data(&self.tap, TAP, edge | EventSet::OUT);
        for events in kicks.chain([tap]) {
            if let Err(error) = ops.add(events) {
                self.interrupt.needs_reset(format_args!("wait for packets: {error}"));
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() as usize {
            RECEIVE => self.receive(ops),
            TRANSMIT => self.transmit(ops),
            _ => {
                if self.held && events.event_set().contains(EventSet::OUT) {
                    self.transmit(ops);
                }
                if events.event_set().contains(EventSet::IN) {
                    self.receive(ops);
                }
            }
        }
    }
}

/// Reads the tap's next packet into the driver's buffers, and says in its header how many they are.
fn take_packet(tap: &Tap, room: &mut Room, interrupt: &Interrupt) -> Received {
    match tap.read(room.pieces()) {
        Ok(len) if len > room.len() => {
            interrupt.fault(format_args!("no room for a packet of the tap"));
            Received::Lost
        }
        Ok(len) if len < HEADER_LEN => {
            // A socket's end, in a test: a tap has none.
            Received::Nothing
        }
        Ok(len) => {
            room.write(NUM_BUFFERS, &(room.buffers_for(len) as u16).to_le_bytes());
            Received::Message(len)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Received::Nothing,
        Err(error) if matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EIO)) => {
            // Somebody took the tap away, or its link down. It wakes us if it comes back.
            log::warn!("read a packet: {error}");
            Received::Nothing
        }
        Err(error) => {
            // One that the tap cannot put into words is gone, and those behind it are not.
            interrupt.fault(format_args!("read a packet: {error}"));
            Received::Lost
        }
    }
}

fn give_up(queue: &mut Option<VirtQueue>, ops: &mut EventOps) {
    if let Some(queue) = queue.take() {
        // One that was never ready is not registered.
        let _ = ops.remove(Events::empty(queue.kick()));
    }
}
