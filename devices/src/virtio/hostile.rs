//! A hostile driver of a real device, controlled by the bytes of a script: for the fuzz target and for tests.
//!
//! It starts the device with any features, queue sizes and rings, resets it and starts it again, and changes guest
//! memory while the device uses it. The devices' loop runs only when the script says so, and can therefore be late at
//! any point of a reset or a start; or it runs while a separate thread acts as a vCPU.
//!
//! Nothing may panic, and after any script [`Machine::finish`] must find a device that serves an honest driver.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_DRIVER_OK;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS;
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

use self::guest::Guest;
pub use self::guest::fuse as fuse_request;
use super::VirtioDevice;
use super::balloon::Balloon;
use super::console::{Console, LogPort, Port, SocketPort};
use super::driver::{Driver, DriverQueue, Loop, memory};
use super::fs::{FileServer, Fs};
use super::net::{Net, Slot, Tap, Vhost};
use super::p9::P9;
use super::rng::Rng;
use crate::pieces::Pieces;

mod guest;

/// Opcode of FUSE_FALLOCATE, which could fill the disk.
const FALLOCATE: u32 = 43;
/// Time limit of a reset, and of a reply to an honest driver.
const DEADLINE: Duration = Duration::from_secs(20);
/// Limit of the loop's iterations in one step, because a script may keep the loop busy forever.
const TURNS_MAX: usize = 64;
/// Length of one step of a script, in bytes.
pub const STEP_LEN: usize = 12;
/// Limit of executed steps of a script.
pub const STEPS_MAX: usize = 512;

const PACKET: [u8; 72] = [0; 72];

/// The device to drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A console with three ports: a log and two sockets.
    Console,
    /// A network device.
    Net,
    /// A network device whose queues are lent to a test double of the host's kernel.
    LentNet,
    /// A slot in which network devices are plugged in and removed.
    Slot,
    /// The entropy device.
    Rng,
    /// The balloon.
    Balloon,
    /// A share over virtio-fs.
    Fs,
    /// A share over 9P.
    P9,
}

impl Subject {
    /// All devices.
    pub const ALL: [Subject; 8] = [
        Subject::Console,
        Subject::Net,
        Subject::LentNet,
        Subject::Slot,
        Subject::Rng,
        Subject::Balloon,
        Subject::Fs,
        Subject::P9,
    ];
}

/// One step of a script.
#[derive(Clone, Copy, Debug)]
struct Step {
    what: u8,
    queue: u8,
    choice: u16,
    a: u32,
    b: u32,
}

impl Step {
    fn parse(bytes: &[u8]) -> Option<Step> {
        let [what, queue, c0, c1, a0, a1, a2, a3, b0, b1, b2, b3] = *bytes else { return None };
        let (a, b) = (u32::from_le_bytes([a0, a1, a2, a3]), u32::from_le_bytes([b0, b1, b2, b3]));
        Some(Step { what, queue, choice: u16::from_le_bytes([c0, c1]), a, b })
    }
}

/// The host's side of the device.
enum Host {
    Nothing,
    Sockets([UnixStream; 2]),
    Wire(UnixDatagram),
    LentWire(UnixDatagram, EventFd),
    Slot(Slot, Option<UnixDatagram>),
}

/// A device with its event loop, a hostile guest and the host's side.
pub struct Machine {
    subject: Subject,
    events: Loop,
    guest: Guest,
    host: Host,
}

/// A file server that leaves out requests that could fill the disk.
struct Spared(Box<dyn FileServer>);

