use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;

use tempfile::TempDir;
use vmm::devices::share::sockets::{SocketQueue, SocketTask, socket_queue};

use super::*;

/// A server's socket and the thread that carries connections to it, with the rights that it has in a machine.
struct Served {
    listener: UnixListener,
    sockets: Sockets,
    /// The file server's end.
    queue: SocketQueue,
    /// The guest's end of the port.
    guest: UnixStream,
    received: Vec<u8>,
    folder: TempDir,
}

impl Served {
    fn new() -> Served {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let (queue, requests) = socket_queue().unwrap();
        let (sockets, guest) = serve(&[path], requests).unwrap();
        Served { listener, sockets, queue, guest, received: Vec::new(), folder }
    }

    fn send(&mut self, connection: u32, frames: &[Frame<'_>]) {
        let mut out = Vec::new();
        frames.iter().for_each(|frame| frame.encode(connection, &mut out));
        self.guest.write_all(&out).unwrap();
    }

    fn open(&mut self, connection: u32, (uid, gid): (u32, u32)) -> UnixStream {
        self.send(connection, &[Frame::Open { socket: 0, uid, gid }]);
        self.listener.accept().unwrap().0
    }

    /// Returns the next frame, as text.
    fn next(&mut self) -> String {
        loop {
            let mut first = None;
            let mut rest = Vec::new();
            let each = |number, frame: Frame<'_>| {
                match &first {
                    None => first = Some(format!("{number} {frame:?}")),
                    Some(_) => frame.encode(number, &mut rest),
                }
                Ok(())
            };
            sockets::drain(&mut self.received, each).unwrap();
            rest.extend_from_slice(&self.received);
            self.received = rest;
            if let Some(first) = first {
                return first;
            }
            let mut bytes = [0; 4096];
            let count = self.guest.read(&mut bytes).unwrap();
            assert!(count > 0, "the port is closed");
            self.received.extend_from_slice(&bytes[..count]);
        }
    }
}

#[test]
fn data_and_ends_go_both_ways() {
    let mut served = Served::new();
    let mut server = served.open(7, (0, 0));
    served.send(7, &[Frame::Data(b"question"), Frame::End]);
    let mut question = String::new();
    server.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    assert_eq!(served.next(), "7 Credit(8)");
    server.write_all(b"answer").unwrap();
    assert_eq!(served.next(), format!("7 Data({:?})", b"answer"));
    drop(server);
    assert_eq!(served.next(), "7 End");
    assert_eq!(served.next(), "7 Close");
    // The number is free again.
    drop(served.open(7, (0, 0)));
}

#[test]
fn a_connection_that_fails_is_closed() {
    let mut served = Served::new();
    served.send(1, &[Frame::Open { socket: 1, uid: 0, gid: 0 }]);
    assert_eq!(served.next(), "1 Close");
    let server = served.open(2, (0, 0));
    drop(server);
    assert_eq!(served.next(), "2 End");
    assert_eq!(served.next(), "2 Close");
    // Late frames of a closed connection have no effect.
    served.send(2, &[Frame::Data(b"late"), Frame::End, Frame::Close]);
    drop(served.open(3, (0, 0)));
}

#[test]
fn a_server_that_does_not_read_stops_only_its_own_connection() {
    let mut served = Served::new();
    let slow = served.open(1, (0, 0));
    let data = [5; DATA_MAX];
    for _ in 0..sockets::WINDOW / DATA_MAX {
        served.send(1, &[Frame::Data(&data)]);
    }
    let mut quick = served.open(2, (0, 0));
    served.send(2, &[Frame::Data(b"x")]);
    let mut byte = [0];
    quick.read_exact(&mut byte).unwrap();
    drop((slow, quick));
}

