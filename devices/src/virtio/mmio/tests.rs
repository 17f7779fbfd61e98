use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vm_memory::{Address, GuestMemory};

use super::*;
use crate::virtio::driver::{Driver, DriverQueue};
use crate::virtio::queue::{QueueError, Served};

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const RUNNING: u32 = 15;

type Writes = Arc<Mutex<Vec<(u64, Vec<u8>)>>>;

/// A device with two queues that keeps the activation it was started with.
#[derive(Clone, Default)]
struct Probe {
    started: Arc<Mutex<Vec<Activation>>>,
    written: Writes,
    fails: bool,
}

impl VirtioDevice for Probe {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { device_id: 42, features: 0b101, queue_sizes: vec![16, 8] }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.iter_mut().zip(offset..).for_each(|(byte, at)| *byte = 0x40_u8.wrapping_add(at as u8));
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.written.lock().unwrap().push((offset, data.to_vec()));
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        if self.fails {
            return Err(io::Error::other("no"));
        }
        self.started.lock().unwrap().push(activation);
        Ok(())
    }

    fn save(&self, served: &[bool]) -> Result<Vec<u8>, StateError> {
        if served[1] { Err(StateError::Busy("the second queue was used")) } else { Ok(b"own".to_vec()) }
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.written.lock().unwrap().push((u64::MAX, state.to_vec()));
        Ok(())
    }
}

fn driver() -> (Driver, Probe) {
    let probe = Probe::default();
    (Driver::new(Box::new(probe.clone())), probe)
}

#[test]
fn the_device_says_what_it_is() {
    let (mut driver, _) = driver();
    for (register, expected) in [
        (VIRTIO_MMIO_MAGIC_VALUE, 0x7472_6976),
        (VIRTIO_MMIO_VERSION, 2),
        (VIRTIO_MMIO_DEVICE_ID, 42),
        (VIRTIO_MMIO_VENDOR_ID, 0x006d_6d76),
        (VIRTIO_MMIO_STATUS, 0),
        (VIRTIO_MMIO_QUEUE_NUM_MAX, 16),
        (VIRTIO_MMIO_QUEUE_READY, 0),
        (VIRTIO_MMIO_INTERRUPT_STATUS, 0),
        (VIRTIO_MMIO_CONFIG_GENERATION, 0),
        (VIRTIO_MMIO_SHM_LEN_LOW, u32::MAX),
        (VIRTIO_MMIO_SHM_LEN_HIGH, u32::MAX),
        (VIRTIO_MMIO_SHM_BASE_LOW, u32::MAX),
        (VIRTIO_MMIO_SHM_BASE_HIGH, u32::MAX),
        (VIRTIO_MMIO_QUEUE_NOTIFY, 0),
        (0xc0, 0),
    ] {
        assert_eq!(driver.read(register), expected, "{register:#x}");
    }
    let ours = 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;
    assert_eq!(driver.offered(), VERSION_1 | ours | 0b101);
    driver.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_FEATURES), 0);
}

#[test]
fn the_drivers_sequence_starts_the_device_once() {
    let (mut driver, probe) = driver();
    let queues = driver.start(u64::MAX);
    assert_eq!((queues.len(), driver.status()), (2, RUNNING));
    driver.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    let started = probe.started.lock().unwrap();
    let [activation] = &started[..] else { panic!("started {} times", started.len()) };
    assert_eq!(activation.features, driver.offered());
    let ready: Vec<_> = activation.queues.iter().map(|q| (q.index(), q.is_ready())).collect();
    assert_eq!(ready, [(0, true), (1, true)]);
}

#[test]
fn features_that_do_not_fit_show_at_features_ok() {
    for (accepted, fits) in [
        (VERSION_1, true),
        (VERSION_1 | 0b101, true),
        (0b101, false),
        (0, false),
        (VERSION_1 | 0b10, false),
        (VERSION_1 | 1 << VIRTIO_F_RING_PACKED, false),
    ] {
        let (mut driver, probe) = driver();
        driver.write(VIRTIO_MMIO_STATUS, 3);
        driver.accept(accepted);
        driver.add_status(VIRTIO_CONFIG_S_FEATURES_OK);
        assert_eq!(driver.status(), if fits { 11 } else { 3 }, "{accepted:#x}");
        driver.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
        assert_eq!(probe.started.lock().unwrap().len(), usize::from(fits), "{accepted:#x}");
    }
}