impl FileServer for Spared {
    fn handle(&mut self, request: Pieces, reply: Pieces) -> io::Result<usize> {
        let mut opcode = [0; 4];
        request.tail(4).read(&mut opcode);
        if u32::from_le_bytes(opcode) == FALLOCATE {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.0.handle(request, reply)
    }
}

/// Returns a network device, and the other end of the socket that replaces its tap.
fn net(events: &Loop, vhost: Option<Vhost>) -> (Net, UnixDatagram) {
    let (wire, tap) = UnixDatagram::pair().unwrap();
    tap.set_nonblocking(true).unwrap();
    wire.set_nonblocking(true).unwrap();
    (Net::new(events.handle(), Tap::of_socket(OwnedFd::from(tap)), [2; 6], 1500, vhost), wire)
}

fn console(events: &Loop) -> (Console, [UnixStream; 2]) {
    let [(near_a, far_a), (near_b, far_b)] = [(); 2].map(|()| UnixStream::pair().unwrap());
    for far in [&far_a, &far_b] {
        far.set_nonblocking(true).unwrap();
    }
    let port = |name: &str, socket| Port {
        name: Some(name.to_owned()),
        backend: Box::new(SocketPort::new(socket)) as _,
    };
    let log = Port { name: None, backend: Box::new(LogPort::new(None).0) };
    (Console::new(events.handle(), vec![log, port("a", near_a), port("b", near_b)]), [far_a, far_b])
}

impl Machine {
    /// Returns a machine with one device. `server` makes the file server of a share.
    pub fn new(subject: Subject, server: impl FnOnce() -> Box<dyn FileServer>) -> Machine {
        let events = Loop::new();
        let spared = || Box::new(Spared(server()));
        let (device, host): (Box<dyn VirtioDevice>, Host) = match subject {
            Subject::Console => {
                let (console, sockets) = console(&events);
                (Box::new(console), Host::Sockets(sockets))
            }
            Subject::Net => {
                let (net, wire) = net(&events, None);
                (Box::new(net), Host::Wire(wire))
            }
            Subject::LentNet => {
                let (vhost, fault) = Vhost::of_idler().unwrap();
                let (net, wire) = net(&events, Some(vhost));
                (Box::new(net), Host::LentWire(wire, fault))
            }
            Subject::Slot => {
                let slot = Slot::default();
                (Box::new(slot.clone()), Host::Slot(slot, None))
            }
            Subject::Rng => (Box::new(Rng::new(events.handle())), Host::Nothing),
            Subject::Balloon => (Box::new(Balloon::new(events.handle(), zero)), Host::Nothing),
            Subject::Fs => (Box::new(Fs::new("share", spared(), || {}).unwrap()), Host::Nothing),
            Subject::P9 => (Box::new(P9::new("share", spared(), || {}).unwrap()), Host::Nothing),
        };
        let guest = Guest::new(subject, Driver::with(memory(), device));
        Machine { subject, events, guest, host }
    }

    /// Executes `script` in steps of [`STEP_LEN`] bytes.
    pub fn play(&mut self, script: &[u8]) {
        let steps: Vec<Step> =
            script.chunks_exact(STEP_LEN).take(STEPS_MAX).filter_map(Step::parse).collect();
        let mut rest = &steps[..];
        while let [step, after @ ..] = rest {
            rest = after;
            match step.what % 16 {
                10 => self.act(step),
                11 => drop(self.events.turn_at_most(TURNS_MAX)),
                12 => self.scribble(step),
                13 => {
                    let (beside, after) = rest.split_at(rest.len().min(usize::from(step.choice % 8)));
                    rest = after;
                    self.side_by_side(beside);
                }
                _ => self.guest.take(step),
            }
        }
    }

    /// Runs the loop while a vCPU thread executes `steps`.
    fn side_by_side(&mut self, steps: &[Step]) {
        let Machine { events, guest, .. } = self;
        thread::scope(|scope| {
            let vcpu = scope.spawn(|| steps.iter().for_each(|step| guest.take(step)));
            for _ in 0..TURNS_MAX {
                if vcpu.is_finished() {
                    break;
                }
                events.turn_at_most(TURNS_MAX);
            }
        });
    }

    /// Runs the loop, or lets a share's thread run, while guest memory changes.
    fn scribble(&mut self, step: &Step) {
        let writer = self.guest.scribbler(step);
        thread::scope(|scope| {
            scope.spawn(writer);
            self.events.turn_at_most(TURNS_MAX);
        });
    }

    /// Executes a step of the host's side.
    fn act(&mut self, step: &Step) {
        let len = usize::from(step.choice);
        let mut buffer = vec![step.a as u8; len];
        match &mut self.host {
            Host::Nothing => self.guest.wait(1),
            Host::Sockets(sockets) => {
                let socket = &mut sockets[usize::from(step.queue % 2)];
                match step.a % 8 {
                    0..4 => drop(socket.write(&buffer)),
                    4..7 => drop(socket.read(&mut buffer)),
                    _ => drop(socket.shutdown(std::net::Shutdown::Both)),
                }
            }
            Host::Wire(wire) => pass(wire, step, &mut buffer),
            Host::LentWire(wire, fault) => {
                if step.a % 4 == 3 {
                    fault.write(1).unwrap();
                }
                pass(wire, step, &mut buffer);
            }
            Host::Slot(slot, wire) => match (wire, step.a % 4) {
                (Some(wire), 0 | 1) => pass(wire, step, &mut buffer),
                (wire @ Some(_), 2) => {
                    slot.unplug();
                    *wire = None;
                }
                (wire, _) => {
                    let (net, other) = net(&self.events, None);
                    slot.plug(net);
                    *wire = Some(other);
                }
            },
        }
    }

