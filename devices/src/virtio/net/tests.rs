use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_STATUS};
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress};

use super::packet::*;
use super::*;
use crate::BusDevice;
use crate::virtio::driver::{BUFFER_LEN, Driver, DriverQueue, Loop};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const MTU: u16 = 1400;
const NO_MERGING: u64 = !MRG_RXBUF;
const PLAIN: u64 = !(MRG_RXBUF | GUEST_TSO);

struct Guest {
    events: Loop,
    driver: Driver,
    receive: DriverQueue,
    transmit: DriverQueue,
    /// The other end of the socket that replaces the tap.
    wire: UnixDatagram,
}

fn guest(features: u64) -> Guest {
    let (wire, tap) = UnixDatagram::pair().unwrap();
    tap.set_nonblocking(true).unwrap();
    wire.set_nonblocking(true).unwrap();
    let mut events = Loop::new();
    let net = Net::new(events.handle(), Tap::of_socket(OwnedFd::from(tap)), MAC, MTU, None);
    let mut driver = Driver::new(Box::new(net));
    let (receive, transmit) = start(&mut driver, &mut events, features);
    Guest { events, driver, receive, transmit, wire }
}

fn start(driver: &mut Driver, events: &mut Loop, features: u64) -> (DriverQueue, DriverQueue) {
    let mut queues = driver.start(features);
    let transmit = queues.pop().unwrap();
    events.turn();
    (queues.pop().unwrap(), transmit)
}

/// Returns a packet of `len` bytes with its header.
fn packet(len: usize) -> Vec<u8> {
    let mut packet: Vec<u8> = (0..len).map(|at| (at * 7 % 251) as u8).collect();
    packet[..HEADER_LEN].fill(0);
    packet
}

/// Returns the packet as the guest receives it, with the number of buffers in its header.
fn in_buffers(mut packet: Vec<u8>, count: u8) -> Vec<u8> {
    packet[NUM_BUFFERS] = count;
    packet
}

impl Guest {
    fn fill(&mut self, len: u32) {
        self.receive.fill(len);
        self.driver.kick(RECEIVE as u32);
        self.events.turn();
    }

    fn send(&mut self, packet: &[u8]) {
        self.transmit.send(packet);
        self.driver.kick(TRANSMIT as u32);
        self.events.turn();
    }

    fn next_on_wire(&self) -> Option<Vec<u8>> {
        let mut packet = vec![0; LONGEST];
        let len = self.wire.recv(&mut packet).ok()?;
        packet.truncate(len);
        Some(packet)
    }

    /// Adds one chain of receive buffers.
    fn offer(&mut self, first: u16, pieces: &[(u64, u32, u32)]) {
        for (index, (address, len, flags)) in (first..).zip(pieces) {
            self.receive.put_descriptor(index, (*address, *len, *flags as u16, index + 1));
        }
        self.receive.make_available(first);
    }
}

#[test]
fn configuration_has_address_and_largest_packet() {
    let mut guest = guest(u64::MAX);
    let mut config = [0xff; 14];
    guest.driver.transport.read(VIRTIO_MMIO_CONFIG.into(), &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0x78, 0x05, 0, 0]);
}

#[test]
fn packets_go_out_whole_and_in_order() {
    let mut guest = guest(u64::MAX);
    for len in [60, 1412, 4096] {
        guest.send(&packet(len));
        assert_eq!(guest.next_on_wire(), Some(packet(len)));
    }
    assert_eq!(guest.transmit.completed().len(), 3);
    assert_eq!(guest.next_on_wire(), None);
}

#[test]
fn a_packet_comes_in_with_one_interrupt_for_all_that_are_there() {
    let mut guest = guest(u64::MAX);
    guest.fill(2048);
    assert_eq!(guest.driver.interrupts(), 0);
    for len in [60, 1412] {
        guest.wire.send(&packet(len)).unwrap();
    }
    guest.events.turn();
    let expected = [60, 1412].map(|len| in_buffers(packet(len), 1));
    assert_eq!(guest.receive.completed(), expected);
    assert_eq!(guest.driver.interrupts(), 1);
}

#[test]
fn a_long_packet_lies_in_as_many_buffers_as_its_header_says() {
    let mut guest = guest(u64::MAX);
    guest.fill(BUFFER_LEN);
    guest.wire.send(&packet(9000)).unwrap();
    guest.wire.send(&packet(100)).unwrap();
    guest.events.turn();
    let buffers = guest.receive.completed();
    assert_eq!(buffers.iter().map(Vec::len).collect::<Vec<_>>(), [4096, 4096, 808, 100]);
    assert_eq!(buffers[..3].concat(), in_buffers(packet(9000), 3));
    assert_eq!(buffers[3], in_buffers(packet(100), 1));
}