#[test]
fn features_stay_what_they_were_at_features_ok() {
    let (mut driver, probe) = driver();
    driver.accept(u64::MAX);
    driver.negotiate(VERSION_1);
    driver.accept(u64::MAX);
    driver.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    assert_eq!(probe.started.lock().unwrap()[0].features, VERSION_1);
}

#[test]
fn status_out_of_order_is_ignored() {
    let (mut driver, probe) = driver();
    for (written, expected) in [(4, 0), (15 - 2, 0), (1, 1), (7, 1), (3, 3), (1, 3), (0x8000_0003, 3)] {
        driver.write(VIRTIO_MMIO_STATUS, written);
        assert_eq!(driver.status(), expected, "{written:#x}");
    }
    assert!(probe.started.lock().unwrap().is_empty());
}

#[test]
fn a_queue_is_set_up_only_between_features_ok_and_driver_ok() {
    let (mut driver, probe) = driver();
    driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    driver.negotiate(VERSION_1);
    driver.set_up_queue(0, false);
    driver.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 1);
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 1);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    let mut started = probe.started.lock().unwrap();
    let ready: Vec<_> = started[0].queues.iter().map(VirtQueue::is_ready).collect();
    assert_eq!(ready, [true, false]);
    started[0].queues[1].serve(|_, _| panic!("a queue that is not ready has no request")).unwrap();
}

#[test]
fn a_queue_with_impossible_rings_is_not_ready() {
    let end = crate::virtio::driver::memory().last_addr().raw_value() + 1;
    for (size, table, avail, used) in [
        (0, 0x1000, 0x2000, 0x3000),
        (3, 0x1000, 0x2000, 0x3000),
        (32, 0x1000, 0x2000, 0x3000),
        (0x1_0010, 0x1000, 0x2000, 0x3000),
        (u32::MAX, 0x1000, 0x2000, 0x3000),
        (16, 0x1008, 0x2000, 0x3000),
        (16, 0x1000, 0x2001, 0x3000),
        (16, 0x1000, 0x2000, 0x3002),
        (16, end, 0x2000, 0x3000),
        (16, end - 16, 0x2000, 0x3000),
        (16, 0x1000, end - 2, 0x3000),
        (16, 0x1000, 0x2000, end - 128),
        (16, u64::MAX - 15, 0x2000, 0x3000),
        (16, 0x1000, u64::MAX - 1, 0x3000),
        (16, 0x1000, 0x2000, u64::MAX - 3),
    ] {
        let (mut driver, _) = driver();
        driver.negotiate(VERSION_1);
        set_rings(&mut driver, size, [table, avail, used]);
        let what = format!("{size} {table:#x} {avail:#x} {used:#x}");
        assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0, "{what}");
        assert_ne!(driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0, "{what}");
        driver.write(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(driver.status(), 0, "{what}");
    }
}

#[test]
fn rings_may_end_where_memory_ends() {
    let end = crate::virtio::driver::memory().last_addr().raw_value() + 1;
    let (mut driver, _) = driver();
    driver.negotiate(VERSION_1);
    set_rings(&mut driver, 16, [end - 256, 0x2000, 0x3000]);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 1);
}

fn set_rings(driver: &mut Driver, size: u32, addresses: [u64; 3]) {
    driver.write(VIRTIO_MMIO_QUEUE_NUM, size);
    let registers = [VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_USED_LOW];
    for (low, address) in registers.into_iter().zip(addresses) {
        driver.write(low, address as u32);
        driver.write(low + 4, (address >> 32) as u32);
    }
    driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
}

#[test]
fn a_ready_queue_keeps_its_rings() {
    let (mut driver, _) = driver();
    driver.negotiate(VERSION_1);
    driver.set_up_queue(0, false);
    driver.write(VIRTIO_MMIO_QUEUE_DESC_LOW, 0xffff_fff0);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.status(), 11);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    driver.write(VIRTIO_MMIO_QUEUE_DESC_LOW, 0xffff_fff0);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
}

