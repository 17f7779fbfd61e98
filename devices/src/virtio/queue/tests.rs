use proptest::prelude::*;
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;

use std::io::{Read, Write};

use super::*;
use crate::virtio::driver::{self, AVAIL, DriverQueue, USED};

const SIZE: u16 = 16;
const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
/// Address for the tests' data, after all rings.
const DATA: u64 = 0x10_0000;

fn links(memory: &GuestMemoryMmap) -> QueueLinks {
    let fd = || Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    QueueLinks { memory: memory.clone(), kick: fd(), interrupt: Interrupt::new(fd()), gate: driver::gate() }
}

fn virt_queue(mock: &MockSplitQueue<GuestMemoryMmap>, memory: &GuestMemoryMmap) -> VirtQueue {
    VirtQueue::new(0, mock.create_queue().unwrap(), links(memory))
}

fn raw((address, len, flags, next): (u64, u32, u16, u16)) -> RawDescriptor {
    RawDescriptor::from(Descriptor::new(address, len, flags, next))
}

/// Writes raw descriptors to the table from index 0, and makes `head` available.
fn with_chain(descriptors: &[(u64, u32, u16, u16)], head: u16) -> (GuestMemoryMmap, VirtQueue) {
    let memory = driver::memory();
    let mock = MockSplitQueue::new(&memory, SIZE);
    for (index, descriptor) in (0..).zip(descriptors) {
        mock.desc_table().store(index, raw(*descriptor)).unwrap();
    }
    mock.avail().ring().ref_at(0).unwrap().store(head.to_le());
    mock.avail().idx().store(1u16.to_le());
    let queue = virt_queue(&mock, &memory);
    (memory, queue)
}

fn used(memory: &GuestMemoryMmap, queue: &VirtQueue) -> Vec<(u32, u32)> {
    let ring = GuestAddress(queue.queue.used_ring());
    let end: u16 = memory.read_obj(GuestAddress(ring.0 + 2)).unwrap();
    let entry = |n: u16| {
        let at = ring.0 + 4 + 8 * u64::from(n % SIZE);
        let id = memory.read_obj(GuestAddress(at)).unwrap();
        (id, memory.read_obj(GuestAddress(at + 4)).unwrap())
    };
    (0..end).map(entry).collect()
}

#[test]
fn a_request_is_read_written_and_completed() {
    let (memory, mut queue) =
        with_chain(&[(DATA, 3, NEXT, 1), (DATA + 0x100, 2, NEXT, 2), (DATA + 0x200, 8, WRITE, 0)], 0);
    memory.write_slice(b"abc", GuestAddress(DATA)).unwrap();
    memory.write_slice(b"de", GuestAddress(DATA + 0x100)).unwrap();
    queue
        .serve(|mut request, mut reply| {
            let mut text = String::new();
            request.read_to_string(&mut text).unwrap();
            reply.write_all(text.to_uppercase().as_bytes()).unwrap();
            Ok(Served::Done(text.len() as u32))
        })
        .unwrap();
    assert_eq!(used(&memory, &queue), [(0, 5)]);
    let mut reply = [0; 8];
    memory.read_slice(&mut reply, GuestAddress(DATA + 0x200)).unwrap();
    assert_eq!(&reply, b"ABCDE\0\0\0");
    assert_eq!((interrupts(&queue), queue.faults()), (1, 0));
}

#[test]
fn an_indirect_table_is_followed() {
    let (memory, mut queue) = with_chain(&[(DATA, 32, INDIRECT, 0)], 0);
    memory.write_obj(raw((DATA + 0x100, 4, NEXT, 1)), GuestAddress(DATA)).unwrap();
    memory.write_obj(raw((DATA + 0x200, 4, WRITE, 0)), GuestAddress(DATA + 16)).unwrap();
    let mut lens = (0, 0);
    queue
        .serve(|request, reply| {
            lens = (request.available_bytes(), reply.available_bytes());
            Ok(Served::Done(4))
        })
        .unwrap();
    assert_eq!((lens, used(&memory, &queue)), ((4, 4), vec![(0, 4)]));
}

