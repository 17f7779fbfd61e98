//! The network device at work in the devices' event loop: both queues and the tap, or what is left of them to do while the
//! host's kernel has them.

use std::sync::Arc;
use std::{io, iter};

use event_manager::{EventOps, Events, MutEventSubscriber};
use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::EventSet;

use super::filter::{HEAD_MAX, SourceFilter};
use super::tap::Tap;
use super::vhost::{Vhost, Work};
use super::{ETHERNET_LEN, HEADER_LEN, LONGEST, NUM_BUFFERS, RECEIVE, TRANSMIT};
use crate::Interrupt;
use crate::virtio::Activation;
use crate::virtio::fs::message::{Pieces, split};
use crate::virtio::queue::{Demand, Loan, QueueError, Received, Room, Served, VirtQueue};

/// The tap's events; a queue's are under its number.
const TAP: u32 = 2;
/// The kernel met a request that it does not understand.
const FAULT: u32 = 3;

/// Where packets go, and come from.
pub(super) struct Outlet {
    pub tap: Arc<Tap>,
    /// What may go there; anything where there is none.
    pub filter: Option<SourceFilter>,
}

impl Outlet {
    /// Sends a packet, unless it says that it is from somebody else.
    fn send(&self, mut packet: Pieces) -> io::Result<()> {
        let Some(filter) = &self.filter else { return self.tap.write(packet.slices()) };
        // What is judged is what is sent: the guest may change its memory meanwhile.
        let mut head = [0; HEAD_MAX];
        let len = packet.read(&mut head);
        filter.check(&head[..len]).map_err(|what| {
            io::Error::new(io::ErrorKind::PermissionDenied, format!("a packet that may not leave: {what}"))
        })?;
        let head = VolatileSlice::from(&mut head[..len]);
        let pieces: Vec<_> = iter::once(head).chain(packet.slices().iter().copied()).collect();
        self.tap.write(&pieces)
    }
}

/// Owns a started device's queues, and shares its tap.
pub(super) struct Handler {
    outlet: Outlet,
    demand: Demand,
    /// In the device's order; none: given up.
    queues: [Option<VirtQueue>; 2],
    interrupt: Interrupt,
    features: u64,
    /// A packet waits in the transmit queue until the tap takes it.
    held: bool,
    /// The kernel, until it has the queues or does not take them.
    vhost: Option<Vhost>,
    /// The kernel has the queues.
    lent: Option<Lent>,
}

/// Who has the queues, and what is to be given up to have them back. Dropped in this order: closing the kernel's side stops
/// it, and only then are the queues nobody's.
struct Lent {
    vhost: Vhost,
    loans: [Loan; 2],
}

impl Handler {
    pub fn new(outlet: Outlet, demand: Demand, vhost: Option<Vhost>, activation: Activation) -> Handler {
        let Activation { queues, interrupt, features, .. } = activation;
        let mut queues = queues.into_iter();
        let queues = [queues.next(), queues.next()];
        Handler { outlet, demand, queues, interrupt, features, held: false, vhost, lent: None }
    }

    /// Lends the queues to the kernel. Returns whether it has them.
    fn lend(&mut self, ops: &mut EventOps) -> bool {
        let Some(mut vhost) = self.vhost.take() else { return false };
        let [Some(receive), Some(transmit)] = &self.queues else { return false };
        if !receive.is_ready() || !transmit.is_ready() {
            return false;
        }
        // Without a reset there is nothing that could refuse; with one, whoever serves the queues meets it next.
        let (Ok(from), Ok(to)) = (receive.lend(), transmit.lend()) else { return false };
        let added = ops.add(Events::with_data(&vhost.fault, FAULT, EventSet::IN));
        let started = added.map_err(io::Error::other).and_then(|()| {
            self.interrupt.share(true);
            vhost.kernel.start(&Work {
                tap: &self.outlet.tap,
                features: self.features,
                queues: [(receive, &from), (transmit, &to)],
                interrupt: &self.interrupt,
                fault: &vhost.fault,
            })
        });
        let loans = [from, to];
        match started {
            Ok(()) => self.lent = Some(Lent { vhost, loans }),
            Err(error) => {
                log::warn!("vhost-net: {error}; packets go through this process");
                self.interrupt.share(false);
                forget(&vhost, ops);
            }
        }
        self.lent.is_some()
    }

