//! The handler of a started network device, in the devices' event loop. It serves both queues and the tap, or waits for
//! a fault while the host's kernel serves them.

use std::sync::Arc;
use std::{io, iter};

use event_manager::{EventOps, Events, MutEventSubscriber};
use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::EventSet;

use super::filter::{HEAD_MAX, SourceFilter};
use super::packet::{ETHERNET_LEN, HEADER_LEN, LONGEST, NUM_BUFFERS, RECEIVE, TRANSMIT};
use super::tap::Tap;
use super::vhost::{Vhost, Work};
use crate::Interrupt;
use crate::pieces::Pieces;
use crate::virtio::Activation;
use crate::virtio::queue::{Demand, Loan, QueueError, ReceiveBuffers, Received, Served, VirtQueue};

/// User data of the tap's events. A queue's kicks have the number of the queue.
const TAP: u32 = 2;
/// User data of the kernel's fault events: the kernel met a request that it does not understand.
const FAULT: u32 = 3;

/// The tap, with the filter for outgoing packets.
pub(super) struct Outlet {
    pub tap: Arc<Tap>,
    /// `None`: all packets may leave.
    pub filter: Option<SourceFilter>,
}

impl Outlet {
    /// Sends a packet if it passes the filter.
    fn send(&self, mut packet: Pieces) -> io::Result<()> {
        let Some(filter) = &self.filter else { return self.tap.write(packet.slices()) };
        // The filter checks a copy, and the copy is sent, because the guest may change its memory meanwhile.
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
    /// In the device's order. `None` after an error: the queue is no longer served.
    queues: [Option<VirtQueue>; 2],
    interrupt: Interrupt,
    features: u64,
    /// A packet waits in the transmit queue until the tap is writable.
    held: bool,
    /// vhost-net, until [`Handler::lend`] uses it.
    vhost: Option<Vhost>,
    /// The loans, while the kernel serves the queues.
    lent: Option<Lent>,
}

/// vhost-net and the loans of both queues. The order of the fields matters: dropping `vhost` stops the kernel, and the
/// loans must not end before that.
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

    /// Lends the queues to the kernel. Returns whether the kernel serves them now.
    fn lend(&mut self, ops: &mut EventOps) -> bool {
        let Some(mut vhost) = self.vhost.take() else { return false };
        let [Some(receive), Some(transmit)] = &self.queues else { return false };
        if !receive.is_ready() || !transmit.is_ready() {
            return false;
        }
        // Lending fails only after a reset, and then serving the queues fails in the same way.
        let (Ok(from), Ok(to)) = (receive.lend(), transmit.lend()) else { return false };
        let added = ops.add(Events::with_data(&vhost.fault, FAULT, EventSet::IN));
        let started = added.map_err(io::Error::other).and_then(|()| {
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
                forget(&vhost, ops);
            }
        }
        self.lent.is_some()
    }

    /// Stops the kernel and continues to serve the queues where the kernel stopped.
    fn take_back(&mut self, ops: &mut EventOps) {
        let Some(Lent { mut vhost, loans }) = self.lent.take() else { return };
        forget(&vhost, ops);
        let stopped = vhost.kernel.stop();
        // This ends the kernel's worker thread.
        drop(vhost);
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
        // The guest may have handled the kernel's last interrupt after share(false), when InterruptStatus did not show
        // it.
        self.interrupt.used_buffers();
        self.listen(ops);
    }

    /// Registers the kicks and the tap with the event loop.
    fn listen(&mut self, ops: &mut EventOps) {
        // Edge-triggered, so that eventfds need not be read, and a tap whose packets cannot be received yet does not
        // wake the loop.
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

    /// Passes the tap's packets to the guest while there are receive buffers.
    fn receive(&mut self, ops: &mut EventOps) {
        let Handler { outlet, demand, queues, interrupt, .. } = self;
        let Some(queue) = &mut queues[RECEIVE] else { return };
        let result = queue.receive(*demand, |buffers| take_packet(&outlet.tap, buffers, interrupt));
        self.check(RECEIVE, result, ops);
    }

    /// Passes the guest's packets to the tap.
    fn transmit(&mut self, ops: &mut EventOps) {
        let Handler { outlet, queues, held, .. } = self;
        let Some(queue) = &mut queues[TRANSMIT] else { return };
        *held = false;
        let result = queue.serve_pieces(|packet, room| {
            if !room.is_empty() || !(HEADER_LEN + ETHERNET_LEN..=LONGEST).contains(&packet.len()) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "not a packet, or too long"));
            }
            match outlet.send(packet) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    *held = true;
                    Ok(Served::Later)
                }
                // Usually the cause is an invalid header. The packet is lost, as on a wire.
                other => other.map(|()| Served::Done(0)),
            }
        });
        self.check(TRANSMIT, result, ops);
    }

    /// Stops serving a queue after an error: its rings are invalid, or the driver has reset the device. After a reset
    /// this handler is about to be dropped.
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

/// Reads the tap's next packet into the receive buffers, and writes their number into the packet's header.
fn take_packet(tap: &Tap, buffers: &mut ReceiveBuffers, interrupt: &Interrupt) -> Received {
    match tap.read(buffers.pieces()) {
        Ok(len) if len > buffers.len() => {
            interrupt.fault(format_args!("a packet of the tap does not fit into the receive buffers"));
            Received::Lost
        }
        Ok(len) if len < HEADER_LEN => {
            // The end of a socket in a test. A tap has no end.
            Received::Nothing
        }
        Ok(len) => {
            buffers.write(NUM_BUFFERS, &(buffers.buffers_for(len) as u16).to_le_bytes());
            Received::Message(len)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Received::Nothing,
        Err(error) if matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EIO)) => {
            // The tap was deleted or its link is down. If the link comes up again, the tap's event wakes the loop. This
            // is counted because every kick of the guest leads here.
            interrupt.fault(format_args!("read a packet: {error}"));
            Received::Nothing
        }
        Err(error) => {
            // The tap could not build the header for this packet and dropped it. The packets after it can be read.
            interrupt.fault(format_args!("read a packet: {error}"));
            Received::Lost
        }
    }
}

fn give_up(queue: &mut Option<VirtQueue>, ops: &mut EventOps) {
    if let Some(queue) = queue.take() {
        // This fails if the queue was never ready and so is not registered.
        let _ = ops.remove(Events::empty(queue.kick()));
    }
}

/// Removes the kernel's fault event from the event loop.
fn forget(vhost: &Vhost, ops: &mut EventOps) {
    // This fails if the event could not be added.
    let _ = ops.remove(Events::empty(&vhost.fault));
}