#[test]
fn a_guest_without_buffers_stops_the_tap_until_it_kicks() {
    let mut guest = guest(u64::MAX);
    guest.wire.send(&packet(80)).unwrap();
    // turn() panics if the loop does not become idle.
    guest.events.turn();
    assert_eq!(guest.receive.kick_wanted_at(), 0);
    guest.fill(2048);
    assert_eq!(guest.receive.completed(), [in_buffers(packet(80), 1)]);
}

#[test]
fn a_packet_waits_for_room_while_the_guest_can_give_more() {
    let mut guest = guest(u64::MAX);
    let buffers = 0x10_0000;
    guest.offer(0, &[(buffers, 2048, VRING_DESC_F_WRITE)]);
    guest.driver.kick(RECEIVE as u32);
    guest.wire.send(&packet(4000)).unwrap();
    guest.events.turn();
    assert_eq!(guest.receive.completed(), Vec::<Vec<u8>>::new());
    for index in 1..40 {
        guest.offer(index, &[(buffers + 2048 * u64::from(index), 2048, VRING_DESC_F_WRITE)]);
    }
    guest.driver.kick(RECEIVE as u32);
    guest.events.turn();
    assert_eq!(guest.receive.completed().iter().map(Vec::len).collect::<Vec<_>>(), [2048, 1952]);
}

#[test]
fn a_ring_of_small_buffers_loses_what_cannot_fit_and_goes_on() {
    let mut guest = guest(u64::MAX);
    guest.fill(100);
    guest.wire.send(&packet(256 * 100 + 1)).unwrap();
    guest.wire.send(&packet(250)).unwrap();
    guest.events.turn();
    let buffers = guest.receive.completed();
    assert_eq!(buffers.concat(), in_buffers(packet(250), 3));
}

#[test]
fn a_driver_that_merges_nothing_gets_each_packet_in_one_buffer() {
    let mut guest = guest(PLAIN);
    let least = (HEADER_LEN + ETHERNET_LEN) as u32 + u32::from(MTU);
    guest.fill(least);
    guest.wire.send(&packet(least as usize)).unwrap();
    guest.events.turn();
    assert_eq!(guest.receive.completed(), [in_buffers(packet(least as usize), 1)]);
}

#[test]
fn buffers_too_small_for_the_longest_packet_are_refused() {
    let mut guest = guest(NO_MERGING);
    guest.fill(BUFFER_LEN);
    guest.wire.send(&packet(60)).unwrap();
    guest.events.turn();
    let buffers = guest.receive.completed();
    assert_eq!(buffers.len(), 256);
    assert!(buffers.iter().all(Vec::is_empty));
}

#[test]
fn malformed_buffers_are_completed_empty_and_in_order() {
    let mut guest = guest(u64::MAX);
    let (write, next) = (VRING_DESC_F_WRITE, VRING_DESC_F_NEXT);
    let buffers = 0x10_0000;
    for bad in [
        &[(buffers, 64, 0)][..],
        &[(buffers, 4, write)],
        &[(buffers, 0, write)],
        &[(1 << 40, 64, write)],
        &[(u64::MAX - 3, 64, write)],
        &[(buffers, 64, write | next), (buffers, 64, 0)],
    ] {
        guest.offer(0, bad);
        guest.driver.kick(RECEIVE as u32);
        guest.events.turn();
        assert_eq!(guest.receive.completed(), [b""], "{bad:?}");
    }
    // A bad buffer after good ones: the good ones are used first, and then the bad one is refused.
    for index in 0..80 {
        let len = if index == 20 { 1 } else { 2048 };
        guest.offer(index, &[(buffers + 2048 * u64::from(index), len, write)]);
    }
    for _ in 0..30 {
        guest.wire.send(&packet(2000)).unwrap();
    }
    guest.driver.kick(RECEIVE as u32);
    guest.events.turn();
    let lens: Vec<usize> = guest.receive.completed().iter().map(Vec::len).collect();
    assert_eq!(lens[..22], [&[2000; 20][..], &[0, 2000]].concat()[..]);
}