    /// Has the kernel stop, and goes on where it was.
    fn take_back(&mut self, ops: &mut EventOps) {
        let Some(Lent { mut vhost, loans }) = self.lent.take() else { return };
        forget(&vhost, ops);
        let stopped = vhost.kernel.stop();
        // With it the kernel's worker goes.
        drop(vhost);
        self.interrupt.share(false);
        let next = match stopped {
            Ok(next) => next,
            Err(error) => return self.interrupt.needs_reset(format_args!("vhost-net: {error}")),
        };
        for ((index, loan), next) in loans.into_iter().enumerate().zip(next) {
            let Some(queue) = &mut self.queues[index] else { continue };
            if let Err(error) = queue.take_back(loan, next) {
                error.report(&self.interrupt);
                self.queues[index] = None;
            }
        }
        // What the kernel fired the line for last may have come when it was shared no more.
        self.interrupt.used_buffers();
        self.listen(ops);
    }

    /// Waits for kicks and packets.
    fn listen(&mut self, ops: &mut EventOps) {
        // Edge-triggered, nothing needs to be read to be quiet again, and a tap whose packets nobody can take is quiet.
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let queues = self.queues.iter().flatten().filter(|queue| queue.is_ready());
        let kicks = queues.map(|queue| Events::with_data(queue.kick(), queue.index().into(), edge));
        let tap = Events::with_data(&*self.outlet.tap, TAP, edge | EventSet::OUT);
        for events in kicks.chain([tap]) {
            if let Err(error) = ops.add(events) {
                self.interrupt.needs_reset(format_args!("wait for packets: {error}"));
            }
        }
    }

    /// Hands the guest what the tap has, as far as there is room.
    fn receive(&mut self, ops: &mut EventOps) {
        let Handler { outlet, demand, queues, interrupt, .. } = self;
        let Some(queue) = &mut queues[RECEIVE] else { return };
        let result = queue.receive(*demand, |room| take_packet(&outlet.tap, room, interrupt));
        self.check(RECEIVE, result, ops);
    }

    /// Hands the tap what the guest sends.
    fn transmit(&mut self, ops: &mut EventOps) {
        let Handler { outlet, queues, held, .. } = self;
        let Some(queue) = &mut queues[TRANSMIT] else { return };
        *held = false;
        let result = queue.serve_chains(|memory, chain| {
            let (packet, room) = split(memory, chain)?;
            if !room.is_empty() || !(HEADER_LEN + ETHERNET_LEN..=LONGEST).contains(&packet.len()) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "no packet, or one that is too long"));
            }
            match outlet.send(packet) {
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

    /// Gives a queue up that is of no use: its rings make no sense, or the driver has reset the device, whose seat in the
    /// loop is about to be cleared then.
    fn check(&mut self, queue: usize, result: Result<(), QueueError>, ops: &mut EventOps) {
        let Err(error) = result else { return };
        give_up(&mut self.queues[queue], ops);
        error.report(&self.interrupt);
    }
}

impl MutEventSubscriber for Handler {
    fn init(&mut self, ops: &mut EventOps) {
        if !self.lend(ops) {
            self.listen(ops);
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        const QUEUES: [u32; 2] = [RECEIVE as u32, TRANSMIT as u32];
        match events.data() {
            FAULT => self.take_back(ops),
            data if data == QUEUES[RECEIVE] => self.receive(ops),
            data if data == QUEUES[TRANSMIT] => self.transmit(ops),
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
            // Somebody took the tap away, or its link down. It wakes us if it comes back. Counted, since each of the guest's
            // kicks leads here.
            interrupt.fault(format_args!("read a packet: {error}"));
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

/// Stops listening to the kernel.
fn forget(vhost: &Vhost, ops: &mut EventOps) {
    // One that could not be added cannot be removed.
    let _ = ops.remove(Events::empty(&vhost.fault));
}