/// Malformed chains must be completed with length 0 and counted, and never reach a device.
#[test]
fn malformed_chains_are_completed_empty() {
    let far = 1 << 40;
    for (what, descriptors) in [
        ("loop", &[(DATA, 1, NEXT, 1), (DATA, 1, NEXT, 0)][..]),
        ("loop on itself", &[(DATA, 1, NEXT, 0)]),
        ("next outside", &[(DATA, 1, NEXT, SIZE)]),
        ("next far outside", &[(DATA, 1, NEXT, u16::MAX)]),
        ("address outside", &[(far, 1, 0, 0)]),
        ("writable address outside", &[(far, 1, WRITE, 0)]),
        ("length outside", &[(DATA, u32::MAX, 0, 0)]),
        ("end of the address space", &[(u64::MAX, 2, 0, 0)]),
        ("second address outside", &[(DATA, 1, NEXT, 1), (far, 1, WRITE, 0)]),
        ("zero length", &[(DATA, 0, 0, 0)]),
        ("zero length behind", &[(DATA, 1, NEXT, 1), (DATA, 0, WRITE, 0)]),
        ("readable behind writable", &[(DATA, 1, NEXT | WRITE, 1), (DATA, 1, 0, 0)]),
        ("longer than 4 GiB", &[(DATA, u32::MAX, NEXT, 1), (DATA, 1, 0, 0)]),
        ("empty table", &[(DATA, 0, INDIRECT, 0)]),
        ("odd table", &[(DATA, 17, INDIRECT, 0)]),
        ("huge table", &[(DATA, 16 << 16, INDIRECT, 0)]),
        ("table outside", &[(far, 16, INDIRECT, 0)]),
        ("table behind the end", &[(DATA, 1, NEXT, 1), (far, 16, INDIRECT, 0)]),
    ] {
        let (memory, mut queue) = with_chain(descriptors, 0);
        queue.serve(|_, _| panic!("{what}: must not be served")).unwrap();
        assert_eq!(used(&memory, &queue), [(0, 0)], "{what}");
        assert_eq!(queue.faults(), 1, "{what}");
    }
}

#[test]
fn nested_and_looping_tables_are_completed_empty() {
    for inner in [(DATA, 16, INDIRECT, 0), (DATA, 1, NEXT, 0), (DATA, 1, NEXT, 7)] {
        let (memory, mut queue) = with_chain(&[(DATA, 16, INDIRECT, 0)], 0);
        memory.write_obj(raw(inner), GuestAddress(DATA)).unwrap();
        queue.serve(|_, _| panic!("{inner:?}: must not be served")).unwrap();
        assert_eq!((used(&memory, &queue), queue.faults()), (vec![(0, 0)], 1), "{inner:?}");
    }
}

#[test]
fn a_chain_is_no_longer_than_its_maximum() {
    for (len, served) in [(MAX_CHAIN, 1), (MAX_CHAIN + 1, 0)] {
        let (memory, mut queue) = with_chain(&[(DATA, 16 * len as u32, INDIRECT, 0)], 0);
        for index in 0..len {
            let flags = if index + 1 < len { NEXT } else { 0 };
            let descriptor = raw((0x1000, 1, flags, index as u16 + 1));
            memory.write_obj(descriptor, GuestAddress(DATA + 16 * index as u64)).unwrap();
        }
        let mut calls = 0;
        queue
            .serve(|_, _| {
                calls += 1;
                Ok(Served::Done(0))
            })
            .unwrap();
        assert_eq!((calls, used(&memory, &queue).len()), (served, 1), "{len}");
    }
}

