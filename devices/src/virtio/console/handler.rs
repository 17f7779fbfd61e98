//! The handler of a started console: serves all queues and ports in the devices' event loop.

use std::io::{self, Read, Write};
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;

use super::control::{Control, Effect, MESSAGE_LEN, Message, Told};
use super::ports::{Port, PortBackend, PortEvents, Source};
use super::queues::{CONTROL_QUEUE, MULTIPORT, Role, receive_queue, role};
use crate::Interrupt;
use crate::virtio::Activation;
use crate::virtio::queue::{QueueError, Reader, Served, VirtQueue, Writer};

/// Limit of bytes that a backend takes or gives in one call: the capacity of a pipe, plus space for a header.
const SCRATCH_LEN: usize = 68 * 1024;
/// Limit of a transmit request in bytes. Linux writes at most 32 KiB, and splices at most a pipe's capacity.
const MAX_OUTPUT: usize = 16 * 1024 * 1024;

struct LivePort {
    backend: Box<dyn PortBackend>,
    /// Output waits in the transmit queue until the backend accepts it.
    held: bool,
}

/// Owns a started console's queues and ports.
pub(super) struct Handler {
    control: Control,
    ports: Vec<LivePort>,
    /// In the device's order. `None` after an error: the queue is no longer served.
    queues: Vec<Option<VirtQueue>>,
    scratch: Box<[u8]>,
    interrupt: Interrupt,
    multiport: bool,
}

impl Handler {
    pub fn new(ports: Vec<Port>, told: Arc<Told>, activation: Activation) -> Handler {
        Handler {
            control: Control::new(ports.iter().map(|port| port.name.clone()), told),
            ports: ports.into_iter().map(|port| LivePort { backend: port.backend, held: false }).collect(),
            queues: activation.queues.into_iter().map(Some).collect(),
            scratch: vec![0; SCRATCH_LEN].into_boxed_slice(),
            interrupt: activation.interrupt,
            multiport: activation.features & MULTIPORT != 0,
        }
    }

    /// Whether the guest has the port open. Without F_MULTIPORT there are no control messages, and port 0 counts as
    /// open.
    fn is_guest_open(&self, port: usize) -> bool {
        if self.multiport { self.control.is_guest_open(port) } else { port == 0 }
    }

    /// Handles and answers the driver's control messages.
    fn take_control(&mut self, ops: &mut EventOps) {
        let Handler { control, interrupt, queues, .. } = self;
        let mut opened = Vec::new();
        let result = serve(queues, CONTROL_QUEUE + 1, |mut reader, _| {
            let mut message = [0; MESSAGE_LEN];
            reader.read_exact(&mut message)?;
            match control.handle(Message::decode(message)) {
                Ok(Effect::None) => {}
                Ok(Effect::Opened { port, open }) => opened.push((port, open)),
                Err(what) => interrupt.fault(format_args!("{what}: {message:?}")),
            }
            Ok(Served::Done(0))
        });
        self.check(CONTROL_QUEUE + 1, result, ops);
        self.send_control(ops);
        for (port, open) in opened {
            if let Some(live) = self.ports.get_mut(port) {
                live.backend.opened(open);
            }
            self.pump(port, ops);
        }
    }

    /// Sends the driver as many waiting control messages as it has buffers for, with one interrupt.
    fn send_control(&mut self, ops: &mut EventOps) {
        let Handler { control, queues, .. } = self;
        if control.reply().is_none() {
            return;
        }
        let result = serve(queues, CONTROL_QUEUE, |_, mut writer| {
            let Some(reply) = control.reply() else { return Ok(Served::Later) };
            let written = reply.len() as u32;
            // A buffer that is too small is refused, and the message waits for the next buffer.
            writer.write_all(reply)?;
            control.sent();
            Ok(Served::Done(written))
        });
        self.check(CONTROL_QUEUE, result, ops);
    }

