use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::control::Message;
use super::queues::{Role, receive_queue, role};
use super::*;
use crate::BusDevice;
use crate::virtio::driver::{BUFFER_LEN, Driver, DriverQueue, Loop};

const CONTROL_TRANSMIT: usize = CONTROL_QUEUE + 1;
const DEVICE_READY: u16 = 0;
const PORT_OPEN: u16 = 6;

#[derive(Default)]
struct Record {
    output: Vec<u8>,
    input: VecDeque<u8>,
    opened: Vec<bool>,
    closed: bool,
    /// The backend accepts no output.
    full: bool,
    readies: Vec<u16>,
}

/// A backend that records calls and returns input that the test has prepared.
#[derive(Clone, Default)]
struct Fake {
    record: Arc<Mutex<Record>>,
    wake: Option<Arc<EventFd>>,
    echo: bool,
}

impl PortBackend for Fake {
    fn start(&mut self, events: &mut PortEvents) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        match &self.wake {
            Some(wake) => events.add(wake.as_raw_fd(), 77, EventSet::IN),
            None => Ok(()),
        }
    }

    fn output(&mut self, data: &[u8], _events: &mut PortEvents) {
        let mut record = self.record.lock().unwrap();
        record.output.extend(data);
        if self.echo {
            record.input.extend(data);
        }
    }

    fn takes_output(&self) -> bool {
        !self.record.lock().unwrap().full
    }

    fn input(&mut self, buffer: &mut [u8]) -> usize {
        self.record.lock().unwrap().input.read(buffer).unwrap()
    }

    fn ready(&mut self, token: u16, _ready: EventSet, _events: &mut PortEvents) {
        if let Some(wake) = &self.wake {
            wake.read().unwrap();
        }
        self.record.lock().unwrap().readies.push(token);
    }

    fn opened(&mut self, open: bool) {
        self.record.lock().unwrap().opened.push(open);
    }

    fn is_open(&self) -> bool {
        !self.record.lock().unwrap().closed
    }
}

/// A started console with a console port and named ports, and its driver.
struct Guest {
    events: Loop,
    driver: Driver,
    queues: Vec<DriverQueue>,
}

impl Guest {
    fn new(backends: Vec<Box<dyn PortBackend>>, features: u64) -> Guest {
        let events = Loop::new();
        let name = |n: usize| (n > 0).then(|| format!("port{n}"));
        let ports = backends.into_iter().enumerate();
        let ports = ports.map(|(n, backend)| Port { name: name(n), backend }).collect();
        let mut driver = Driver::new(Box::new(Console::new(events.handle(), ports)));
        let queues = driver.start(features);
        let mut guest = Guest { events, driver, queues };
        guest.events.turn();
        guest
    }

    fn with_fakes(fakes: &[&Fake]) -> Guest {
        Guest::new(fakes.iter().map(|fake| Box::new((*fake).clone()) as _).collect(), u64::MAX)
    }

    /// Kicks a queue and runs the device's loop.
    fn kick(&mut self, queue: usize) {
        self.driver.kick(queue as u32);
        self.events.turn();
    }

    fn send(&mut self, queue: usize, data: &[u8]) {
        self.queues[queue].send(data);
        self.kick(queue);
        self.queues[queue].completed();
    }

    fn control(&mut self, id: u32, event: u16, value: u16) {
        self.send(CONTROL_TRANSMIT, &Message { id, event, value }.encode());
    }

    /// Adds all free buffers to a receive queue.
    fn fill(&mut self, queue: usize) {
        self.queues[queue].fill(BUFFER_LEN);
        self.kick(queue);
    }

    fn received(&mut self, queue: usize) -> Vec<Vec<u8>> {
        self.queues[queue].completed()
    }

    fn open(&mut self, port: u32) {
        self.control(port, PORT_OPEN, 1);
    }
}

