//! The device with a test double of the kernel: lending the queues and taking them back.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_NEEDS_RESET};
use virtio_bindings::virtio_mmio::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::driver::{Driver, DriverQueue, Loop};
use crate::virtio::net::{Net, Slot, Tap};
use crate::virtio::queue::Rings;

/// The calls that the double has seen, and the answers it must give.
#[derive(Default)]
struct Script {
    started: Option<(u64, [Rings; 2])>,
    fault: Option<EventFd>,
    /// `start` fails.
    refuses: bool,
    /// The indices that `stop` returns; `stop` fails if `None`.
    next: Option<[u16; 2]>,
    ended: bool,
}

#[derive(Clone, Default)]
struct Double(Arc<Mutex<Script>>);

impl Kernel for Double {
    fn start(&mut self, work: &Work) -> io::Result<()> {
        let mut script = self.0.lock().unwrap();
        script.started = Some((work.features, work.queues.map(|(_, loan)| loan.rings)));
        script.fault = Some(work.fault.try_clone()?);
        if script.refuses { Err(io::ErrorKind::Unsupported.into()) } else { Ok(()) }
    }

    fn stop(&mut self) -> io::Result<[u16; 2]> {
        self.0.lock().unwrap().next.ok_or(io::ErrorKind::Other.into())
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        // The device drops its clone first; the test's own clone is dropped at the end of the test.
        self.0.lock().unwrap().ended = true;
    }
}

struct Guest {
    events: Loop,
    driver: Driver,
    queues: [DriverQueue; 2],
    wire: UnixDatagram,
}

/// Returns a device that lends its queues to `kernel`, and the other end of the socket that replaces its tap.
fn device(events: &Loop, kernel: &Double) -> (Net, UnixDatagram) {
    let (wire, tap) = UnixDatagram::pair().unwrap();
    tap.set_nonblocking(true).unwrap();
    wire.set_nonblocking(true).unwrap();
    let vhost = Vhost::of(Box::new(Double(kernel.0.clone()))).unwrap();
    let tap = Tap::of_socket(OwnedFd::from(tap));
    (Net::new(events.handle(), tap, [2; 6], 1500, Some(vhost)), wire)
}

/// Returns a guest whose queues are lent to `kernel`.
fn guest(kernel: &Double) -> Guest {
    let mut events = Loop::new();
    let (net, wire) = device(&events, kernel);
    let mut driver = Driver::new(Box::new(net));
    let queues = driver.start(u64::MAX).try_into().ok().unwrap();
    events.turn();
    Guest { events, driver, queues, wire }
}

impl Guest {
    fn send(&mut self, mark: u8) {
        let mut packet = [mark; 60];
        packet[..12].fill(0);
        self.queues[TRANSMIT].send(&packet);
        self.driver.kick(TRANSMIT as u32);
        self.events.turn();
    }

    /// Returns the marks of the packets that this process has sent.
    fn sent(&self) -> Vec<u8> {
        let mut packet = [0; 60];
        std::iter::from_fn(|| self.wire.recv(&mut packet).ok().map(|len| packet[len - 1])).collect()
    }

    /// Completes the first requests of the transmit queue, as the kernel does.
    fn complete(&self, rings: &Rings, count: u16) {
        for index in 0..count {
            let entry = GuestAddress(rings.used + 4 + 8 * u64::from(index));
            let head: u16 =
                self.driver.memory.read_obj(GuestAddress(rings.avail + 4 + 2 * u64::from(index))).unwrap();
            self.driver.memory.write_obj(u64::from(head), entry).unwrap();
        }
        self.driver.memory.write_obj(count, GuestAddress(rings.used + 2)).unwrap();
    }

    fn fault(&mut self, kernel: &Double) {
        kernel.0.lock().unwrap().fault.as_ref().unwrap().write(1).unwrap();
        self.events.turn();
    }

    fn needs_reset(&mut self) -> bool {
        self.driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }
}

