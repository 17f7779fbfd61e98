//! The host's vhost-net with a driver that makes mistakes. There is no machine: the test is the driver, and instead of
//! a tap there is a packet socket without an interface, which drops what it gets.

use std::time::{Duration, Instant};

use devices::virtio::driver::{Driver, DriverQueue, Loop, memory};
use devices::virtio::net::{Net, Tap, Vhost};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// VIRTIO 1.2, 5.1.2.
const TRANSMIT: u32 = 1;
/// VIRTIO 1.2, 2.1 and 4.2.2.
const NEEDS_RESET: u32 = 64;
const STATUS: u32 = 0x70;

/// Maximum time for an answer.
const DEADLINE: Duration = Duration::from_secs(20);

struct Guest {
    events: Loop,
    driver: Driver,
    transmit: DriverQueue,
}

impl Guest {
    /// Returns a guest whose queues the kernel serves. The device's event loop runs only when the test turns it.
    fn new() -> Guest {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let packets = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None);
        let tap = Tap::of_socket(packets.expect("make a packet socket"));
        let memory = memory();
        let vhost = Vhost::open(memory.clone()).expect("open vhost-net (modprobe vhost_net)");
        let mut events = Loop::new();
        let net = Net::new(events.handle(), tap, [2, 0, 0, 0, 0, 1], 1500, Some(vhost));
        let mut driver = Driver::with(memory, Box::new(net));
        let transmit = driver.start(u64::MAX).pop().expect("a queue");
        events.turn();
        Guest { events, driver, transmit }
    }

    /// Waits until `count` packets are answered and returns them. With `turning` the event loop runs meanwhile.
    fn answers(&mut self, count: usize, turning: bool) -> Vec<Vec<u8>> {
        let begun = Instant::now();
        let mut all = Vec::new();
        while all.len() < count {
            let left = DEADLINE.checked_sub(begun.elapsed()).expect("answers in time");
            let left = left.as_millis() as i32;
            if turning {
                self.events.wait(left);
            } else {
                self.driver.wait_for_interrupt(left);
            }
            self.driver.interrupts();
            all.extend(self.transmit.completed());
        }
        all
    }
}

#[test]
fn the_device_takes_over_a_queue_that_the_kernel_cannot_serve() {
    let mut guest = Guest::new();
    for _ in 0..3 {
        guest.transmit.send(&[0; 100]);
    }
    guest.driver.kick(TRANSMIT);
    // The event loop does not run, so the kernel answers.
    assert_eq!(guest.answers(3, false).len(), 3);
    // A buffer outside of guest memory, and then a valid one.
    guest.transmit.put_descriptor(200, (1 << 40, 100, 0, 0));
    guest.transmit.make_available(200);
    guest.transmit.send(&[0; 100]);
    guest.driver.kick(TRANSMIT);
    assert_eq!(guest.answers(2, true).len(), 2);
    assert_eq!(guest.driver.status() & NEEDS_RESET, 0);
    // Later packets are served by the device as well.
    guest.transmit.send(&[0; 100]);
    guest.driver.kick(TRANSMIT);
    assert_eq!(guest.answers(1, true).len(), 1);
}

#[test]
fn a_reset_takes_the_queues_back_from_the_kernel() {
    let mut guest = Guest::new();
    guest.driver.write(STATUS, 0);
    assert_ne!(guest.driver.status(), 0);
    assert!(guest.events.wait(DEADLINE.as_millis() as i32));
    assert_eq!(guest.driver.status(), 0);
    guest.transmit.send(&[0; 100]);
    guest.driver.kick(TRANSMIT);
    assert!(!guest.events.wait(0));
    assert_eq!(guest.transmit.completed().len(), 0);
}
