use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::AsRawFd;
use std::time::Duration;

use agent_proto::command::STREAM_WINDOW;
use agent_proto::stream::{StreamCodec, encode_header};

use super::super::WAKE;
use super::*;

/// A client's ends of the streams 1 (input and output) and 2 (output).
struct Client {
    stdin: PipeWriter,
    stdout: PipeReader,
    _stderr: PipeReader,
    ends: (PipeReader, PipeWriter, PipeWriter),
}

impl Client {
    fn new() -> Client {
        let ((source, stdin), (stdout, sink), (stderr, second)) =
            (pipe().unwrap(), pipe().unwrap(), pipe().unwrap());
        Client { stdin, stdout, _stderr: stderr, ends: (source, sink, second) }
    }

    fn specs(&self) -> [StreamSpec; 2] {
        let (source, sink, second) = &self.ends;
        [
            StreamSpec { seq: 1, source: Some(source.as_raw_fd()), sink: Some(sink.as_raw_fd()) },
            StreamSpec { seq: 2, source: None, sink: Some(second.as_raw_fd()) },
        ]
    }

    /// Returns the output so far, of which there is some.
    fn output(&mut self) -> Vec<u8> {
        let mut buffer = vec![0; STREAM_WINDOW as usize];
        let count = self.stdout.read(&mut buffer).unwrap();
        buffer.truncate(count);
        buffer
    }
}

fn nothing(_: i32, _: u16, _: Watch) -> std::io::Result<()> {
    Ok(())
}

/// Freezes the table as the main thread does, and returns its state.
fn state(table: &mut StreamTable, handle: &StreamHandle) -> Vec<u8> {
    std::thread::scope(|scope| {
        let frozen = scope.spawn(|| handle.freeze(Duration::from_secs(60)));
        while !table.frozen {
            table.ready(WAKE, &mut nothing);
        }
        frozen.join().unwrap().unwrap()
    })
}

#[test]
fn streams_go_on_in_the_middle_of_a_frame_with_other_clients() {
    let mut first = Client::new();
    let (mut table, handle) = streams(&first.specs(), None).unwrap();
    table.begin(&mut nothing).unwrap();
    handle.start(1, 100);
    table.ready(WAKE, &mut nothing);
    first.stdin.write_all(b"one").unwrap();
    // The guest takes half of a frame, and sends half of one.
    let mut taken = [0; 10];
    assert_eq!(table.fill(&mut taken), 10);
    let output = [&encode_header(1, 6)[..], b"abc"].concat();
    table.take(&output, &mut nothing);
    assert_eq!(first.output(), b"abc");

    let saved = state(&mut table, &handle);
    assert!(!table.takes_output() && table.fill(&mut [0; 99]) == 0);
    let mut second = Client::new();
    let (mut other, handle) = continued(&second.specs(), &saved).unwrap();
    other.begin(&mut nothing).unwrap();
    other.take(b"def", &mut nothing);
    assert_eq!(second.output(), b"def");
    assert_eq!((handle.received(1), handle.received(2)), (6, 0));
    second.stdin.write_all(b"two").unwrap();
    let mut rest = [0; 99];
    let count = other.fill(&mut rest);
    let mut codec = StreamCodec::new();
    codec.push(&taken);
    codec.push(&rest[..count]);
    assert_eq!(codec.next().unwrap().unwrap().data, b"one");
    assert_eq!(codec.next().unwrap().unwrap().data, b"two");

    // The first table goes on as well.
    table.thaw(&mut nothing);
    table.take(b"xyz", &mut nothing);
    assert_eq!(first.output(), b"xyz");
}

#[test]
fn output_that_waits_for_a_client_reaches_the_next_one() {
    let first = Client::new();
    let (mut table, handle) = streams(&first.specs(), None).unwrap();
    let long = vec![7; 4096];
    for _ in 0..20 {
        table.take(&encode_header(1, long.len()), &mut nothing);
        table.take(&long, &mut nothing);
    }
    let saved = state(&mut table, &handle);
    let mut second = Client::new();
    let (mut other, _) = continued(&second.specs(), &saved).unwrap();
    other.begin(&mut nothing).unwrap();
    // A pipe has 64 KiB, which the first client has got.
    assert_eq!(second.output(), vec![7; 20 * 4096 - (64 << 10)]);
}

#[test]
fn a_state_of_other_streams_or_in_pieces_is_refused() {
    let client = Client::new();
    let (mut table, handle) = streams(&client.specs(), None).unwrap();
    let saved = state(&mut table, &handle);
    assert!(continued(&client.specs()[..1], &saved).is_err());
    for len in 0..saved.len() {
        assert!(continued(&client.specs(), &saved[..len]).is_err(), "{len}");
    }
    for at in 0..saved.len() {
        let mut damaged = saved.clone();
        damaged[at] ^= 0xff;
        // Whatever it says, it is an error or a table.
        let _ = continued(&client.specs(), &damaged);
    }
}
