use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::wire::{
    Attr, EntryOut, ForgetIn, GetattrIn, InHeader, OpenIn, OpenOut, OutHeader, ReadIn, WriteIn, WriteOut, op,
};
use super::worker::{Worker, serve};
use super::*;
use crate::Interrupt;
use crate::pieces::Pieces;
use crate::share::ROOT_ID;
use crate::share::{ShareTree, Terms};
use crate::virtio::driver;
use crate::virtio::queue::{QueueLinks, VirtQueue};

const QUEUE_LEN: u16 = 64;
/// Time limit for events that should take microseconds.
const DEADLINE_MS: i32 = 20_000;
const REQUEST: u64 = 0x10_0000;
const REPLY: u64 = 0x20_0000;
const QUIET_RINGS: u64 = 0x38_0000;
const QUIET_REQUEST: u64 = 0x3c_0000;

/// The guest: one request queue in its memory.
struct Driver<'a> {
    memory: &'a GuestMemoryMmap,
    queue: MockSplitQueue<'a, GuestMemoryMmap>,
    links: QueueLinks,
    line: Arc<EventFd>,
    sent: u16,
}

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap()
}

impl<'a> Driver<'a> {
    fn new(memory: &'a GuestMemoryMmap) -> Driver<'a> {
        let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let links = QueueLinks {
            memory: memory.clone(),
            kick: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            interrupt: Interrupt::new(line.clone()),
            gate: driver::gate(),
        };
        Driver { memory, queue: MockSplitQueue::new(memory, QUEUE_LEN), links, line, sent: 0 }
    }

    fn activation(&self) -> Activation {
        let hiprio = VirtQueue::new(
            0,
            Queue::new(QUEUE_LEN).unwrap(),
            QueueLinks { kick: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()), ..self.links.clone() },
        );
        let requests = VirtQueue::new(1, self.queue.create_queue().unwrap(), self.links.clone());
        Activation {
            memory: self.memory.clone(),
            interrupt: self.links.interrupt.clone(),
            features: 0,
            queues: vec![hiprio, requests],
        }
    }

    /// Adds a request of three pieces, with space for a reply in two, to the queue.
    fn add(&mut self, request: &[u8], room: u32) {
        self.memory.write_slice(request, GuestAddress(REQUEST)).unwrap();
        let (write, next) = (VRING_DESC_F_WRITE as u16, VRING_DESC_F_NEXT as u16);
        let len = request.len() as u32;
        let pieces = [
            (REQUEST, 40, next),
            (REQUEST + 40, 1, next),
            (REQUEST + 41, len - 41, next),
            (REPLY, 16, write | next),
            (REPLY + 16, room - 16, write),
        ];
        let descriptors: Vec<_> = pieces
            .iter()
            .enumerate()
            .map(|(i, (addr, len, flags))| {
                RawDescriptor::from(Descriptor::new(*addr, *len, *flags, i as u16 + 1))
            })
            .collect();
        self.queue.add_desc_chains(&descriptors, 0).unwrap();
        self.sent += 1;
    }

    /// Returns the device's reply to the last request.
    fn reply(&self) -> Vec<u8> {
        let used = self.queue.used().ring().ref_at(usize::from(self.sent - 1)).unwrap().load();
        let mut reply = vec![0; used.len() as usize];
        self.memory.read_slice(&mut reply, GuestAddress(REPLY)).unwrap();
        reply
    }

    /// Sends one request to the running device and waits for its interrupt. Returns the reply without its header.
    fn call(&mut self, opcode: u32, nodeid: u64, body: &[u8]) -> Vec<u8> {
        let mut request = Vec::new();
        let len = (InHeader::SIZE + body.len()) as u32;
        InHeader { len, opcode, nodeid, ..Default::default() }.put(&mut request);
        request.extend_from_slice(body);
        self.add(&request, 1 << 20);
        self.links.kick.write(1).unwrap();
        let poller = Epoll::new().unwrap();
        poller.ctl(ControlOperation::Add, self.line.as_raw_fd(), EpollEvent::new(EventSet::IN, 0)).unwrap();
        while u16::from_le(self.queue.used().idx().load()) != self.sent {
            let count = poller.wait(DEADLINE_MS, &mut [EpollEvent::default()]).unwrap();
            assert_eq!(count, 1, "no reply to request {opcode}");
            let _ = self.line.read();
        }
        let reply = self.reply();
        let header = OutHeader::parse(&reply).unwrap();
        assert_eq!(header.error, 0, "request {opcode}");
        reply[OutHeader::SIZE..].to_vec()
    }
}

fn body(put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut body = Vec::new();
    put(&mut body);
    body
}

