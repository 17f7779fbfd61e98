use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_STATUS};
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::Bytes;
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::BusDevice;
use crate::virtio::driver::{Driver, DriverQueue, Loop, gate};
use crate::virtio::hostile::zero;
use crate::virtio::queue::QueueLinks;

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
/// Address of the pages that the tests report, after all rings.
const DATA: u64 = 0x10_0000;
/// Size of memory in bytes: more than one report may have.
const MEMORY_LEN: usize = 2 * REPORT_MAX as usize;

fn guest() -> (Loop, Driver, Vec<DriverQueue>) {
    let mut events = Loop::new();
    let mut driver = Driver::new(Box::new(Balloon::new(events.handle(), zero)));
    let queues = driver.start(u64::MAX);
    events.turn();
    (events, driver, queues)
}

/// Reports ranges of address, length and flags, in memory that has 7 in each byte of four pages. Returns the first byte
/// of these pages, and the number of faults.
fn report(ranges: &[(u64, u32, u16)]) -> ([u8; 4], u64) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_LEN)]).unwrap();
    let mock = MockSplitQueue::new(&memory, 64);
    for (index, (address, len, flags)) in (0..).zip(ranges) {
        let next = if usize::from(index) + 1 < ranges.len() { NEXT } else { 0 };
        let descriptor = Descriptor::new(*address, *len, flags | next, index + 1);
        mock.desc_table().store(index, RawDescriptor::from(descriptor)).unwrap();
    }
    mock.avail().idx().store(1u16.to_le());
    memory.write_slice(&[7; 4 * PAGE as usize], GuestAddress(DATA)).unwrap();
    let fd = || Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let interrupt = Interrupt::new(fd());
    let links = QueueLinks { memory: memory.clone(), kick: fd(), interrupt, gate: gate() };
    let mut queue = VirtQueue::new(2, mock.create_queue().unwrap(), links);
    take_report(&mut queue, zero).unwrap();
    assert_eq!(mock.used().idx().load(), 1, "{ranges:x?} is not completed");
    let first = |page| memory.read_obj(GuestAddress(DATA + page * PAGE)).unwrap();
    ([0, 1, 2, 3].map(first), queue.faults())
}

#[test]
fn whole_pages_of_reported_ranges_are_discarded() {
    const PAGES: u32 = PAGE as u32;
    for (ranges, pages) in [
        (&[(DATA, PAGES, WRITE)][..], [0, 7, 7, 7]),
        (&[(DATA + 3 * PAGE, PAGES, WRITE), (DATA, 2 * PAGES, WRITE)], [0, 0, 7, 0]),
        // Parts of pages stay.
        (&[(DATA + 1, 3 * PAGES, WRITE)], [7, 0, 0, 7]),
        (&[(DATA, 2 * PAGES - 1, WRITE)], [0, 7, 7, 7]),
    ] {
        assert_eq!(report(ranges), (pages, 0), "{ranges:x?}");
    }
}

#[test]
fn invalid_ranges_are_counted_and_stay() {
    let end = MEMORY_LEN as u64;
    let max = REPORT_MAX as u32;
    for range in [
        (DATA, 4096, 0),
        (DATA, 4095, WRITE),
        (DATA + 1, 8190, WRITE),
        (DATA, max + 1, WRITE),
        (DATA, u32::MAX, WRITE),
        (end, 4096, WRITE),
        (end - 4096, 8192, WRITE),
        (u64::MAX - 4095, 4096, WRITE),
        (u64::MAX, 4096, WRITE),
    ] {
        assert_eq!(report(&[range]), ([7; 4], 1), "{range:x?}");
    }
}

#[test]
fn a_report_is_limited_in_ranges_and_bytes() {
    let far = DATA + 4 * PAGE;
    let ranges = |count| {
        let mut ranges = vec![(far, 4096, WRITE); count];
        ranges.push((DATA, 4096, WRITE));
        ranges
    };
    let max = usize::from(RANGES_MAX);
    assert_eq!(report(&ranges(max - 1)), ([0, 7, 7, 7], 0));
    assert_eq!(report(&ranges(max)), ([7; 4], 1));
    let bytes = |len| [(far, REPORT_MAX as u32 - 4096, WRITE), (DATA, len, WRITE)];
    assert_eq!(report(&bytes(4096)), ([0, 7, 7, 7], 0));
    assert_eq!(report(&bytes(4097)), ([7; 4], 1));
}

#[test]
fn each_turn_of_the_loop_serves_one_report() {
    let (mut events, mut driver, mut queues) = guest();
    let queue = &mut queues[REPORTING];
    queue.fill(4096);
    driver.kick(REPORTING as u32);
    for _ in 0..3 {
        events.turn_at_most(1);
        assert_eq!(queue.completed(), [b""]);
        assert_eq!(driver.interrupts(), 1);
    }
    events.turn();
    assert_eq!(queue.completed().len(), usize::from(RANGES_MAX) - 3);
    // The queue asks for kicks again.
    queue.fill(4096);
    assert_eq!(queue.kick_wanted_at(), queue.avail_index() - RANGES_MAX);
}

#[test]
fn pages_for_the_balloon_are_refused() {
    let (mut events, mut driver, mut queues) = guest();
    for (index, queue) in (0..).zip(&mut queues[..REPORTING]) {
        queue.send(&[1, 0, 0, 0]);
        queue.fill(4096);
        driver.kick(index);
        events.turn();
        assert_eq!(queue.completed(), vec![b""; usize::from(RANGES_MAX)]);
    }
}

#[test]
fn the_driver_s_size_is_read_back_until_a_reset() {
    let (_events, mut driver, _queues) = guest();
    let config = |driver: &mut Driver| {
        let mut data = [0xff; 16];
        driver.transport.read(VIRTIO_MMIO_CONFIG.into(), &mut data);
        data
    };
    assert_eq!(config(&mut driver), [0; 16]);
    for (offset, data) in [(0, &[1; 4][..]), (4, &[2; 4]), (4, &[3; 8]), (5, &[4; 4]), (8, &[5; 4])] {
        driver.transport.write(u64::from(VIRTIO_MMIO_CONFIG) + offset, data);
    }
    assert_eq!(config(&mut driver), [0, 0, 0, 0, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0]);
    driver.write(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(config(&mut driver), [0; 16]);
}

#[test]
fn broken_rings_ask_for_a_reset_which_starts_anew() {
    let (mut events, mut driver, mut queues) = guest();
    queues[REPORTING].set_avail(100);
    driver.kick(REPORTING as u32);
    events.turn();
    assert_ne!(driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    for _ in 0..2 {
        driver.write(VIRTIO_MMIO_STATUS, 0);
        queues = driver.start(u64::MAX);
        events.turn();
        queues[REPORTING].fill(4096);
        driver.kick(REPORTING as u32);
        events.turn();
        assert_eq!(queues[REPORTING].completed().len(), usize::from(RANGES_MAX));
        assert_eq!(driver.status(), 15);
    }
}
