use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS;

use super::*;
use crate::BusDevice;
use crate::virtio::driver::{BUFFER_LEN, Driver, DriverQueue, Loop};

fn guest() -> (Loop, Driver, DriverQueue) {
    let mut events = Loop::new();
    let mut driver = Driver::new(Box::new(Rng::new(events.handle())));
    let queue = driver.start(u64::MAX).pop().unwrap();
    events.turn();
    (events, driver, queue)
}

#[test]
fn buffers_are_filled_with_different_bytes() {
    let (mut events, mut driver, mut queue) = guest();
    queue.fill(64);
    driver.kick(0);
    events.turn();
    let buffers = queue.completed();
    assert_eq!(buffers.len(), 4);
    assert!(buffers.iter().all(|buffer| buffer.len() == 64));
    assert_ne!(buffers[0], buffers[1]);
    assert_eq!(driver.interrupts(), 1);
}

#[test]
fn one_request_gets_a_bounded_share() {
    let (mut events, mut driver, mut queue) = guest();
    queue.fill(BUFFER_LEN);
    driver.kick(0);
    events.turn();
    assert!(queue.completed().iter().all(|buffer| buffer.len() == MAX_ENTROPY));
}

#[test]
fn a_buffer_to_read_is_refused() {
    let (mut events, mut driver, mut queue) = guest();
    queue.send(b"entropy for the host");
    driver.kick(0);
    events.turn();
    assert_eq!(queue.completed(), [b""]);
}

#[test]
fn broken_rings_ask_for_a_reset_which_starts_anew() {
    let (mut events, mut driver, queue) = guest();
    let mut queue = queue;
    queue.set_avail(100);
    driver.kick(0);
    events.turn();
    assert_ne!(driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    for _ in 0..2 {
        driver.write(VIRTIO_MMIO_STATUS, 0);
        queue = driver.start(u64::MAX).pop().unwrap();
        events.turn();
        queue.fill(16);
        driver.kick(0);
        events.turn();
        assert_eq!(queue.completed().len(), 4);
        assert_eq!(driver.status(), 15);
    }
}

#[test]
fn a_request_that_was_not_answered_is_answered_behind_other_registers() {
    let (_, mut driver, mut queue) = guest();
    queue.fill(16);
    driver.kick(0);
    let state = driver.transport.save().unwrap();
    let mut events = Loop::new();
    let mut moved = Driver::with(driver.memory.clone(), Box::new(Rng::new(events.handle())));
    moved.transport.restore(&state).unwrap();
    events.turn();
    let answers = queue.completed();
    assert_eq!(answers.len(), 4);
    assert!(answers.iter().all(|bytes| bytes.len() == 16 && bytes.iter().any(|byte| *byte != 0)));
}