fn share(dir: &Path) -> ShareTree {
    let tree = ShareTree::new().unwrap();
    tree.bind("/data", fs::File::open(dir).unwrap().into(), Terms::default()).unwrap();
    tree
}

#[test]
fn the_configuration_is_the_tag_one_request_queue_and_the_length_of_a_notification() {
    let tree = ShareTree::new().unwrap();
    let fs = Fs::new("share", server(&tree), || {}).unwrap();
    let mut config = [0xff; 44];
    fs.read_config(0, &mut config);
    assert_eq!(&config[..6], b"share\0");
    assert!(config[5..36].iter().all(|byte| *byte == 0));
    assert_eq!(&config[36..], [1, 0, 0, 0, 0, 2, 0, 0]);
    let mut word = [0xff; 4];
    fs.read_config(42, &mut word);
    assert_eq!(word, [0; 4]);
    fs.read_config(u64::MAX, &mut word);
    assert_eq!(word, [0; 4]);
    let long = Fs::new(&"x".repeat(100), server(&tree), || {}).unwrap();
    long.read_config(0, &mut config);
    assert_eq!(config[..37], [&[b'x'; 36][..], &[1]].concat());
    let info = fs.info();
    assert_eq!((info.device_id, info.queue_sizes.len()), (26, 3));
    assert!(info.queue_sizes.iter().all(|size| size.is_power_of_two()));
}

#[test]
fn a_guest_reads_and_writes_through_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "from the host").unwrap();
    let memory = memory();
    let mut driver = Driver::new(&memory);
    let mut device = Fs::new("share", server(&share(dir.path())), || {}).unwrap();
    device.activate(driver.activation()).unwrap();

    let data = EntryOut::parse(&driver.call(op::LOOKUP, ROOT_ID, b"data\0")).unwrap().nodeid;
    let reply = driver.call(op::LOOKUP, data, b"file\0");
    let (file, attr) =
        (EntryOut::parse(&reply).unwrap().nodeid, Attr::parse(&reply[EntryOut::SIZE..]).unwrap());
    assert_eq!(attr.size, 13);
    let open = body(|b| OpenIn { flags: libc::O_RDWR as u32, open_flags: 0 }.put(b));
    let fh = OpenOut::parse(&driver.call(op::OPEN, file, &open)).unwrap().fh;
    let read = body(|b| ReadIn { fh, offset: 5, size: 4096, ..Default::default() }.put(b));
    assert_eq!(driver.call(op::READ, file, &read), b"the host");
    let big: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
    let write = body(|b| {
        WriteIn { fh, offset: 13, size: big.len() as u32, ..Default::default() }.put(b);
        b.extend_from_slice(&big);
    });
    assert_eq!(WriteOut::parse(&driver.call(op::WRITE, file, &write)).unwrap().size, 300_000);
    assert_eq!(fs::read(dir.path().join("file")).unwrap()[13..], big);
}

#[test]
fn what_comes_without_a_kick_in_the_queue_of_forget_is_served_after_the_next_request() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let memory = memory();
    let mut driver = Driver::new(&memory);
    let quiet = MockSplitQueue::create(&memory, GuestAddress(QUIET_RINGS), QUEUE_LEN);
    let mut activation = driver.activation();
    let links =
        QueueLinks { kick: activation.queues[0].kick().try_clone().unwrap().into(), ..driver.links.clone() };
    activation.queues[0] = VirtQueue::new(0, quiet.create_queue().unwrap(), links);
    let tree = share(dir.path());
    let mut device = Fs::new("share", server(&tree), || {}).unwrap();
    device.activate(activation).unwrap();
    let data = EntryOut::parse(&driver.call(op::LOOKUP, ROOT_ID, b"data\0")).unwrap().nodeid;
    let file = EntryOut::parse(&driver.call(op::LOOKUP, data, b"file\0")).unwrap().nodeid;
    assert_eq!(tree.counts(), (2, 0));

    let mut forget = Vec::new();
    let len = (InHeader::SIZE + ForgetIn::SIZE) as u32;
    InHeader { len, opcode: op::FORGET, nodeid: file, ..Default::default() }.put(&mut forget);
    ForgetIn { nlookup: 1 }.put(&mut forget);
    memory.write_slice(&forget, GuestAddress(QUIET_REQUEST)).unwrap();
    let chain = [RawDescriptor::from(Descriptor::new(QUIET_REQUEST, len, 0, 0))];
    quiet.add_desc_chains(&chain, 0).unwrap();
    driver.call(op::GETATTR, data, &body(|b| GetattrIn::default().put(b)));
    let begun = Instant::now();
    while tree.counts() != (1, 0) {
        assert!(begun.elapsed() < Duration::from_millis(DEADLINE_MS as u64), "a FORGET is not served");
        std::thread::yield_now();
    }
    assert_eq!(u16::from_le(quiet.used().idx().load()), 1);
}