#[test]
fn queues_that_do_not_exist_are_empty() {
    let (mut driver, _) = driver();
    driver.negotiate(VERSION_1);
    for select in [2, 0x1_0000, u32::MAX] {
        driver.write(VIRTIO_MMIO_QUEUE_SEL, select);
        set_rings(&mut driver, 8, [0x1000, 0x2000, 0x3000]);
        assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    }
    driver.kick(2);
    driver.kick(u32::MAX);
    assert!(driver.transport.kicks().iter().all(|kick| kick.read().is_err()));
}

#[test]
fn a_kick_that_reaches_user_space_fires_its_queue_alone() {
    let (mut driver, _) = driver();
    driver.kick(1);
    driver.kick(1);
    let kicks: Vec<_> = driver.transport.kicks().iter().map(|kick| kick.read().unwrap_or(0)).collect();
    assert_eq!(kicks, [0, 2]);
}

#[test]
fn interrupts_and_generation_show_in_registers() {
    let (mut driver, probe) = driver();
    driver.start(VERSION_1);
    let interrupt = probe.started.lock().unwrap()[0].interrupt.clone();
    interrupt.used_buffers();
    interrupt.config_changed();
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 3);
    assert_eq!(driver.read(VIRTIO_MMIO_CONFIG_GENERATION), 1);
    driver.write(VIRTIO_MMIO_INTERRUPT_ACK, 3);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 1, "each interrupt may be one for used buffers");
    interrupt.needs_reset(format_args!("test"));
    assert_eq!(driver.status(), RUNNING | VIRTIO_CONFIG_S_NEEDS_RESET);
    driver.add_status(0);
    assert_eq!(driver.status(), RUNNING | VIRTIO_CONFIG_S_NEEDS_RESET);
}

#[test]
fn a_device_that_does_not_start_asks_for_a_reset() {
    let mut driver = Driver::new(Box::new(Probe { fails: true, ..Probe::default() }));
    driver.start(VERSION_1);
    assert_eq!(driver.status(), RUNNING | VIRTIO_CONFIG_S_NEEDS_RESET);
    assert_eq!(driver.interrupts(), 1);
    driver.write(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(driver.status(), 0);
}

#[test]
fn a_reset_forgets_everything() {
    let (mut driver, probe) = driver();
    driver.negotiate(u64::MAX);
    driver.set_up_queue(1, false);
    driver.write(VIRTIO_MMIO_STATUS, 0);
    assert_eq!((driver.status(), driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX)), (0, 16));
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    driver.write(VIRTIO_MMIO_STATUS, 3);
    driver.add_status(VIRTIO_CONFIG_S_FEATURES_OK);
    assert_eq!(driver.status(), 3, "accepted features are forgotten");
    assert!(probe.started.lock().unwrap().is_empty());
}

/// The guest kernel does not write what a reset leaves (`virtio-mmio-setup.patch`).
#[test]
fn a_queue_has_its_maximum_size_and_low_addresses_after_a_reset() {
    // The descriptors of 16 entries take 256 bytes: they fit at the end of memory, but not 16 bytes later.
    let end = crate::virtio::driver::memory().last_addr().raw_value() + 1;
    for (descriptors, ready) in [(end - 256, 1), (end - 240, 0)] {
        let (mut driver, _) = driver();
        driver.negotiate(VERSION_1);
        set_rings(&mut driver, 4, [1 << 32; 3]);
        driver.write(VIRTIO_MMIO_STATUS, 0);
        driver.negotiate(VERSION_1);
        driver.write(VIRTIO_MMIO_QUEUE_DESC_LOW, descriptors as u32);
        driver.write(VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0x2000);
        driver.write(VIRTIO_MMIO_QUEUE_USED_LOW, 0x3000);
        driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), ready);
    }
}