/// What a chain of the first three descriptors is, by the rules of VIRTIO 1.2, 2.7.5: its readable and writable bytes, or
/// `None` if it is malformed. The other descriptors of the table are zero.
fn model(descriptors: &[(u64, u32, u16, u16); 3]) -> Option<(usize, usize)> {
    let (mut at, mut bytes, mut visited) = (0, (0, 0), Vec::new());
    loop {
        let (address, len, flags, next) = *descriptors.get(usize::from(at))?;
        let (is_first, is_writable) = (!visited.contains(&at), flags & WRITE != 0);
        if !is_first || address != DATA || len == 0 || bytes.1 > 0 && !is_writable {
            return None;
        }
        visited.push(at);
        *(if is_writable { &mut bytes.1 } else { &mut bytes.0 }) += len as usize;
        if flags & NEXT == 0 {
            return Some(bytes);
        }
        at = next;
    }
}

/// All tables of three descriptors over a few addresses, lengths, flags and successors: 27,000.
#[test]
fn every_small_table_is_served_as_the_specification_says() {
    let buffers = [(DATA, 8), (DATA, 0), (1 << 40, 8)];
    let ends = [0, WRITE].map(|flags| (flags, 0));
    let followed =
        [NEXT, NEXT | WRITE].into_iter().flat_map(|flags| [0, 1, 2, SIZE].map(|next| (flags, next)));
    let links: Vec<(u16, u16)> = ends.into_iter().chain(followed).collect();
    let all: Vec<(u64, u32, u16, u16)> = buffers
        .into_iter()
        .flat_map(|(address, len)| links.iter().map(move |(flags, next)| (address, len, *flags, *next)))
        .collect();
    let mut well_formed = 0;
    for first in &all {
        for second in &all {
            for third in &all {
                let table = [*first, *second, *third];
                let (memory, mut queue) = with_chain(&table, 0);
                let mut served = None;
                queue
                    .serve(|request, reply| {
                        served = Some((request.available_bytes(), reply.available_bytes()));
                        Ok(Served::Done(0))
                    })
                    .unwrap();
                assert_eq!(served, model(&table), "{table:?}");
                assert_eq!(used(&memory, &queue), [(0, 0)], "{table:?}");
                assert_eq!(queue.faults(), u64::from(served.is_none()), "{table:?}");
                well_formed += u64::from(served.is_some());
            }
        }
    }
    assert!(well_formed > 1000, "{well_formed}");
}

#[test]
fn a_head_that_is_no_descriptor_is_dropped() {
    for head in [SIZE, u16::MAX] {
        let (memory, mut queue) = with_chain(&[], head);
        queue.serve(|_, _| panic!("must not be served")).unwrap();
        assert_eq!((used(&memory, &queue), queue.faults()), (vec![], 1));
    }
}

#[test]
fn an_available_index_too_far_ahead_ends_the_queue() {
    let memory = driver::memory();
    let mock = MockSplitQueue::new(&memory, SIZE);
    let mut queue = virt_queue(&mock, &memory);
    mock.avail().idx().store((SIZE + 1).to_le());
    let result = queue.serve(|_, _| panic!("must not be served"));
    assert!(matches!(result, Err(QueueError::Rings { index: 0, .. })));
    assert!(!result.unwrap_err().is_reset());
}

#[test]
fn rings_outside_of_memory_end_the_queue() {
    let memory = driver::memory();
    let mut queue = Queue::new(SIZE).unwrap();
    queue.set_avail_ring_address(Some(0), Some(1));
    queue.set_ready(true);
    let mut queue = VirtQueue::new(3, queue, links(&memory));
    let result = queue.serve(|_, _| panic!("must not be served"));
    assert!(matches!(result, Err(QueueError::Rings { index: 3, .. })));
}

#[test]
fn a_refused_request_does_not_stop_the_next() {
    let (memory, mut queue, mut ring) = ring(false);
    for text in [&b"bad"[..], b"good"] {
        ring.send(text);
    }
    queue
        .serve(|request, _| match request.available_bytes() {
            3 => Err(io::Error::other("refused")),
            len => Ok(Served::Done(len as u32)),
        })
        .unwrap();
    drop(memory);
    let lens: Vec<_> = ring.completed().iter().map(Vec::len).collect();
    assert_eq!((lens, queue.faults()), (vec![0, 4], 1));
}

