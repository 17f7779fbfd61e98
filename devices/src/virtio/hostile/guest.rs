//! The hostile guest: registers, rings and buffers.

use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Step, Subject};
use crate::BusDevice;
use crate::virtio::driver::Driver;
use crate::virtio::mmio::MMIO_SIZE;

/// Address of the first queue, and distance between two queues.
const RINGS: u64 = 0x1000;
const STRIDE: u64 = 0x4000;
/// Offsets of the three areas of a queue.
const PARTS: [u64; 3] = [0, 0x2000, 0x2800];
/// Address of the buffers.
pub const BUFFERS: u64 = 0x40_000;
/// Length of all buffers in bytes.
const BUFFERS_LEN: u64 = 0x40_000;
/// Number of queues of a console with three ports.
const QUEUES_MAX: u8 = 8;
/// Lengths that are likely to reveal bugs.
const LENGTHS: [u32; 14] =
    [1, 8, 12, 24, 40, 60, 72, 100, 0x1000, 0x1_0000, 0x10_0000, 0, 0x400_0000, u32::MAX];
/// Limit of writes to memory in one step.
const SCRIBBLES_MAX: u16 = 2000;
/// Message types of 9P2000.L requests.
const P9_TYPES: [u8; 16] = [8, 12, 14, 24, 26, 30, 32, 40, 50, 70, 72, 100, 104, 110, 116, 118];

/// A driver that does not follow the protocol.
pub struct Guest {
    subject: Subject,
    pub driver: Driver,
}

/// FUSE_INIT of version 7.38.
pub fn fuse_init() -> Vec<u8> {
    fuse(26, 0, &[7u32, 38, 128 << 10, 0].map(u32::to_le_bytes).concat())
}

/// TVERSION of 9P2000.L.
pub fn p9_version() -> Vec<u8> {
    p9(100, &[&0x1_0000u32.to_le_bytes()[..], &8u16.to_le_bytes(), b"9P2000.L"].concat())
}

/// Returns a FUSE request of root for a node.
pub fn fuse(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(40 + body.len());
    bytes.extend_from_slice(&((40 + body.len()) as u32).to_le_bytes());
    bytes.extend_from_slice(&opcode.to_le_bytes());
    for word in [1, node, 0, 0] {
        bytes.extend_from_slice(&u64::to_le_bytes(word));
    }
    bytes.extend_from_slice(body);
    bytes
}

fn p9(kind: u8, body: &[u8]) -> Vec<u8> {
    [&((7 + body.len()) as u32).to_le_bytes()[..], &[kind, 1, 0], body].concat()
}

