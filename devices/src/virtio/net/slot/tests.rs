use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_STATUS};

use super::*;
use crate::BusDevice;
use crate::virtio::driver::{Driver, Loop};
use crate::virtio::net::packet::TRANSMIT;
use crate::virtio::net::{Tap, VIRTIO_ID_NET};

const PACKET: [u8; 60] = [0; 60];

/// Plugs in a device whose hardware address ends with `number`. Returns the other end of the socket that replaces its
/// tap.
fn plug(slot: &Slot, events: &Loop, number: u8) -> UnixDatagram {
    let (wire, tap) = UnixDatagram::pair().unwrap();
    wire.set_nonblocking(true).unwrap();
    let tap = Tap::of_socket(OwnedFd::from(tap));
    slot.plug(Net::new(events.handle(), tap, [2, 0, 0, 0, 0, number], 1500, None));
    wire
}

fn send(driver: &mut Driver, events: &mut Loop) {
    let mut queues = driver.start(u64::MAX);
    events.turn();
    queues[TRANSMIT].send(&PACKET);
    driver.kick(TRANSMIT as u32);
    events.turn();
}

#[test]
fn an_empty_slot_has_device_id_0() {
    let mut driver = Driver::new(Box::<Slot>::default());
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_ID), 0);
    let mut config = [0xff; 6];
    driver.transport.read(VIRTIO_MMIO_CONFIG.into(), &mut config);
    assert_eq!(config, [0; 6]);
    // A driver that starts it all the same is told that the device needs a reset.
    driver.start(u64::MAX);
    assert_ne!(driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    driver.write(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(driver.status(), 0);
}

#[test]
fn one_device_after_another_is_found_and_lets_go_of_its_tap() {
    let slot = Slot::default();
    let mut events = Loop::new();
    let mut driver = Driver::new(Box::new(slot.clone()));
    for number in 1..=3 {
        assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_ID), 0);
        let wire = plug(&slot, &events, number);
        assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_ID), VIRTIO_ID_NET);
        let mut config = [0; 6];
        driver.transport.read(VIRTIO_MMIO_CONFIG.into(), &mut config);
        assert_eq!(config, [2, 0, 0, 0, 0, number]);
        send(&mut driver, &mut events);
        let mut packet = [1; 100];
        assert_eq!(wire.recv(&mut packet).unwrap(), PACKET.len());
        driver.write(VIRTIO_MMIO_STATUS, 0);
        events.turn();
        slot.unplug();
        // The other end has been closed.
        let gone = wire.send(&PACKET).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn a_driver_that_does_not_release_its_device_loses_the_tap() {
    let slot = Slot::default();
    let mut events = Loop::new();
    let mut driver = Driver::new(Box::new(slot.clone()));
    let wire = plug(&slot, &events, 1);
    send(&mut driver, &mut events);
    slot.unplug();
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_ID), 0);
    events.turn();
    assert_eq!(wire.send(&PACKET).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    driver.kick(TRANSMIT as u32);
    events.turn();
    driver.write(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(driver.status(), 0);
}