/// A queue and the driver's side of it.
fn ring(event_idx: bool) -> (GuestMemoryMmap, VirtQueue, DriverQueue) {
    let memory = driver::memory();
    let base = 0x2_0000;
    let ring = DriverQueue::new(memory.clone(), base, SIZE, event_idx);
    let mut queue = Queue::new(SIZE).unwrap();
    queue.set_desc_table_address(Some(base as u32), None);
    queue.set_avail_ring_address(Some(base as u32 + AVAIL as u32), None);
    queue.set_used_ring_address(Some(base as u32 + USED as u32), None);
    queue.set_event_idx(event_idx);
    queue.set_ready(true);
    (memory.clone(), VirtQueue::new(0, queue, links(&memory)), ring)
}

/// Number of interrupts since the last call.
fn interrupts(queue: &VirtQueue) -> u64 {
    queue.links.interrupt.line().read().unwrap_or(0)
}

#[test]
fn many_requests_make_one_interrupt() {
    let memory = driver::memory();
    let line = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let (_, queue, mut ring) = ring(true);
    let mut links = links(&memory);
    links.memory = queue.links.memory.clone();
    links.interrupt = Interrupt::new(line.clone());
    let mut queue = VirtQueue::new(0, queue.queue, links);
    ring.fill(8);
    queue.serve(|_, _| Ok(Served::Done(8))).unwrap();
    assert_eq!((ring.completed().len(), line.read().unwrap()), (usize::from(SIZE), 1));
}

#[test]
fn the_driver_is_told_at_once_where_the_device_says_so() {
    let (_, mut queue, mut ring) = ring(true);
    let interrupt = queue.links.interrupt.clone();
    ring.fill(8);
    let mut told = Vec::new();
    queue
        .serve(|_, _| {
            told.push(interrupt.line().read().unwrap_or(0));
            Ok(Served::DoneNow(0))
        })
        .unwrap();
    assert_eq!(told[..2], [0, 1]);
}

#[test]
fn interrupts_come_when_the_driver_wants_them() {
    for event_idx in [false, true] {
        let (_, mut queue, mut ring) = ring(event_idx);
        ring.completed();
        for _ in 0..3 {
            ring.send(b"x");
            queue.serve(|_, _| Ok(Served::Done(0))).unwrap();
            assert!(interrupts(&queue) > 0, "wanted, {event_idx}");
            ring.completed();
        }
        queue.serve(|_, _| Ok(Served::Done(0))).unwrap();
        assert!(interrupts(&queue) == 0, "nothing completed, {event_idx}");
    }
    let (_, mut queue, mut flagged) = ring(false);
    flagged.set_flags(1);
    flagged.send(b"x");
    queue.serve(|_, _| Ok(Served::Done(0))).unwrap();
    assert!(interrupts(&queue) == 0, "the flag says no");

    let (_, mut queue, mut lazy) = ring(true);
    lazy.send(b"x");
    queue.serve(|_, _| Ok(Served::Done(0))).unwrap();
    assert!(interrupts(&queue) > 0);
    lazy.send(b"x");
    queue.serve(|_, _| Ok(Served::Done(0))).unwrap();
    assert!(interrupts(&queue) == 0, "the event index is behind");
}

#[test]
fn kicks_are_wanted_when_the_queue_is_empty_and_not_after_later() {
    let (_, mut queue, mut plain) = ring(false);
    plain.fill(8);
    queue.serve(|_, _| Ok(Served::Later)).unwrap();
    assert_eq!((plain.used_flags(), plain.completed().len()), (1, 0));
    queue.serve(|_, _| Ok(Served::Done(0))).unwrap();
    assert_eq!((plain.used_flags(), plain.completed().len()), (0, usize::from(SIZE)));

    let (_, mut queue, mut indexed) = ring(true);
    indexed.fill(8);
    let mut left = 5;
    queue
        .serve(|_, _| {
            left -= 1;
            Ok(if left < 0 { Served::Later } else { Served::Done(0) })
        })
        .unwrap();
    assert_eq!((indexed.kick_wanted_at(), indexed.completed().len()), (0, 5));
    queue.serve(|_, _| Ok(Served::Done(0))).unwrap();
    assert_eq!((indexed.kick_wanted_at(), indexed.completed().len()), (SIZE, 11));
}