#[test]
fn a_guest_that_breaks_the_protocol_loses_its_connections() {
    let broken: [&[Frame<'_>]; 6] = [
        &[Frame::Arrive { node: 1, uid: 0, gid: 0 }],
        &[Frame::Open { socket: 0, uid: 0, gid: 0 }, Frame::Take { ticket: 1 }],
        &[Frame::Open { socket: 0, uid: 0, gid: 0 }; 2],
        &[Frame::Open { socket: 0, uid: 0, gid: 0 }, Frame::Credit(1)],
        &[Frame::Open { socket: 0, uid: 0, gid: 0 }, Frame::End, Frame::Data(b"x")],
        &[Frame::Open { socket: 0, uid: 0, gid: 0 }, Frame::Credit(u32::MAX)],
    ];
    for frames in broken {
        let mut served = Served::new();
        served.send(1, frames);
        let mut rest = Vec::new();
        served.guest.read_to_end(&mut rest).unwrap();
    }
    // More connections than there may be.
    let mut served = Served::new();
    let mut frames = Vec::new();
    for number in 0..=CONNECTIONS_MAX as u32 {
        Frame::Open { socket: 0, uid: 0, gid: 0 }.encode(number, &mut frames);
    }
    served.guest.write_all(&frames).unwrap();
    let mut rest = Vec::new();
    served.guest.read_to_end(&mut rest).unwrap();
}

#[test]
fn what_was_sent_before_the_machine_ends_is_delivered() {
    let mut served = Served::new();
    served.send(1, &[Frame::Open { socket: 0, uid: 0, gid: 0 }, Frame::Data(b"last words")]);
    served.guest.shutdown(Shutdown::Both).unwrap();
    served.sockets.finish();
    let mut text = String::new();
    served.listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
    assert_eq!(text, "last words");
}

#[test]
fn a_connection_on_which_a_process_of_the_guest_passes_descriptors_is_closed() {
    let mut served = Served::new();
    let mut server = served.open(1, (0, 0));
    served.send(1, &[Frame::Data(b"before"), Frame::Descriptors, Frame::Close]);
    let mut text = String::new();
    server.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before");
}

impl Served {
    /// A descriptor of the server's file, as the file server has it.
    fn file(&self) -> OwnedFd {
        let path = self.folder.path().join("socket");
        File::options().read(true).custom_flags(libc::O_PATH).open(path).unwrap().into()
    }

    /// Connects for a process of the guest. Returns the ticket.
    fn ticket(&self) -> io::Result<u32> {
        self.queue.ask(SocketTask::Connect(self.file(), (0, 0))).map(|reached| reached.unwrap().ticket)
    }
}

#[test]
fn a_ticket_is_a_connection_that_was_made_before() {
    let mut served = Served::new();
    let ticket = served.ticket().unwrap();
    let mut server = served.listener.accept().unwrap().0;
    served.send(3, &[Frame::Take { ticket }, Frame::Data(b"question"), Frame::End]);
    let mut question = String::new();
    server.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    // It is used up, and another one is given up.
    served.send(4, &[Frame::Take { ticket }]);
    while served.next() != "4 Close" {}
    let ticket = served.ticket().unwrap();
    let mut server = served.listener.accept().unwrap().0;
    served.queue.ask(SocketTask::Cancel(ticket)).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
}

#[test]
fn tickets_are_limited_and_a_server_that_is_gone_is_refused() {
    let served = Served::new();
    let mut accepted = Vec::new();
    for _ in 0..SHARED_MAX {
        served.ticket().unwrap();
        accepted.push(served.listener.accept().unwrap());
    }
    assert_eq!(served.ticket().unwrap_err().kind(), ErrorKind::WouldBlock);
    let served = Served::new();
    let file = served.file();
    drop(served.listener);
    let refused = served.queue.ask(SocketTask::Connect(file, (0, 0))).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_client_of_the_host_reaches_the_guest_until_the_listener_is_closed() {
    let mut served = Served::new();
    let path = served.folder.path().join("bound");
    let socket = UnixListener::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = socket.into();
    served.queue.ask(SocketTask::Listen { node: 9, socket, backlog: 5, user: (0, 0) }).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"x").unwrap();
    let number = OF_HOST | 1;
    let arrive = served.next();
    assert!(arrive.starts_with(&format!("{number} Arrive {{ node: 9, ")), "{arrive}");
    assert_eq!(served.next(), format!("{number} Data({:?})", b"x"));
    served.send(number, &[Frame::Data(b"answer"), Frame::Close]);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
    while served.next() != format!("{number} Close") {}
    served.queue.ask(SocketTask::Close(9)).unwrap();
    assert_eq!(UnixStream::connect(&path).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}