#[test]
fn queue_numbers_and_roles_agree() {
    let receive: Vec<_> = (0..4).map(receive_queue).collect();
    assert_eq!(receive, [0, 4, 6, 8]);
    assert_eq!((role(2), role(3)), (Role::ControlReceive, Role::ControlTransmit));
    for port in 0..MAX_PORTS {
        assert_eq!(role(receive_queue(port)), Role::Receive(port));
        assert_eq!(role(receive_queue(port) + 1), Role::Transmit(port));
    }
}

#[test]
fn the_configuration_says_how_many_ports() {
    let events = Loop::new();
    let ports = (0..3).map(|_| Port { name: None, backend: Box::new(Fake::default()) }).collect();
    let console = Console::new(events.handle(), ports);
    assert_eq!(console.info().queue_sizes, [16, 16, 16, 4, 16, 16, 64, 64]);
    let mut config = [0xff; 14];
    console.read_config(0, &mut config);
    assert_eq!(config, [0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    console.read_config(u64::MAX - 2, &mut config);
    assert_eq!(config[..3], [0; 3]);
}

#[test]
fn the_handshake_costs_one_interrupt() {
    let mut guest = Guest::with_fakes(&[&Fake::default(), &Fake::default(), &Fake::default()]);
    guest.fill(CONTROL_QUEUE);
    guest.queues[CONTROL_TRANSMIT].set_flags(1);
    guest.driver.interrupts();
    guest.queues[CONTROL_TRANSMIT].send(&Message { id: 0, event: DEVICE_READY, value: 1 }.encode());
    guest.kick(CONTROL_TRANSMIT);
    // One interrupt for the nine messages, one for the driver's own message.
    assert_eq!(guest.driver.interrupts(), 2);
    let messages = guest.received(CONTROL_QUEUE);
    assert_eq!(messages.len(), 9);
    assert_eq!(messages[4], [&Message { id: 1, event: 7, value: 1 }.encode()[..], b"port1"].concat());
}

#[test]
fn filling_receive_queues_costs_no_kick() {
    let guest = Guest::with_fakes(&[&Fake::default(), &Fake::default()]);
    let wanted: Vec<_> = guest.queues.iter().map(|queue| queue.kick_wanted_at() == 0).collect();
    assert_eq!(wanted, [false, true, false, true, false, true]);
}

#[test]
fn control_messages_wait_for_buffers() {
    let mut guest = Guest::with_fakes(&[&Fake::default(), &Fake::default()]);
    guest.control(0, DEVICE_READY, 1);
    assert!(guest.received(CONTROL_QUEUE).is_empty());
    guest.queues[CONTROL_QUEUE].fill(7);
    guest.kick(CONTROL_QUEUE);
    let refused = guest.received(CONTROL_QUEUE);
    assert_eq!(refused, vec![Vec::<u8>::new(); 16], "buffers too small for any message");
    guest.fill(CONTROL_QUEUE);
    assert_eq!(guest.received(CONTROL_QUEUE).len(), 6);
}

#[test]
fn output_reaches_its_port_in_order() {
    let fakes = [Fake::default(), Fake::default(), Fake::default()];
    let mut guest = Guest::with_fakes(&[&fakes[0], &fakes[1], &fakes[2]]);
    guest.queues[5].send(b"one ");
    guest.queues[5].send(b"two ");
    guest.kick(5);
    guest.send(7, b"other");
    guest.send(1, b"console");
    guest.queues[5].completed();
    guest.send(5, &[b'x'; BUFFER_LEN as usize]);
    let outputs = fakes.map(|fake| fake.record.lock().unwrap().output.clone());
    assert_eq!(outputs[0], b"console");
    assert_eq!(outputs[1], [&b"one two "[..], &[b'x'; BUFFER_LEN as usize]].concat());
    assert_eq!(outputs[2], b"other");
}

#[test]
fn output_waits_in_its_queue_while_the_backend_takes_none() {
    let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let fake = Fake { wake: Some(wake.clone()), ..Fake::default() };
    let mut guest = Guest::with_fakes(&[&Fake::default(), &fake]);
    fake.record.lock().unwrap().full = true;
    guest.queues[5].send(b"one ");
    guest.queues[5].send(b"two");
    guest.kick(5);
    wake.write(1).unwrap();
    guest.events.turn();
    assert_eq!(fake.record.lock().unwrap().output, b"");
    assert!(guest.queues[5].completed().is_empty());
    fake.record.lock().unwrap().full = false;
    wake.write(1).unwrap();
    guest.events.turn();
    assert_eq!(fake.record.lock().unwrap().output, b"one two");
    assert_eq!(guest.queues[5].completed().len(), 2);
}

#[test]
fn output_in_the_wrong_direction_is_refused() {
    let fake = Fake::default();
    let mut guest = Guest::with_fakes(&[&fake]);
    guest.queues[1].fill(8);
    guest.kick(1);
    assert_eq!(guest.received(1), vec![Vec::<u8>::new(); 16]);
    guest.control(0, PORT_OPEN, 1);
    fake.record.lock().unwrap().input.extend(b"kept");
    guest.queues[0].send(b"not a buffer to write to");
    guest.kick(0);
    assert_eq!(guest.received(0), [b""]);
    guest.fill(0);
    assert_eq!(guest.received(0), [b"kept"]);
}

#[test]
fn input_waits_until_the_guest_opens_the_port() {
    let (console, fake) = (Fake::default(), Fake::default());
    fake.record.lock().unwrap().input.extend(b"hello");
    let mut guest = Guest::with_fakes(&[&console, &fake]);
    guest.fill(4);
    assert!(guest.received(4).is_empty());
    guest.open(1);
    assert_eq!(guest.received(4), [b"hello"]);
    guest.control(1, PORT_OPEN, 0);
    fake.record.lock().unwrap().input.extend(b"again");
    guest.fill(4);
    assert!(guest.received(4).is_empty());
    guest.open(1);
    assert_eq!(guest.received(4), [b"again"]);
    assert_eq!(fake.record.lock().unwrap().opened, [true, false, true]);
    assert!(console.record.lock().unwrap().opened.is_empty());
}

#[test]
fn input_waits_for_buffers_and_fills_them() {
    let fake = Fake::default();
    let mut guest = Guest::with_fakes(&[&Fake::default(), &fake]);
    guest.open(1);
    let sent: Vec<u8> = (0..100_000u32).map(|n| (n / 3) as u8).collect();
    fake.record.lock().unwrap().input.extend(&sent);
    let mut got = Vec::new();
    while got.len() < sent.len() {
        guest.driver.interrupts();
        guest.fill(4);
        assert_eq!(guest.driver.interrupts(), 1, "one for all buffers");
        let buffers = guest.received(4);
        let (last, full) = buffers.split_last().unwrap();
        assert!(full.iter().all(|buffer| buffer.len() == BUFFER_LEN as usize) && !last.is_empty());
        got.extend(buffers.concat());
    }
    assert!(got == sent);
}

#[test]
fn a_backends_descriptor_brings_input() {
    let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let fake = Fake { wake: Some(wake.clone()), ..Fake::default() };
    let mut guest = Guest::with_fakes(&[&Fake::default(), &fake]);
    guest.open(1);
    guest.fill(4);
    fake.record.lock().unwrap().input.extend(b"news");
    wake.write(1).unwrap();
    guest.events.turn();
    assert_eq!(
        (guest.received(4), &fake.record.lock().unwrap().readies[..]),
        (vec![b"news".to_vec()], &[77][..])
    );
}

#[test]
fn an_answer_follows_output_at_once() {
    let fake = Fake { echo: true, ..Fake::default() };
    let mut guest = Guest::with_fakes(&[&Fake::default(), &fake]);
    guest.open(1);
    guest.fill(4);
    guest.send(5, b"ping");
    assert_eq!(guest.received(4), [b"ping"]);
}

#[test]
fn the_guest_hears_when_a_backend_closes() {
    let fake = Fake::default();
    let mut guest = Guest::with_fakes(&[&Fake::default(), &fake]);
    guest.fill(CONTROL_QUEUE);
    guest.control(0, DEVICE_READY, 1);
    guest.received(CONTROL_QUEUE);
    guest.fill(CONTROL_QUEUE);
    fake.record.lock().unwrap().closed = true;
    guest.send(5, b"x");
    assert_eq!(guest.received(CONTROL_QUEUE), [Message { id: 1, event: PORT_OPEN, value: 0 }.encode()]);
}

#[test]
fn without_multiport_there_is_one_open_port() {
    let fakes = [Fake::default(), Fake::default()];
    let mut guest = Guest::new(fakes.iter().map(|fake| Box::new(fake.clone()) as _).collect(), 0);
    fakes[0].record.lock().unwrap().input.extend(b"in");
    guest.fill(0);
    assert_eq!(guest.received(0), [b"in"]);
    guest.send(1, b"out");
    assert_eq!(fakes[0].record.lock().unwrap().output, b"out");
    guest.fill(CONTROL_QUEUE);
    fakes[0].record.lock().unwrap().closed = true;
    guest.kick(0);
    assert!(guest.received(CONTROL_QUEUE).is_empty());
}

#[test]
fn a_queue_with_impossible_rings_is_given_up_alone() {
    let fakes = [Fake::default(), Fake::default()];
    let mut guest = Guest::with_fakes(&[&fakes[0], &fakes[1]]);
    guest.queues[1].set_avail(100);
    guest.kick(1);
    assert_ne!(guest.driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    guest.kick(1);
    guest.send(5, b"still here");
    assert_eq!(fakes[1].record.lock().unwrap().output, b"still here");
}

#[test]
fn a_driver_without_multiport_that_resets_before_the_loop_turns_does_no_harm() {
    let mut events = Loop::new();
    let fakes = [Fake::default(), Fake::default(), Fake::default()];
    let ports = fakes.iter().map(|fake| Port { name: None, backend: Box::new(fake.clone()) }).collect();
    let mut driver = Driver::new(Box::new(Console::new(events.handle(), ports)));
    driver.start(!MULTIPORT);
    driver.write(VIRTIO_MMIO_STATUS, 0);
    events.turn();
    assert_eq!(driver.status(), 0);
    // All backends were dropped with their ports.
    assert!(fakes.iter().all(|fake| Arc::strong_count(&fake.record) == 1));
}

#[test]
fn a_driver_without_multiport_has_port_0_alone() {
    let fakes = [Fake::default(), Fake::default()];
    let backends = fakes.iter().map(|fake| Box::new(fake.clone()) as _).collect();
    let mut guest = Guest::new(backends, !MULTIPORT);
    for (port, fake) in fakes.iter().enumerate() {
        fake.record.lock().unwrap().input.extend(b"in");
        guest.queues[receive_queue(port)].fill(BUFFER_LEN);
        guest.kick(receive_queue(port));
        guest.queues[receive_queue(port) + 1].send(b"out");
        guest.kick(receive_queue(port) + 1);
    }
    assert_eq!(guest.queues[receive_queue(0)].completed(), [b"in"]);
    assert_eq!(fakes[0].record.lock().unwrap().output, b"out");
    assert_eq!(guest.queues[receive_queue(1)].completed(), Vec::<Vec<u8>>::new());
    assert_eq!(fakes[1].record.lock().unwrap().output, b"");
}

#[test]
fn a_reset_lets_go_of_queues_and_backends() {
    let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let fake = Fake { wake: Some(wake.clone()), ..Fake::default() };
    let mut guest = Guest::with_fakes(&[&fake]);
    guest.driver.write(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(guest.driver.status(), 0);
    guest.queues[1].send(b"late");
    guest.events.turn();
    wake.write(1).unwrap();
    guest.kick(1);
    assert!(guest.received(1).is_empty());
    assert_eq!(Arc::strong_count(&fake.record), 1, "the backend is dropped");
    assert_eq!(Arc::strong_count(&wake), 2);

    guest.driver.start(u64::MAX);
    assert_ne!(guest.driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0, "its ports are gone");
}

#[test]
fn a_socket_behind_a_port_talks_to_the_guest() {
    let (socket, mut peer) = UnixStream::pair().unwrap();
    let (log, tail) = LogPort::new(None);
    let mut guest = Guest::new(vec![Box::new(log), Box::new(SocketPort::new(socket))], u64::MAX);
    guest.fill(CONTROL_QUEUE);
    guest.control(0, DEVICE_READY, 1);
    guest.received(CONTROL_QUEUE);
    guest.fill(CONTROL_QUEUE);
    guest.open(1);
    guest.fill(4);
    peer.write_all(b"question").unwrap();
    guest.events.turn();
    assert_eq!(guest.received(4), [b"question"]);
    guest.send(5, b"answer");
    let mut answer = [0; 6];
    peer.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    guest.send(1, b"Linux version\n");
    assert_eq!(tail.tail(), "Linux version\n");

    peer.write_all(b"bye").unwrap();
    drop(peer);
    guest.fill(4);
    assert_eq!(guest.received(4), [b"bye"]);
    assert_eq!(guest.received(CONTROL_QUEUE), [Message { id: 1, event: PORT_OPEN, value: 0 }.encode()]);
}

#[test]
fn a_log_is_copied_until_its_writer_fails() {
    let (reader, writer) = std::io::pipe().unwrap();
    let (log, tail) = LogPort::new(Some(Box::new(writer)));
    let mut guest = Guest::new(vec![Box::new(log)], u64::MAX);
    let mut reader = reader;
    guest.send(1, b"seen");
    let mut seen = [0; 4];
    reader.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"seen");
    drop(reader);
    guest.send(1, b" lost");
    guest.send(1, b" kept");
    assert_eq!(tail.tail(), "seen lost kept");
}

#[test]
fn a_console_has_a_bounded_number_of_ports() {
    for count in [0, MAX_PORTS + 1] {
        let events = Loop::new();
        let ports =
            (0..count).map(|_| Port { name: None, backend: Box::new(Fake::default()) as _ }).collect();
        let new = std::panic::AssertUnwindSafe(|| Console::new(events.handle(), ports));
        assert!(std::panic::catch_unwind(new).is_err(), "{count}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// For any input on any queue, the console answers, and stores no more than the protocol needs.
    #[test]
    fn no_guest_does_harm(
        steps in prop::collection::vec((0usize..8, prop::collection::vec(0u8..8, 0..20), any::<bool>()), 0..60),
    ) {
        let fakes: Vec<_> = (0..3).map(|_| Fake { echo: true, ..Fake::default() }).collect();
        let mut guest = Guest::with_fakes(&[&fakes[0], &fakes[1], &fakes[2]]);
        let mut sent = 0;
        for (queue, data, write) in steps {
            if write {
                guest.fill(queue);
            } else if !data.is_empty() {
                sent += data.len();
                guest.queues[queue].completed();
                let mut message = data;
                message.resize(8.max(message.len()), 0);
                sent += message.len();
                if guest.queues[queue].has_room() {
                    guest.send(queue, &message);
                }
            }
            guest.kick(queue);
        }
        let output: usize = fakes.iter().map(|fake| fake.record.lock().unwrap().output.len()).sum();
        prop_assert!(output <= sent);
        let mut data = [0; 4];
        guest.driver.transport.read(0, &mut data);
        prop_assert_eq!(&data, b"virt");
    }
}
