//! Clients of a socket: `guest socket PATH ...`, and servers: `guest serve PATH ...`.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

pub fn run(path: &str, what: &str, word: &str) {
    let connect = || UnixStream::connect(path).unwrap_or_else(|error| panic!("{:?}: {error}", error.kind()));
    match what {
        "ask" => ask(connect(), word),
        "echo" => echo(connect(), word.parse().expect("a number of bytes")),
        "many" => many(&connect, word.parse().expect("a number of connections")),
        "hold" => hold(connect(), word == "exit"),
        "pass" => pass(connect()),
        "peer" => peer(connect()),
        "crowd" => crowd(&connect, word.parse().expect("a number of connections")),
        "try" => try_once(path, word),
        "leave" => connect().write_all(word.as_bytes()).unwrap(),
        _ => panic!("no client {what:?}"),
    }
}

/// Listens, and says so.
pub fn serve(path: &str, what: &str, word: &str) {
    let listener = UnixListener::bind(path).unwrap_or_else(|error| panic!("{:?}: {error}", error.kind()));
    println!("ready");
    let accept = || listener.accept().unwrap().0;
    match what {
        "answer" => (0..word.parse().expect("a number of connections")).for_each(|_| answer(accept())),
        "echo" => echo(accept(), word.parse().expect("a number of bytes")),
        "lazy" => lazy(accept(), accept(), word.parse().expect("a number of bytes")),
        "hold" => hold(accept(), false),
        "close" => {
            drop(accept());
            drop(listener);
            println!("closed");
            let _ = std::io::stdin().read(&mut [0]);
        }
        _ => panic!("no server {what:?}"),
    }
}

/// Reads a question to its end, and answers it.
fn answer(mut stream: UnixStream) {
    let mut question = String::new();
    stream.read_to_string(&mut question).unwrap();
    print!("{question} from ");
    write!(stream, "answer to {question}").unwrap();
    peer(stream);
}

/// Reads the first connection only when the second one has ended.
fn lazy(mut first: UnixStream, second: UnixStream, len: usize) {
    hold(second, false);
    let mut data = Vec::new();
    first.read_to_end(&mut data).unwrap();
    assert_eq!(data.len(), len);
    println!("ok");
}

/// Prints the kind of error with which a connection or a datagram fails.
fn try_once(path: &str, word: &str) {
    let tried = match word {
        "stream" => UnixStream::connect(path).map(drop),
        _ => UnixDatagram::unbound().unwrap().send_to(b"text", path).map(drop),
    };
    match tried {
        Ok(()) => println!("works"),
        Err(error) => println!("{:?}", error.kind()),
    }
}

/// Keeps connections open until all of them have been made.
fn crowd(connect: &impl Fn() -> UnixStream, count: usize) {
    let mut open = Vec::new();
    for _ in 0..count {
        let mut stream = connect();
        stream.write_all(b"x").unwrap();
        open.push(stream);
    }
    println!("ok");
}

fn ask(mut stream: UnixStream, question: &str) {
    stream.write_all(question.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    println!("{answer}");
}

/// Sends back all that comes.
fn echo(mut stream: UnixStream, len: usize) {
    let mut data = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        let count = stream.read(&mut data).unwrap();
        if count == 0 {
            break;
        }
        stream.write_all(&data[..count]).unwrap();
        total += count;
    }
    assert_eq!(total, len);
    println!("ok");
}

/// Opens connections one after the other and closes them only when half of them are open.
fn many(connect: &impl Fn() -> UnixStream, count: usize) {
    let mut open = std::collections::VecDeque::new();
    for number in 0..count {
        let mut stream = connect();
        stream.write_all(&[number as u8]).unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        assert_eq!(byte[0], (number as u8).wrapping_add(1));
        open.push_back(stream);
        if open.len() > 100 {
            open.pop_front();
        }
    }
    println!("ok");
}

/// Answers one byte and waits for the end, or exits.
fn hold(mut stream: UnixStream, exit: bool) {
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    stream.write_all(&byte).unwrap();
    if !exit {
        let _ = stream.read(&mut byte);
        println!("end");
    }
}

/// Passes a descriptor after some data, and reads to the end.
fn pass(mut stream: UnixStream) {
    stream.write_all(b"before").unwrap();
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let input = std::io::stdin();
    let passed = [input.as_fd()];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&passed)));
    sendmsg(&stream, &[IoSlice::new(b"with a descriptor")], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    let mut rest = Vec::new();
    // The connection may be closed with unread data.
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.is_empty());
    println!("closed");
}

/// Prints who listens.
fn peer(stream: UnixStream) {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of_val(&peer) as libc::socklen_t;
    let (fd, level, option) = (stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED);
    // rustix has no value for the process id 0, which a process of another namespace has.
    // SAFETY: the kernel fills `peer`, of which it is told the size.
    let got = unsafe { libc::getsockopt(fd, level, option, (&raw mut peer).cast(), &raw mut len) };
    assert_eq!(got, 0);
    println!("{} {}", peer.uid, peer.gid);
}