/// A server that wants to find out what the host has changed some time after its first request, and sees no event.
struct Late {
    events: EventFd,
    due: Option<Instant>,
    collected: Sender<()>,
}

impl FileServer for Late {
    fn handle(&mut self, _request: Pieces, mut reply: Pieces) -> io::Result<usize> {
        self.due = Some(Instant::now() + Duration::from_millis(20));
        let header = body(|b| OutHeader { len: OutHeader::SIZE as u32, error: 0, unique: 0 }.put(b));
        Ok(reply.write(&header))
    }

    fn events(&self) -> Option<RawFd> {
        Some(self.events.as_raw_fd())
    }

    fn due(&self) -> Option<Instant> {
        self.due
    }

    fn collect(&mut self) -> Option<Duration> {
        if self.due.take_if(|due| *due <= Instant::now()).is_some() {
            self.collected.send(()).unwrap();
        }
        None
    }
}

#[test]
fn a_server_that_says_late_when_it_is_due_is_called_without_an_event() {
    let memory = memory();
    let mut driver = Driver::new(&memory);
    let (collected, is_collected) = channel();
    let late = Late { events: EventFd::new(EFD_NONBLOCK).unwrap(), due: None, collected };
    let mut worker = Worker::new("late", Box::new(late), || {}).unwrap();
    worker.serve(driver.activation().queues, Roles { notices: Some(0), quiet: None }).unwrap();
    driver.call(op::STATFS, ROOT_ID, &[0; 8]);
    is_collected.recv_timeout(Duration::from_millis(DEADLINE_MS as u64)).unwrap();
}

#[test]
fn a_second_activation_takes_the_server_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut device = Fs::new("share", server(&share(dir.path())), || {}).unwrap();
    for _ in 0..2 {
        let memory = memory();
        let mut driver = Driver::new(&memory);
        device.activate(driver.activation()).unwrap();
        driver.call(op::LOOKUP, ROOT_ID, b"data\0");
        driver.links.gate.close();
    }
}

#[test]
fn a_thread_that_does_not_start_leaves_the_server_to_the_next_driver() {
    let dir = tempfile::tempdir().unwrap();
    let mut device = Fs::new("share", server(&share(dir.path())), || {}).unwrap();
    let memory = memory();
    let mut driver = Driver::new(&memory);
    let mut broken = driver.activation();
    // Registering the same file descriptor twice fails, like any call that the host refuses.
    broken.queues.push(driver.activation().queues.pop().unwrap());
    assert!(device.activate(broken).is_err());
    device.activate(driver.activation()).unwrap();
    driver.call(op::LOOKUP, ROOT_ID, b"data\0");
}

#[test]
fn invalid_rings_need_a_reset() {
    let memory = memory();
    let driver = Driver::new(&memory);
    let mut device = Fs::new("share", server(&ShareTree::new().unwrap()), || {}).unwrap();
    driver.queue.avail().idx().store(u16::to_le(QUEUE_LEN + 1));
    device.activate(driver.activation()).unwrap();
    driver.links.kick.write(1).unwrap();
    let poller = Epoll::new().unwrap();
    poller.ctl(ControlOperation::Add, driver.line.as_raw_fd(), EpollEvent::new(EventSet::IN, 0)).unwrap();
    assert_eq!(poller.wait(DEADLINE_MS, &mut [EpollEvent::default()]).unwrap(), 1);
    assert!(driver.links.interrupt.is_broken());
}

#[test]
fn a_request_that_cannot_be_answered_is_completed_empty() {
    let memory = memory();
    let mut driver = Driver::new(&memory);
    let mut server = server(&ShareTree::new().unwrap());
    let mut queue = driver.activation().queues.pop().unwrap();
    driver.add(&[0xff; 60], 100);
    serve(&mut queue, None, server.as_mut(), None).unwrap();
    assert_eq!(driver.reply(), b"");
    assert_eq!(queue.faults(), 1);
}

#[test]
fn dropping_the_device_ends_its_thread_and_closes_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let memory = memory();
    let mut driver = Driver::new(&memory);
    let tree = share(dir.path());
    let mut device = Fs::new("share", server(&tree), || {}).unwrap();
    device.activate(driver.activation()).unwrap();
    driver.call(op::LOOKUP, ROOT_ID, b"data\0");
    assert_eq!(tree.counts(), (1, 0));
    drop(device);
    tree.unbind("/data").unwrap();
    assert_eq!(tree.counts(), (0, 0));
}