    /// Resets the device and checks that it serves an honest driver.
    ///
    /// # Panics
    ///
    /// If the device does not serve it.
    pub fn finish(mut self) {
        let deadline = Instant::now() + DEADLINE;
        self.guest.driver.write(VIRTIO_MMIO_STATUS, 0);
        while self.guest.driver.status() != 0 {
            self.events.turn_at_most(TURNS_MAX);
            assert!(Instant::now() < deadline, "{:?}: the reset does not end", self.subject);
            thread::yield_now();
        }
        assert!(self.events.turn_at_most(1000), "{:?}: the loop does not come to rest", self.subject);
        if let Host::Slot(slot, wire) = &mut self.host {
            let (net, other) = net(&self.events, None);
            slot.plug(net);
            *wire = Some(other);
        }
        let queues = self.guest.driver.start(u64::MAX);
        self.events.turn();
        assert_ne!(self.guest.driver.status() & VIRTIO_CONFIG_S_DRIVER_OK, 0);
        match self.subject {
            // A console's ports can be started only once.
            Subject::Console => {}
            Subject::Net | Subject::LentNet | Subject::Slot => self.expect_packet(queues),
            Subject::Rng => self.expect_entropy(queues),
            Subject::Balloon => self.expect_discard(queues),
            // The driver accepts the notification queue, which comes first.
            Subject::Fs => self.expect_answer(queues, 2, &guest::fuse_init()),
            Subject::P9 => self.expect_answer(queues, 0, &guest::p9_version()),
        }
    }

    fn expect_packet(&mut self, mut queues: Vec<DriverQueue>) {
        let wire = match &self.host {
            Host::Wire(wire) | Host::Slot(_, Some(wire)) => wire,
            Host::LentWire(wire, fault) => {
                fault.write(1).unwrap();
                wire
            }
            _ => panic!("a network device without a wire"),
        };
        self.events.turn();
        while wire.recv(&mut [0; 64]).is_ok() {}
        queues[1].send(&PACKET);
        self.guest.driver.kick(1);
        self.events.turn();
        assert_eq!(wire.recv(&mut [0; 100]).ok(), Some(PACKET.len()), "{:?}: no packet", self.subject);
    }

    fn expect_entropy(&mut self, mut queues: Vec<DriverQueue>) {
        queues[0].fill(16);
        self.guest.driver.kick(0);
        self.events.turn();
        assert_eq!(queues[0].completed().len(), 4, "no entropy");
    }

    fn expect_discard(&mut self, mut queues: Vec<DriverQueue>) {
        let queue = &mut queues[2];
        self.guest.write(&[1; 0x1000], guest::BUFFERS);
        queue.put_descriptor(0, (guest::BUFFERS, 0x1000, VRING_DESC_F_WRITE as u16, 0));
        queue.make_available(0);
        self.guest.driver.kick(2);
        self.events.turn();
        let byte: u8 = self.guest.driver.memory.read_obj(GuestAddress(guest::BUFFERS)).unwrap();
        assert_eq!((queue.completed().len(), byte), (1, 0), "the page has not been discarded");
    }

    /// Sends a request with space for its reply, and waits for the reply.
    fn expect_answer(&mut self, mut queues: Vec<DriverQueue>, index: usize, request: &[u8]) {
        let queue = &mut queues[index];
        let place = guest::BUFFERS;
        self.guest.write(request, place);
        queue.put_descriptor(0, (place, request.len() as u32, VRING_DESC_F_NEXT as u16, 1));
        queue.put_descriptor(1, (place + 0x1000, 0x1000, VRING_DESC_F_WRITE as u16, 0));
        queue.make_available(0);
        self.guest.driver.kick(index as u32);
        let deadline = Instant::now() + DEADLINE;
        let answer = loop {
            if let Some(answer) = queue.completed().pop() {
                break answer;
            }
            assert!(Instant::now() < deadline, "{:?}: no answer", self.subject);
            self.guest.wait(100);
        };
        assert!(answer.len() > 16, "{:?}: refused: {answer:?}", self.subject);
    }
}

/// Changes memory as the monitor's function does, which unmaps its pages.
pub(super) fn zero(slice: VolatileSlice) -> io::Result<()> {
    slice.write_slice(&vec![0; slice.len()], 0).map_err(io::Error::other)
}

/// Sends a packet to the guest, or reads the packets that it sent.
fn pass(wire: &UnixDatagram, step: &Step, buffer: &mut [u8]) {
    // A packet that does not fit into the socket is lost, as on a wire.
    let _ = if step.a.is_multiple_of(2) { wire.send(buffer) } else { wire.recv(buffer) };
}