    /// Passes the guest's output to a port's backend.
    fn take_output(&mut self, port: usize, ops: &mut EventOps) {
        let Handler { ports, queues, scratch, .. } = self;
        let Some(LivePort { backend, held }) = ports.get_mut(port) else { return };
        let queue = receive_queue(port) + 1;
        *held = false;
        let result = serve(queues, queue, |mut reader, _| {
            if !backend.takes_output() {
                *held = true;
                return Ok(Served::Later);
            }
            if !(1..=MAX_OUTPUT).contains(&reader.available_bytes()) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "output is empty or too long"));
            }
            loop {
                let len = reader.read(scratch)?;
                if len == 0 {
                    return Ok(Served::Done(0));
                }
                backend.output(&scratch[..len], &mut PortEvents::new(port as u16, ops));
            }
        });
        self.check(queue, result, ops);
        self.pump(port, ops);
    }

    /// Passes a backend's input to the guest while there are receive buffers, then tells the guest if the backend has
    /// opened or closed.
    fn pump(&mut self, port: usize, ops: &mut EventOps) {
        let open = self.is_guest_open(port);
        let Handler { ports, queues, scratch, .. } = self;
        let Some(LivePort { backend, .. }) = ports.get_mut(port) else { return };
        if open {
            let queue = receive_queue(port);
            let result = serve(queues, queue, |_, mut writer| {
                let room = writer.available_bytes().min(scratch.len());
                if room == 0 {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "receive buffer has no writable bytes",
                    ));
                }
                let len = backend.input(&mut scratch[..room]).min(room);
                if len == 0 {
                    return Ok(Served::Later);
                }
                writer.write_all(&scratch[..len])?;
                Ok(Served::Done(len as u32))
            });
            self.check(queue, result, ops);
        }
        let Some(live) = self.ports.get(port) else { return };
        let is_open = live.backend.is_open();
        if self.multiport {
            self.control.set_host_open(port, is_open);
            self.send_control(ops);
        }
    }

    /// Stops serving a queue after an error: its rings are invalid, or the driver has reset the device. After a reset
    /// this handler is about to be dropped.
    fn check(&mut self, queue: usize, result: Result<(), QueueError>, ops: &mut EventOps) {
        let Err(error) = result else { return };
        if let Some(queue) = self.queues.get_mut(queue).and_then(Option::take) {
            // This fails if the queue was never ready and so is not registered.
            let _ = ops.remove(Events::empty(queue.kick()));
        }
        error.report(&self.interrupt);
    }

    fn start_backend(&mut self, port: usize, ops: &mut EventOps) {
        let Some(LivePort { backend, .. }) = self.ports.get_mut(port) else { return };
        if let Err(error) = backend.start(&mut PortEvents::new(port as u16, ops)) {
            self.interrupt.needs_reset(format_args!("start port {port}: {error}"));
        }
    }
}

impl MutEventSubscriber for Handler {
    fn init(&mut self, ops: &mut EventOps) {
        // 5.3.2: without VIRTIO_CONSOLE_F_MULTIPORT only the first two queues exist.
        let count = if self.multiport { self.queues.len() } else { CONTROL_QUEUE };
        for (index, queue) in (0..).zip(self.queues.iter().take(count)) {
            let Some(queue) = queue.as_ref().filter(|queue| queue.is_ready()) else { continue };
            // Edge-triggered, so that the eventfd need not be read after each kick.
            let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
            let kick = Events::with_data(queue.kick(), Source::Kick(index).encode(), events);
            if let Err(error) = ops.add(kick) {
                self.interrupt.needs_reset(format_args!("wait for queue {index}: {error}"));
            }
        }
        for port in 0..self.ports.len() {
            self.start_backend(port, ops);
            if self.control.is_guest_open(port) {
                // Only in a machine that continues from a saved one.
                self.ports[port].backend.opened(true);
            }
            self.pump(port, ops);
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match Source::decode(events.data()) {
            Source::Kick(queue) => match role(queue.into()) {
                Role::ControlTransmit => self.take_control(ops),
                Role::ControlReceive => self.send_control(ops),
                Role::Transmit(port) => self.take_output(port, ops),
                Role::Receive(port) => self.pump(port, ops),
            },
            Source::Backend { port, token } => {
                let Some(LivePort { backend, held }) = self.ports.get_mut(usize::from(port)) else {
                    return;
                };
                backend.ready(token, events.event_set(), &mut PortEvents::new(port, ops));
                if *held && backend.takes_output() {
                    self.take_output(port.into(), ops);
                } else {
                    self.pump(port.into(), ops);
                }
            }
        }
    }
}

/// Serves queue `index`, unless an earlier error has ended it.
fn serve(
    queues: &mut [Option<VirtQueue>],
    index: usize,
    op: impl FnMut(Reader, Writer) -> io::Result<Served>,
) -> Result<(), QueueError> {
    queues.get_mut(index).and_then(Option::as_mut).map_or(Ok(()), |queue| queue.serve(op))
}