#[test]
fn malformed_packets_are_completed_and_not_sent() {
    let mut guest = guest(u64::MAX);
    guest.send(&packet(HEADER_LEN + ETHERNET_LEN - 1));
    // Longer than a packet can be: the same page many times.
    for index in 0..20 {
        let flags = if index < 19 { VRING_DESC_F_NEXT } else { 0 };
        guest.transmit.put_descriptor(index, (0x10_0000, 4096, flags as u16, index + 1));
    }
    guest.transmit.make_available(0);
    guest.driver.kick(TRANSMIT as u32);
    guest.events.turn();
    assert_eq!(guest.transmit.completed().len(), 2);
    assert_eq!(guest.next_on_wire(), None);
    guest.send(&packet(100));
    assert_eq!(guest.next_on_wire(), Some(packet(100)));
}

#[test]
fn a_tap_that_is_full_keeps_packets_in_the_queue_until_it_takes_them() {
    let mut guest = guest(u64::MAX);
    let count = 200;
    for _ in 0..count {
        guest.transmit.send(&packet(4000));
    }
    guest.driver.kick(TRANSMIT as u32);
    guest.events.turn();
    let sent = guest.transmit.completed().len();
    assert!(sent < count, "the socket takes everything");
    let mut arrived = 0;
    while arrived < count {
        assert!(guest.next_on_wire() == Some(packet(4000)), "after {arrived}");
        arrived += 1;
        guest.events.turn();
    }
    assert_eq!(sent + guest.transmit.completed().len(), count);
}

#[test]
fn broken_rings_ask_for_a_reset_which_starts_anew_on_the_same_tap() {
    let mut guest = guest(u64::MAX);
    guest.receive.set_avail(1000);
    guest.driver.kick(RECEIVE as u32);
    guest.events.turn();
    assert_ne!(guest.driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    // The other direction continues.
    guest.send(&packet(64));
    assert_eq!(guest.next_on_wire(), Some(packet(64)));
    for _ in 0..2 {
        guest.driver.write(VIRTIO_MMIO_STATUS, 0);
        guest.events.turn();
        let (receive, transmit) = start(&mut guest.driver, &mut guest.events, u64::MAX);
        (guest.receive, guest.transmit) = (receive, transmit);
        guest.fill(2048);
        guest.wire.send(&packet(64)).unwrap();
        guest.events.turn();
        assert_eq!(guest.receive.completed(), [in_buffers(packet(64), 1)]);
        guest.send(&packet(70));
        assert_eq!(guest.next_on_wire(), Some(packet(70)));
    }
}

#[test]
fn a_device_that_is_held_to_its_addresses_sends_nothing_from_others() {
    let (wire, tap) = UnixDatagram::pair().unwrap();
    wire.set_nonblocking(true).unwrap();
    let mut events = Loop::new();
    let filter = SourceFilter::new(Sources { mac: MAC, addresses: vec![[10, 9, 0, 2].into()] });
    let net = Net::new(events.handle(), Tap::of_socket(OwnedFd::from(tap)), MAC, MTU, None);
    let mut driver = Driver::new(Box::new(net.held_to(filter.clone())));
    let (receive, transmit) = start(&mut driver, &mut events, u64::MAX);
    let mut guest = Guest { events, driver, receive, transmit, wire };
    let from = |last: u8, len: usize| {
        let mut frame = packet(len);
        frame[HEADER_LEN + 6..][..6].copy_from_slice(&MAC);
        frame[HEADER_LEN + 12..][..3].copy_from_slice(&[8, 0, 0x45]);
        frame[HEADER_LEN + ETHERNET_LEN + 12..][..4].copy_from_slice(&[10, 9, 0, last]);
        frame
    };
    // Also a packet that is longer than the part that is checked.
    for len in [60, 1412] {
        guest.send(&from(2, len));
        assert_eq!(guest.next_on_wire(), Some(from(2, len)));
        guest.send(&from(3, len));
        assert_eq!(guest.next_on_wire(), None);
    }
    // All requests are completed, including those of refused packets.
    assert_eq!(guest.transmit.completed().len(), 4);
    filter.set_addresses(vec![[10, 9, 0, 3].into()]);
    guest.send(&from(2, 60));
    guest.send(&from(3, 60));
    assert_eq!((guest.next_on_wire(), guest.next_on_wire()), (Some(from(3, 60)), None));
    assert_eq!(guest.driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
}

#[test]
fn memory_behind_a_buffer_is_the_guests_own() {
    let mut guest = guest(u64::MAX);
    guest.driver.memory.write_slice(&[0xee; 4096], GuestAddress(0x10_0000)).unwrap();
    guest.fill(2048);
    guest.wire.send(&packet(1000)).unwrap();
    guest.events.turn();
    let mut beside = [0; 4096];
    guest.driver.memory.read_slice(&mut beside, GuestAddress(0x10_0000)).unwrap();
    assert_eq!(beside, [0xee; 4096]);
}