/// Returns reproducible pseudo-random numbers (xorshift).
fn shuffled(mut state: u64) -> impl FnMut() -> u64 {
    state |= 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

impl Guest {
    pub fn new(subject: Subject, driver: Driver) -> Guest {
        Guest { subject, driver }
    }

    /// Waits for an interrupt, at most so many milliseconds.
    pub fn wait(&mut self, milliseconds: i32) {
        self.driver.wait_for_interrupt(milliseconds);
        self.driver.interrupts();
    }

    /// Writes to guest memory. Bytes outside of it are ignored.
    pub fn write(&self, data: &[u8], address: u64) {
        let _ = self.driver.memory.write_slice(data, GuestAddress(address));
    }

    /// Executes one step.
    pub fn take(&mut self, step: &Step) {
        let (a, b) = (step.a, step.b);
        match step.what % 16 {
            0 | 1 => self.start(step),
            2 => self.driver.write(VIRTIO_MMIO_STATUS, 0),
            3 => self.driver.write(a % 0x120, b),
            4 => {
                let mut data = [0; 8];
                self.driver.transport.read(u64::from(a) % MMIO_SIZE, &mut data[..1 << (b % 4)]);
            }
            5 => {
                let data = &b.to_le_bytes()[..1 << (step.choice % 3)];
                self.driver.transport.write(u64::from(a) % MMIO_SIZE, data);
            }
            6 => {
                let part = PARTS[usize::from(step.choice % 3)];
                self.write(&b.to_le_bytes(), ring(step.queue, part) + u64::from(a % 0x60));
            }
            7 => self.driver.kick(u32::from(step.queue % QUEUES_MAX)),
            8 | 9 => self.request(step),
            _ => self.offer(step),
        }
    }

    /// Resets the device and starts it with the queues that the step describes.
    fn start(&mut self, step: &Step) {
        let mask = match step.a % 4 {
            0 | 1 => u64::MAX,
            2 => 1 << 32,
            _ => u64::from(step.a) << 32 | u64::from(step.b) | 1 << 32,
        };
        self.driver.negotiate(mask);
        for queue in 0..self.driver.transport.kicks().len() as u8 {
            if step.choice % 4 == 3 && step.b >> (queue % 32) & 1 == 0 {
                continue;
            }
            self.driver.write(VIRTIO_MMIO_QUEUE_SEL, queue.into());
            let max = self.driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX);
            let size = if step.choice & 4 == 0 { max } else { max >> (step.choice >> 4 & 3) };
            self.driver.write(VIRTIO_MMIO_QUEUE_NUM, size);
            // Sometimes rings overlap each other or the buffers.
            let shift = if step.choice & 8 == 0 { 0 } else { u64::from(step.b & 0xffff0) };
            for (register, part) in
                [VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_USED_LOW]
                    .into_iter()
                    .zip(PARTS)
            {
                self.driver.write(register, (ring(queue, part) + shift) as u32);
                self.driver.write(register + 4, 0);
            }
            if shift == 0 {
                self.write(&[0; 4], ring(queue, PARTS[1]));
                self.write(&[0; 4], ring(queue, PARTS[2]));
            }
            self.driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
        }
        self.driver.add_status(4);
    }

    /// Makes a chain of one to four descriptors available, and kicks.
    fn offer(&mut self, step: &Step) {
        let count = (step.a >> 8) % 4;
        let writable = step.choice & 1 == 0;
        for index in 0..=count {
            let mut flags = if writable { VRING_DESC_F_WRITE } else { 0 };
            flags |= if index < count { VRING_DESC_F_NEXT } else { 0 };
            flags |= if step.choice & 0xf0 == 0x10 { VRING_DESC_F_INDIRECT } else { 0 };
            let address = BUFFERS + (u64::from(step.b) + u64::from(index) * 0x1000) % BUFFERS_LEN;
            let len = LENGTHS[(step.a as usize + index as usize) % LENGTHS.len()];
            self.descriptor(step.queue, index as u16, (address, len, flags as u16));
        }
        self.available(step.queue, 0);
    }

    /// Sends a plausible request of the device's protocol, with space for a reply.
    fn request(&mut self, step: &Step) {
        let mut number = shuffled(u64::from(step.b) << 16 | u64::from(step.choice));
        let body: Vec<u8> =
            (0..step.choice % 160).map(|_| (number() % 9) as u8 * (number() % 3) as u8).collect();
        let (queue, bytes) = match self.subject {
            Subject::Console if step.a & 1 == 0 => {
                let message =
                    (u64::from(step.b) % 4) | u64::from(step.choice % 8) << 32 | (number() % 3) << 48;
                (3, message.to_le_bytes().to_vec())
            }
            Subject::Console => (step.queue | 1, body),
            Subject::Net | Subject::LentNet | Subject::Slot => (1, [&[0; 26], &body[..]].concat()),
            Subject::Rng => (0, Vec::new()),
            Subject::Balloon => (2, Vec::new()),
            // The request queue with and without notifications.
            Subject::Fs => (1 + step.queue % 2, fuse(step.a % 56, u64::from(step.b) % 8, &body)),
            Subject::P9 => (0, p9(P9_TYPES[step.a as usize % P9_TYPES.len()], &body)),
        };
        let place = BUFFERS + u64::from(step.a >> 8) % BUFFERS_LEN / 2;
        self.write(&bytes, place);
        let answered = matches!(self.subject, Subject::Fs | Subject::P9);
        let room = (place + 0x1000, 0x1_0000, VRING_DESC_F_WRITE as u16);
        if bytes.is_empty() {
            self.descriptor(queue, 0, room);
        } else {
            let flags = if answered { VRING_DESC_F_NEXT } else { 0 };
            self.descriptor(queue, 0, (place, bytes.len() as u32, flags as u16));
            self.descriptor(queue, 1, room);
        }
        self.available(queue, 0);
    }

    fn descriptor(&self, queue: u8, index: u16, (address, len, flags): (u64, u32, u16)) {
        let entry = u128::from(address) | u128::from(len) << 64 | u128::from(flags) << 96;
        let next = u128::from(index + 1) << 112;
        self.write(&(entry | next).to_le_bytes(), ring(queue, PARTS[0]) + 16 * u64::from(index));
    }

    /// Adds `head` to the available ring, increments the index, and kicks.
    fn available(&mut self, queue: u8, head: u16) {
        let at = ring(queue, PARTS[1]);
        let index: u16 = self.driver.memory.read_obj(GuestAddress(at + 2)).unwrap_or(0);
        // The queue may have any of these sizes: write the entry at the place for each.
        for size in [4, 16, 64, 128, 256, 512] {
            self.write(&head.to_le_bytes(), at + 4 + 2 * u64::from(index % size));
        }
        self.write(&index.wrapping_add(1).to_le_bytes(), at + 2);
        self.driver.kick(u32::from(queue % QUEUES_MAX));
    }

    /// Returns a function for a separate thread that writes random data to rings and buffers.
    pub fn scribbler(&self, step: &Step) -> impl FnOnce() + Send + use<> {
        let memory: GuestMemoryMmap = self.driver.memory.clone();
        let (queue, count) = (step.queue, step.choice % SCRIBBLES_MAX);
        let mut number = shuffled(u64::from(step.a) << 32 | u64::from(step.b));
        move || {
            for _ in 0..count {
                let (value, at) = (number(), number());
                let address = match at % 4 {
                    0 => BUFFERS + (at >> 8) % BUFFERS_LEN,
                    1 => ring(queue, PARTS[0]) + (at >> 8) % 0x80,
                    2 => ring(queue, PARTS[1]) + (at >> 8) % 0x20,
                    _ => ring(queue, PARTS[2]) + (at >> 8) % 0x20,
                };
                // Small numbers are more effective than large ones.
                let value = if value & 0x300 == 0 { value } else { value & 0xff };
                let _ = memory.write_slice(&(value as u32).to_le_bytes(), GuestAddress(address));
            }
        }
    }
}

/// Returns the address of an area of a queue.
fn ring(queue: u8, part: u64) -> u64 {
    RINGS + STRIDE * u64::from(queue % QUEUES_MAX) + part
}