#[test]
fn the_kernel_gets_the_queues_and_the_interrupt() {
    let kernel = Double::default();
    let mut guest = guest(&kernel);
    let (features, rings) = kernel.0.lock().unwrap().started.unwrap();
    assert_eq!(features & QUEUE_FEATURES, QUEUE_FEATURES);
    assert_eq!(rings.map(|rings| (rings.size, rings.next_avail)), [(QUEUE_SIZE, 0); 2]);
    assert!(rings[RECEIVE].descriptors < rings[RECEIVE].avail && rings[RECEIVE].avail < rings[RECEIVE].used);
    // InterruptStatus always shows used buffers, whether or not this process has used any.
    assert_eq!(guest.driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    guest.driver.write(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
    assert_eq!(guest.driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    guest.send(1);
    assert_eq!((guest.sent(), guest.queues[TRANSMIT].completed().len()), (vec![], 0));
}

#[test]
fn what_the_kernel_does_not_understand_is_answered_here_and_all_goes_on() {
    let kernel = Double::default();
    let mut guest = guest(&kernel);
    let rings = kernel.0.lock().unwrap().started.unwrap().1;
    guest.send(1);
    guest.send(2);
    guest.complete(&rings[TRANSMIT], 1);
    assert_eq!(guest.queues[TRANSMIT].completed().len(), 1);
    // A malformed packet.
    guest.queues[TRANSMIT].send(&[0; 4]);
    guest.send(3);
    kernel.0.lock().unwrap().next = Some([0, 1]);
    guest.driver.interrupts();
    guest.fault(&kernel);
    assert_eq!(guest.sent(), [2, 3]);
    assert_eq!(guest.queues[TRANSMIT].completed().len(), 3);
    assert!(guest.driver.interrupts() > 0 && !guest.needs_reset());
    assert_eq!(guest.driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    assert!(kernel.0.lock().unwrap().ended);
    guest.send(4);
    assert_eq!(guest.sent(), [4]);
    guest.queues[RECEIVE].fill(2048);
    guest.driver.kick(RECEIVE as u32);
    guest.wire.send(&[0; 70]).unwrap();
    guest.events.turn();
    assert_eq!(guest.queues[RECEIVE].completed().len(), 1);
}

#[test]
fn a_reset_completes_when_the_kernel_has_stopped() {
    let kernel = Double::default();
    let mut guest = guest(&kernel);
    guest.driver.write(VIRTIO_MMIO_STATUS, 0);
    assert_ne!(guest.driver.status(), 0);
    assert!(!kernel.0.lock().unwrap().ended);
    // Linux does not wait for the reset, and its writes are ignored.
    guest.driver.add_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
    guest.events.turn();
    assert!(kernel.0.lock().unwrap().ended);
    assert_eq!((guest.driver.status(), guest.driver.read(VIRTIO_MMIO_INTERRUPT_STATUS)), (0, 0));
    // The next driver's queues are not lent.
    guest.queues = guest.driver.start(u64::MAX).try_into().ok().unwrap();
    guest.events.turn();
    guest.send(5);
    assert_eq!(guest.sent(), [5]);
}

#[test]
fn a_device_that_takes_anothers_place_is_not_called_back_for_it() {
    let (mut events, slot) = (Loop::new(), Slot::default());
    let mut driver = Driver::new(Box::new(slot.clone()));
    let kernels = [Double::default(), Double::default()];
    for kernel in &kernels {
        slot.plug(device(&events, kernel).0);
        // A driver starts with a reset. The loop has not completed the previous one by then.
        driver.write(VIRTIO_MMIO_STATUS, 0);
        events.turn();
        driver.start(u64::MAX);
        events.turn();
        assert!(kernel.0.lock().unwrap().started.is_some());
        if kernel.0.lock().unwrap().ended {
            panic!("the kernel does not have the queues");
        }
        driver.write(VIRTIO_MMIO_STATUS, 0);
        slot.unplug();
    }
    events.turn();
    assert!(kernels.iter().all(|kernel| kernel.0.lock().unwrap().ended));
}

#[test]
fn a_reset_before_the_loop_turns_lends_nothing() {
    let kernel = Double::default();
    let mut events = Loop::new();
    let vhost = Vhost::of(Box::new(Double(kernel.0.clone()))).unwrap();
    let (_wire, tap) = UnixDatagram::pair().unwrap();
    let tap = Tap::of_socket(OwnedFd::from(tap));
    let mut driver = Driver::new(Box::new(Net::new(events.handle(), tap, [2; 6], 1500, Some(vhost))));
    driver.start(u64::MAX);
    driver.write(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(driver.status(), 0);
    events.turn();
    assert!(kernel.0.lock().unwrap().started.is_none());
}

#[test]
fn a_kernel_that_does_not_start_leaves_the_queues_here() {
    let kernel = Double::default();
    kernel.0.lock().unwrap().refuses = true;
    let mut guest = guest(&kernel);
    assert!(kernel.0.lock().unwrap().ended);
    assert_eq!(guest.driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    guest.send(6);
    assert_eq!((guest.sent(), guest.queues[TRANSMIT].completed().len()), (vec![6], 1));
}

#[test]
fn a_kernel_that_cannot_stop_needs_a_reset() {
    let kernel = Double::default();
    let mut guest = guest(&kernel);
    guest.send(7);
    guest.fault(&kernel);
    assert!(guest.needs_reset());
    assert_eq!(guest.sent(), []);
    guest.driver.write(VIRTIO_MMIO_STATUS, 0);
    guest.events.turn();
    assert_eq!(guest.driver.status(), 0);
}
