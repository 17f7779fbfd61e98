//! A virtio-mmio register file and its queues, with a driver that does anything.
//!
//! Each step is nine bytes: an action and two numbers. One action is the complete initialization, so that the device
//! reads rings in guest memory, which other actions fill with arbitrary values.
#![no_main]

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};

use devices::virtio::mmio::MmioTransport;
use devices::virtio::mmio::page::RegisterPage;
use devices::virtio::queue::{Demand, Received, Served, VirtQueue};
use devices::virtio::{Activation, DeviceInfo, VirtioDevice};
use devices::{BusDevice, StateError};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MEMORY: usize = 1 << 20;
const QUEUE_SIZE: u16 = 64;
/// Maximum number of bytes of a request that the device reads.
const REQUEST_MAX: usize = 64 << 10;

/// A device with two queues that reads all requests and fills all buffers.
struct Device(Arc<Mutex<Vec<VirtQueue>>>);

impl VirtioDevice for Device {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { device_id: 4, features: 0, queue_sizes: vec![QUEUE_SIZE, QUEUE_SIZE] }
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        *self.0.lock().unwrap() = activation.queues;
        Ok(())
    }

    fn save(&self, _served: &[bool]) -> Result<Vec<u8>, StateError> {
        Ok(Vec::new())
    }
}

fn write(transport: &mut MmioTransport, register: u64, value: u32) {
    transport.write(register, &value.to_le_bytes());
}

/// Initializes the device (VIRTIO 1.2, 3.1.1 and 4.2.3).
fn set_up(transport: &mut MmioTransport, event_idx: bool) {
    for status in [0, 1, 3] {
        write(transport, 0x70, status);
    }
    for (select, features) in [(0, u32::from(event_idx) << 29), (1, 1)] {
        write(transport, 0x24, select);
        write(transport, 0x20, features);
    }
    write(transport, 0x70, 11);
    for queue in 0..2 {
        let base = 0x1000 + queue * 0x4000;
        for (register, value) in [
            (0x30, queue),
            (0x38, QUEUE_SIZE.into()),
            (0x80, base),
            (0x90, base + 0x1000),
            (0xa0, base + 0x2000),
        ] {
            write(transport, register, value);
        }
        write(transport, 0x44, 1);
    }
    write(transport, 0x70, 15);
}

fn serve(queues: &Mutex<Vec<VirtQueue>>) {
    let mut scratch = [0; 4096];
    queues.lock().unwrap().retain_mut(|queue| {
        let served = queue.serve(|reader, mut writer| {
            let mut taken = reader.take(REQUEST_MAX as u64);
            while taken.read(&mut scratch)? > 0 {}
            let room = writer.available_bytes().min(scratch.len());
            writer.write_all(&scratch[..room])?;
            Ok(Served::Done(room as u32))
        });
        served.is_ok()
    });
}

/// Receives two messages, the second of which is too long for some drivers' buffers.
fn receive(queues: &Mutex<Vec<VirtQueue>>) {
    queues.lock().unwrap().retain_mut(|queue| {
        let mut messages = [60, 9000].into_iter();
        let demand = Demand { buffer: 12, message: REQUEST_MAX };
        let received = queue.receive(demand, |room| {
            let Some(len) = messages.next() else { return Received::Nothing };
            room.write(0, &vec![7; len]);
            room.write(10, &(room.buffers_for(len) as u16).to_le_bytes());
            if len > room.len() { Received::Lost } else { Received::Message(len) }
        });
        received.is_ok()
    });
}

fuzz_target!(|data: &[u8]| {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    let queues = Arc::new(Mutex::new(Vec::new()));
    let irq = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let device = Box::new(Device(queues.clone()));
    let page = RegisterPage::unmapped().unwrap();
    let mut transport = MmioTransport::new(device, memory.clone(), irq, page).unwrap();
    for step in data.chunks_exact(9) {
        let number = |at: usize| u32::from_le_bytes([step[at], step[at + 1], step[at + 2], step[at + 3]]);
        let (a, b) = (number(1), number(5));
        match step[0] % 7 {
            0 => set_up(&mut transport, a & 1 == 1),
            1 => write(&mut transport, u64::from(a % 0x120), b),
            2 => {
                let mut bytes = [0; 8];
                transport.read(u64::from(a % 0x120), &mut bytes[..1 << (b % 4)]);
            }
            3 => drop(transport.write(u64::from(a), &step[5..5 + (b as usize % 5)])),
            // Rings and descriptors are in the first pages.
            4 => memory.write_slice(&b.to_le_bytes(), GuestAddress(u64::from(a) % 0x9000)).unwrap(),
            5 => receive(&queues),
            _ => serve(&queues),
        }
    }
    serve(&queues);
});