#[test]
fn a_reset_takes_started_queues_back() {
    let (mut driver, probe) = driver();
    let mut rings = driver.start(VERSION_1);
    rings[0].send(b"late");
    let mut old = probe.started.lock().unwrap().pop().unwrap();
    driver.write(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(driver.status(), 0);
    assert!(old.queues[0].kick().read().is_ok(), "the owner is woken");
    let result = old.queues[0].serve(|_, _| panic!("the rings are the driver's again"));
    assert!(matches!(result, Err(QueueError::Reset { index: 0 })));
    assert!(rings[0].completed().is_empty());

    let mut rings = driver.start(VERSION_1);
    rings[0].send(b"new");
    let mut new = probe.started.lock().unwrap().pop().unwrap();
    new.queues[0].serve(|_, _| Ok(Served::Done(0))).unwrap();
    assert_eq!(rings[0].completed().len(), 1);
}

#[test]
fn a_reset_shows_when_the_request_in_work_is_done() {
    let (mut driver, probe) = driver();
    let mut rings = driver.start(VERSION_1);
    rings[0].send(b"1");
    rings[0].send(b"2");
    let mut activation = probe.started.lock().unwrap().pop().unwrap();
    let mut served = 0;
    activation.queues[0]
        .serve(|_, _| {
            served += 1;
            driver.write(VIRTIO_MMIO_STATUS, 0);
            assert_eq!(driver.status(), RUNNING);
            assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
            driver.write(VIRTIO_MMIO_STATUS, 1);
            assert_eq!(driver.status(), RUNNING);
            Ok(Served::Done(0))
        })
        .unwrap();
    assert_eq!((served, driver.status()), (1, 0));
}

#[test]
fn odd_accesses_read_zero_and_do_nothing() {
    let (mut driver, _) = driver();
    driver.start(VERSION_1);
    for (offset, len) in [
        (0, 0),
        (0, 1),
        (0, 2),
        (0, 8),
        (1, 4),
        (2, 4),
        (0x70, 1),
        (0x70, 8),
        (0x71, 4),
        (0xfe, 4),
        (0xfc, 8),
    ] {
        let mut data = vec![0xaa; len];
        driver.transport.read(offset, &mut data);
        assert!(data.iter().all(|byte| *byte == 0), "{offset:#x} {len}");
        driver.transport.write(offset, &vec![0; len]);
        assert_eq!(driver.status(), RUNNING, "{offset:#x} {len}");
    }
}

#[test]
fn the_configuration_belongs_to_the_device() {
    let (mut driver, probe) = driver();
    let mut data = [0; 2];
    driver.transport.read(0x105, &mut data);
    assert_eq!(data, [0x45, 0x46]);
    driver.transport.write(0x1ff, &[9]);
    assert_eq!(*probe.written.lock().unwrap(), [(0xff, vec![9])]);
}

proptest! {
    /// For any writes by the guest, the device answers, starts only after a correct sequence, and never gets a ring
    /// outside of memory.
    #[test]
    fn no_write_does_harm(
        writes in prop::collection::vec(
            (0u64..0x120, any::<u32>(), prop::sample::select(vec![1, 2, 4, 4, 4, 8])),
            0..200,
        ),
        lead in prop::bool::ANY,
    ) {
        let (mut driver, probe) = driver();
        if lead {
            driver.negotiate(VERSION_1);
        }
        for (offset, value, len) in writes {
            // Small values reach more of the states than random ones.
            let value = if value & 1 == 0 { value >> 1 & 0xf } else { value };
            let bytes = u64::from(value).to_le_bytes();
            driver.transport.write(offset & !u64::from(value & 2 != 0), &bytes[..len]);
            let mut data = [0; 8];
            driver.transport.read(offset, &mut data[..len]);
            driver.read(offset as u32 & !3);
        }
        for activation in probe.started.lock().unwrap().iter_mut() {
            prop_assert_ne!(activation.features & VERSION_1, 0);
            for queue in &mut activation.queues {
                let _ = queue.serve(|_, _| Ok(Served::Done(0)));
            }
        }
        driver.write(VIRTIO_MMIO_STATUS, 0);
        prop_assert_eq!(driver.status(), 0);
    }
}

#[test]
fn an_event_index_counts_only_if_it_was_agreed_on() {
    for event_idx in [false, true] {
        let (mut driver, probe) = driver();
        let mask = VERSION_1 | if event_idx { 1 << VIRTIO_RING_F_EVENT_IDX } else { 0 };
        let mut rings = driver.start(mask);
        let queue: &mut DriverQueue = &mut rings[0];
        queue.send(b"x");
        let mut activation = probe.started.lock().unwrap().pop().unwrap();
        activation.queues[0].serve(|_, _| Ok(Served::Done(0))).unwrap();
        assert_eq!(queue.kick_wanted_at(), u16::from(event_idx));
    }
}

#[test]
fn a_started_device_continues_behind_other_registers() {
    let (mut driver, probe) = driver();
    let mut queues = driver.start(u64::MAX);
    let mut activation = probe.started.lock().unwrap().pop().unwrap();
    queues[0].send(b"before");
    queues[0].send(b"before");
    activation.queues[0].serve(|_, _| Ok(Served::Done(0))).unwrap();
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 1);
    // The driver has added this request, and nobody has seen its kick.
    queues[0].send(b"after");
    let state = driver.transport.save().unwrap();

    let other = Probe::default();
    let mut moved = Driver::with(driver.memory.clone(), Box::new(other.clone()));
    moved.transport.restore(&state).unwrap();
    assert_eq!((moved.status(), moved.read(VIRTIO_MMIO_QUEUE_NUM_MAX)), (RUNNING, 8));
    assert_eq!(moved.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    assert!(moved.interrupts() > 0, "an interrupt that the guest did not see may be lost");
    assert_eq!(other.written.lock().unwrap()[..], [(u64::MAX, b"own".to_vec())]);
    let mut activation = other.started.lock().unwrap().pop().unwrap();
    assert_eq!(activation.features, driver.offered());
    assert!(activation.queues[0].kick().read().is_ok(), "a kick that the device did not see is lost");
    let mut served = Vec::new();
    let serve = activation.queues[0].serve(|mut reader, _| {
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut reader, &mut bytes)?;
        served.push(bytes);
        Ok(Served::Done(0))
    });
    serve.unwrap();
    assert_eq!(served, [b"after"]);
    assert_eq!(queues[0].completed().len(), 3);
}

