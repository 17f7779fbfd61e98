use std::io::ErrorKind;

use event_manager::{EventOps, Events, MutEventSubscriber};

use super::*;
use crate::Seat;
use crate::virtio::driver::Loop;

use std::sync::{Arc, Mutex};

/// Replaces the console: passes events to the port, and takes its input while the guest has buffers.
struct Host {
    port: Arc<Mutex<SocketPort>>,
    orders: std::sync::mpsc::Receiver<Vec<u8>>,
    poke: vmm_sys_util::eventfd::EventFd,
    wakes: Arc<Mutex<u32>>,
}

impl MutEventSubscriber for Host {
    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::with_data(&self.poke, u32::MAX, EventSet::IN | EventSet::EDGE_TRIGGERED)).unwrap();
        self.port.lock().unwrap().start(&mut PortEvents::new(0, ops)).unwrap();
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let mut port = self.port.lock().unwrap();
        let mut port_events = PortEvents::new(0, ops);
        if events.data() == u32::MAX {
            self.orders.try_iter().for_each(|data| port.output(&data, &mut port_events));
        } else {
            *self.wakes.lock().unwrap() += 1;
            port.ready(0, events.event_set(), &mut port_events);
        }
    }
}

struct Fixture {
    events: Loop,
    _seat: Seat,
    port: Arc<Mutex<SocketPort>>,
    peer: UnixStream,
    orders: std::sync::mpsc::Sender<Vec<u8>>,
    poke: vmm_sys_util::eventfd::EventFd,
    wakes: Arc<Mutex<u32>>,
}

impl Fixture {
    fn new() -> Fixture {
        let (socket, peer) = UnixStream::pair().unwrap();
        peer.set_nonblocking(true).unwrap();
        let port = Arc::new(Mutex::new(SocketPort::new(socket)));
        let poke = vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let (orders, received) = std::sync::mpsc::channel();
        let wakes = Arc::default();
        let mut events = Loop::new();
        let host = Host {
            port: port.clone(),
            orders: received,
            poke: poke.try_clone().unwrap(),
            wakes: Arc::clone(&wakes),
        };
        let mut seat = events.handle().seat();
        seat.put(Box::new(host)).unwrap();
        events.turn();
        Fixture { events, _seat: seat, port, peer, orders, poke, wakes }
    }

    /// Sends output of the guest.
    fn output(&mut self, data: &[u8]) {
        self.orders.send(data.to_vec()).unwrap();
        self.poke.write(1).unwrap();
        self.events.turn();
    }

    fn input(&mut self, room: usize) -> Vec<u8> {
        let mut buffer = vec![0; room];
        let len = self.port.lock().unwrap().input(&mut buffer);
        buffer.truncate(len);
        buffer
    }

    fn is_open(&self) -> bool {
        self.port.lock().unwrap().is_open()
    }

    /// Returns everything that has reached the peer.
    fn arrived(&mut self) -> Vec<u8> {
        let mut data = Vec::new();
        match self.peer.read_to_end(&mut data) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => data,
            result => data[..result.unwrap()].to_vec(),
        }
    }
}

#[test]
fn bytes_pass_both_ways() {
    let mut fixture = Fixture::new();
    fixture.output(b"from the guest");
    assert_eq!(fixture.arrived(), b"from the guest");
    assert!(fixture.input(10).is_empty());
    fixture.peer.write_all(b"to the guest").unwrap();
    fixture.events.turn();
    assert_eq!(fixture.input(7), b"to the ");
    assert_eq!(fixture.input(7), b"guest");
    assert!(fixture.input(7).is_empty() && fixture.is_open());
}

#[test]
fn a_guest_without_room_does_not_keep_the_loop_awake() {
    let mut fixture = Fixture::new();
    fixture.peer.write_all(&[1; 1000]).unwrap();
    fixture.events.turn();
    fixture.events.turn();
    assert_eq!(*fixture.wakes.lock().unwrap(), 1);
    assert_eq!(fixture.input(2000).len(), 1000);
}

#[test]
fn a_full_socket_is_resumed_without_loss() {
    let mut fixture = Fixture::new();
    let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
    for part in sent.chunks(64 * 1024) {
        fixture.output(part);
    }
    let mut got = Vec::new();
    while got.len() < sent.len() {
        let new = fixture.arrived();
        assert!(!new.is_empty());
        got.extend(new);
        fixture.events.turn();
    }
    assert!(got == sent);
    assert_eq!(fixture.port.lock().unwrap().pending.capacity(), 0);
    let wakes = *fixture.wakes.lock().unwrap();
    fixture.events.turn();
    assert_eq!(*fixture.wakes.lock().unwrap(), wakes, "nothing pending, nothing waited for");
}

#[test]
fn a_reader_too_far_behind_is_given_up() {
    let mut fixture = Fixture::new();
    let part = vec![0; 1 << 20];
    for _ in 0..PENDING_MAX / part.len() {
        fixture.output(&part);
        assert!(fixture.is_open());
    }
    fixture.output(&part);
    fixture.output(&part);
    assert!(!fixture.is_open());
    assert_eq!(fixture.port.lock().unwrap().pending.capacity(), 0);
    fixture.output(b"lost");
    assert!(fixture.input(10).is_empty());
}

#[test]
fn the_end_comes_after_the_last_byte() {
    let mut fixture = Fixture::new();
    fixture.peer.write_all(b"last").unwrap();
    fixture.peer.shutdown(std::net::Shutdown::Write).unwrap();
    fixture.events.turn();
    assert_eq!(fixture.input(10), b"last");
    assert!(fixture.is_open());
    assert!(fixture.input(10).is_empty());
    assert!(!fixture.is_open());
    fixture.output(b"half open");
    assert_eq!(fixture.arrived(), b"half open");
}

#[test]
fn a_peer_that_is_gone_ends_the_port() {
    let mut fixture = Fixture::new();
    let (other, _) = UnixStream::pair().unwrap();
    drop(std::mem::replace(&mut fixture.peer, other));
    fixture.events.turn();
    fixture.output(b"nobody reads");
    assert!(!fixture.is_open());
    fixture.events.turn();
}