#[test]
fn a_quiet_queue_wants_no_kick_until_it_has_been_empty() {
    for event_idx in [false, true] {
        let (_, mut queue, mut ring) = ring(event_idx);
        queue.quiet();
        let wants_kick = |ring: &DriverQueue, adds: u16| match event_idx {
            true => ring.kick_wanted_at().wrapping_sub(ring.avail_index()) < adds,
            false => ring.used_flags() == 0,
        };
        assert!(!wants_kick(&ring, SIZE), "{event_idx}");
        ring.fill(8);
        queue.serve(|_, _| Ok(Served::Done(0))).unwrap();
        ring.completed();
        assert!(wants_kick(&ring, 1), "{event_idx}");
    }
    let memory = driver::memory();
    VirtQueue::new(0, Queue::new(SIZE).unwrap(), links(&memory)).quiet();
}

#[test]
fn kicks_in_batches_come_after_half_of_what_the_driver_had() {
    let (_, mut queue, mut ring) = ring(true);
    queue.kick_in_batches();
    ring.fill(8);
    queue.serve(|_, _| Ok(Served::Done(0))).unwrap();
    // avail_event is the index of the batch's last request.
    assert_eq!(ring.kick_wanted_at(), SIZE + SIZE / 2 - 1);
    assert_eq!(ring.completed().len(), usize::from(SIZE));
    // A request that is already available is served at once, and does not make the batch smaller.
    ring.send(b"1");
    queue.serve(|_, _| Ok(Served::Done(0))).unwrap();
    assert_eq!((ring.kick_wanted_at(), ring.completed().len()), (SIZE + SIZE / 2, 1));

    let (_, mut queue, mut single) = self::ring(true);
    queue.kick_in_batches();
    single.send(b"1");
    queue.serve(|_, _| Ok(Served::Done(0))).unwrap();
    assert_eq!(single.kick_wanted_at(), 1, "a driver with one buffer kicks for it");
    let (_, mut queue, mut plain) = self::ring(false);
    queue.kick_in_batches();
    plain.fill(8);
    queue.serve(|_, _| Ok(Served::Done(0))).unwrap();
    assert_eq!(plain.used_flags(), 0);
}

#[test]
fn a_request_that_comes_while_the_device_works_is_served() {
    let (_, mut queue, mut ring) = ring(true);
    ring.send(b"1");
    let mut served = 0;
    queue
        .serve(|_, _| {
            served += 1;
            if served == 1 {
                ring.send(b"2");
            }
            Ok(Served::Done(0))
        })
        .unwrap();
    assert_eq!(served, 2);
}

#[test]
fn a_driver_that_never_stops_gets_a_bounded_share() {
    let (_, mut queue, mut ring) = ring(true);
    ring.send(b"x");
    let mut served = 0;
    queue
        .serve(|_, _| {
            served += 1;
            ring.completed();
            ring.send(b"x");
            Ok(Served::Done(0))
        })
        .unwrap();
    assert_eq!(served, 4 * u32::from(SIZE));
    assert!(queue.kick().read().is_ok(), "the queue kicks itself for the rest");
    queue.serve(|_, _| Ok(Served::Done(0))).unwrap();
}

#[test]
fn indices_wrap() {
    let (_, mut queue, mut ring) = ring(true);
    for round in 0..70_000u32 {
        ring.send(b"x");
        queue.serve(|_, _| Ok(Served::Done(1))).unwrap();
        assert_eq!(ring.completed(), [b"x"], "{round}");
    }
}

#[test]
fn a_closed_gate_ends_the_queue() {
    let (_, mut queue, mut ring) = ring(true);
    ring.send(b"x");
    let gate = queue.links.gate.clone();
    gate.close();
    let error = queue.serve(|_, _| panic!("must not be served")).unwrap_err();
    assert!(error.is_reset() && gate.is_idle());
}