#[test]
fn a_device_that_was_not_started_continues_as_such() {
    let (mut fresh, _) = driver();
    let state = fresh.transport.save().unwrap();
    let (mut moved, probe) = driver();
    moved.transport.restore(&state).unwrap();
    assert_eq!((moved.status(), moved.interrupts()), (0, 0));
    assert_eq!(probe.started.lock().unwrap().len(), 0);
    moved.start(u64::MAX);
    assert_eq!(probe.started.lock().unwrap().len(), 1);
}

#[test]
fn what_cannot_be_saved_or_continued_is_refused() {
    let (mut used, probe) = driver();
    let mut queues = used.start(u64::MAX);
    queues[1].send(b"request");
    let mut activation = probe.started.lock().unwrap().pop().unwrap();
    activation.queues[1].serve(|_, _| Ok(Served::Done(0))).unwrap();
    assert_eq!(used.transport.save(), Err(StateError::Busy("the second queue was used")));
    activation.interrupt.needs_reset(format_args!("test"));
    assert_eq!(used.transport.save(), Err(StateError::Busy("a device needs a reset")));

    let (mut started, _) = driver();
    started.start(u64::MAX);
    let state = started.transport.save().unwrap();
    let (mut other, probe) = driver();
    assert!(matches!(other.transport.restore(&state[..state.len() - 1]), Err(StateError::Damaged(_))));
    assert!(matches!(other.transport.restore(&[&state[..], &[0]].concat()), Err(StateError::Damaged(_))));
    assert!(matches!(other.transport.restore(&[&[43], &state[1..]].concat()), Err(StateError::Foreign(_))));
    assert_eq!(probe.started.lock().unwrap().len(), 0);
    let fails = Probe { fails: true, ..Probe::default() };
    let mut failing = Driver::with(started.memory.clone(), Box::new(fails));
    assert_eq!(failing.transport.restore(&state), Err(StateError::Busy("the device did not start")));
}

proptest! {
    #[test]
    fn no_state_does_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let (mut started, _) = driver();
        started.start(u64::MAX);
        let mut state = started.transport.save().unwrap();
        for (at, byte) in changes {
            let at = at.index(state.len());
            state[at] = byte;
        }
        let len = cut.index(2 * state.len()).min(state.len());
        let (mut other, _) = driver();
        let _ = other.transport.restore(&state[..len]);
        other.write(VIRTIO_MMIO_STATUS, 0);
        prop_assert_eq!(other.status(), 0);
    }
}