/// What a hostile driver writes: a descriptor table, an indirect table, and heads of chains.
#[derive(Debug)]
struct Hostile {
    descriptors: Vec<(u64, u32, u16, u16)>,
    table: Vec<(u32, u32, u16, u16)>,
    heads: Vec<u16>,
}

impl Hostile {
    fn any() -> impl Strategy<Value = Hostile> {
        let descriptors = prop::collection::vec(
            (
                prop::sample::select(vec![0, DATA, DATA + 0x1000, 64 << 20, (64 << 20) - 4, u64::MAX]),
                prop::sample::select(vec![0, 1, 16, 32, 0x1000, u32::MAX]),
                0u16..8,
                0u16..20,
            ),
            16,
        );
        let table = prop::collection::vec((any::<u32>(), 0u32..64, 0u16..8, 0u16..4), 4);
        let heads = prop::collection::vec(0u16..20, 0..16);
        (descriptors, table, heads).prop_map(|(descriptors, table, heads)| Hostile {
            descriptors,
            table,
            heads,
        })
    }

    fn queue(&self) -> VirtQueue {
        let memory = driver::memory();
        let mut ring = DriverQueue::new(memory.clone(), 0x2_0000, SIZE, true);
        for (index, descriptor) in (0..).zip(&self.descriptors) {
            ring.put_descriptor(index, *descriptor);
        }
        for (index, (address, len, flags, next)) in (0..).zip(&self.table) {
            let descriptor = raw((u64::from(*address) >> 8, *len, *flags, *next));
            memory.write_obj(descriptor, GuestAddress(DATA + 16 * index)).unwrap();
        }
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_desc_table_address(Some(0x2_0000), None);
        queue.set_avail_ring_address(Some(0x2_0000 + AVAIL as u32), None);
        queue.set_used_ring_address(Some(0x2_0000 + USED as u32), None);
        queue.set_event_idx(true);
        queue.set_ready(true);
        for head in &self.heads {
            ring.make_available(*head);
        }
        VirtQueue::new(0, queue, links(&memory))
    }

    /// Number of heads that are valid descriptor indices.
    fn inside(&self) -> usize {
        self.heads.iter().filter(|head| **head < SIZE).count()
    }
}

proptest! {
    /// With any content of the rings, serving ends, and the device gets only addresses in memory.
    #[test]
    fn no_ring_does_harm(hostile in Hostile::any()) {
        let mut queue = hostile.queue();
        queue.serve(|mut request, mut reply| {
            io::copy(&mut request, &mut io::sink())?;
            let room = reply.available_bytes();
            reply.write_all(&vec![0; room.min(0x1_0000)])?;
            Ok(Served::Done(0))
        }).unwrap();
        prop_assert_eq!(usize::from(queue.queue.next_used()), hostile.inside());
    }

    /// The same for receiving. Buffers that no message reached stay in the ring.
    #[test]
    fn no_ring_does_harm_to_what_comes_in(
        hostile in Hostile::any(),
        demand in (1usize..40, 0usize..100),
        messages in prop::collection::vec(1usize..5000, 0..20),
    ) {
        let mut queue = hostile.queue();
        let demand = Demand { buffer: demand.0, message: demand.0 + demand.1 };
        let mut messages = messages.into_iter();
        queue.receive(demand, |room| {
            let Some(len) = messages.next() else { return Received::Nothing };
            let zeros = vec![0; len];
            room.write(0, &zeros);
            assert!(room.buffers_for(len) >= 1 && room.pieces().iter().all(|piece| !piece.is_empty()));
            if len > room.len() { Received::Lost } else { Received::Message(len) }
        }).unwrap();
        let used = usize::from(queue.queue.next_used());
        prop_assert!(used <= hostile.inside());
        let mut left = 0;
        queue.serve(|_, _| {
            left += 1;
            Ok(Served::Done(0))
        }).unwrap();
        prop_assert_eq!(usize::from(queue.queue.next_used()), hostile.inside());
        prop_assert!(used + left <= hostile.inside());
    }
}
