use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::AsFd;

use agent_proto::command::STREAM_WINDOW;
use agent_proto::stream::{StreamCodec, StreamFrame, encode_header};
use host::sys;
use proptest::prelude::*;

use super::*;

const PIPE_SIZE: usize = 64 << 10;

/// A table, its handle, and the descriptors that it watches.
struct Fixture {
    table: StreamTable,
    handle: StreamHandle,
    watched: Vec<(u16, Watch)>,
}

impl Fixture {
    fn new(specs: &[StreamSpec]) -> Fixture {
        let (table, handle) = streams(specs, None).unwrap();
        Fixture { table, handle, watched: Vec::new() }
    }

    /// Returns a fixture with output stream 1, and the reader of its pipe.
    fn stdout() -> (Fixture, PipeReader) {
        let (reader, writer) = pipe().unwrap();
        let spec = StreamSpec { seq: 1, source: None, sink: Some(writer.as_raw_fd()) };
        (Fixture::new(&[spec]), reader)
    }

    /// Returns a fixture with the started input stream 1, and the writer of its pipe.
    fn stdin(window: u32) -> (Fixture, PipeWriter) {
        let (reader, writer) = pipe().unwrap();
        let mut fixture =
            Fixture::new(&[StreamSpec { seq: 1, source: Some(reader.as_raw_fd()), sink: None }]);
        fixture.start(window);
        (fixture, writer)
    }

    fn start(&mut self, window: u32) {
        self.handle.start(1, window);
        self.ready(WAKE);
    }

    fn take(&mut self, bytes: &[u8]) {
        let watched = &mut self.watched;
        self.table.take(bytes, &mut |_, token, watch| {
            watched.push((token, watch));
            Ok(())
        });
    }

    fn output(&mut self, seq: u64, data: &[u8]) {
        for part in data.chunks(15 * 4096) {
            self.take(&encode_header(seq, part.len()));
            self.take(part);
        }
    }

    fn ready(&mut self, token: u16) {
        let watched = &mut self.watched;
        self.table.ready(token, &mut |_, token, watch| {
            watched.push((token, watch));
            Ok(())
        });
    }

    /// Returns all frames for the guest, through buffers of `size` bytes.
    fn frames(&mut self, size: usize) -> Vec<StreamFrame> {
        let mut codec = StreamCodec::new();
        let mut buffer = vec![0; size];
        loop {
            match self.table.fill(&mut buffer) {
                0 => break,
                count => codec.push(&buffer[..count]),
            }
        }
        std::iter::from_fn(|| codec.next().unwrap()).collect()
    }

    fn credits(&mut self) -> Vec<Credit> {
        let frames = self.frames(4096);
        let mut decoder = CreditDecoder::default();
        let mut credits = Vec::new();
        for frame in frames.iter().filter(|frame| frame.seq == CREDIT_SEQ) {
            let mut data = &frame.data[..];
            credits.extend(std::iter::from_fn(|| decoder.next(&mut data, true)));
        }
        credits
    }

    fn notified(&self) -> bool {
        let notified = sys::is_ready(self.handle.notify_fd(), libc::POLLIN);
        self.handle.acknowledge();
        notified
    }
}

fn read_all(reader: &mut PipeReader, count: usize) -> Vec<u8> {
    let mut data = vec![0; count];
    reader.read_exact(&mut data).unwrap();
    data
}

#[test]
fn output_goes_to_its_own_client() {
    let (mut out, out_writer) = pipe().unwrap();
    let (mut err, err_writer) = pipe().unwrap();
    let mut fixture = Fixture::new(&[
        StreamSpec { seq: 1, source: None, sink: Some(out_writer.as_raw_fd()) },
        StreamSpec { seq: 2, source: None, sink: Some(err_writer.as_raw_fd()) },
    ]);
    let mut bytes = Vec::new();
    for (seq, data) in [(1, "out"), (2, "error"), (1, "put"), (7, "nobody"), (2, ""), (1, "")] {
        StreamFrame { seq, data: data.into() }.encode(&mut bytes);
    }
    bytes.chunks(5).for_each(|chunk| fixture.take(chunk));
    assert_eq!(read_all(&mut out, 6), b"output");
    assert_eq!(read_all(&mut err, 5), b"error");
    assert_eq!(fixture.handle.delivery(1, 6), Delivery::Done);
    assert_eq!(fixture.handle.delivery(1, 7), Delivery::Guest);
    assert_eq!(fixture.handle.delivery(9, 7), Delivery::Done);
    assert!(fixture.watched.is_empty(), "nothing has to be waited for");
    assert!(fixture.frames(4096).is_empty(), "a short output costs no credit");
}

#[test]
fn a_slow_client_stops_only_its_stream_and_loses_nothing() {
    let (mut fixture, mut reader) = Fixture::stdout();
    let data: Vec<u8> = (0..500_000u32).map(|n| n as u8).collect();
    fixture.output(1, &data);
    assert_eq!(fixture.watched, [(2, Watch::Out)]);
    assert_eq!(fixture.handle.delivery(1, data.len() as u64), Delivery::Client);
    assert!(fixture.credits().is_empty(), "less than half of the window has left");
    assert!(!fixture.notified());
    let mut got = Vec::new();
    while got.len() < data.len() {
        got.extend(read_all(&mut reader, PIPE_SIZE.min(data.len() - got.len())));
        fixture.ready(2);
    }
    assert_eq!(got, data);
    assert_eq!(fixture.watched, [(2, Watch::Out), (2, Watch::Stop)]);
    assert!(fixture.notified());
    assert_eq!(fixture.handle.delivery(1, data.len() as u64), Delivery::Done);
    // The bytes delivered since the last credit are less than a step.
    assert!(
        fixture.credits().iter().map(|credit| credit.bytes).sum::<u32>() + STREAM_WINDOW / 2
            > data.len() as u32
    );
}

#[test]
fn more_than_the_window_is_dropped() {
    let (mut fixture, _reader) = Fixture::stdout();
    fixture.output(1, &vec![0; PIPE_SIZE + STREAM_WINDOW as usize]);
    assert_eq!(fixture.table.complaints, 0);
    fixture.output(1, &[0; 4096]);
    assert_eq!(fixture.table.complaints, 1);
}

#[test]
fn a_client_that_disconnects_closes_its_stream() {
    let (mut fixture, reader) = Fixture::stdout();
    drop(reader);
    fixture.output(1, &[0; 1000]);
    assert_eq!(fixture.credits(), [Credit { seq: 1, bytes: 0 }]);
    fixture.output(1, &vec![0; 1 << 20]);
    assert_eq!(fixture.handle.delivery(1, 1000 + (1 << 20)), Delivery::Done);
    assert!(fixture.handle.error(1).is_none());
    assert!(!fixture.credits().is_empty(), "a process that goes on writing is not held up");
}

#[test]
fn a_client_that_disconnects_while_output_waits_closes_its_stream() {
    let (mut fixture, reader) = Fixture::stdout();
    fixture.output(1, &[0; 100_000]);
    fixture.credits();
    drop(reader);
    fixture.ready(2);
    assert_eq!(fixture.watched, [(2, Watch::Out), (2, Watch::Stop)]);
    assert_eq!(fixture.credits(), [Credit { seq: 1, bytes: 0 }]);
    assert_eq!(fixture.handle.delivery(1, 100_000), Delivery::Done);
}

#[test]
fn a_full_disk_is_reported_and_does_not_stop_the_process() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut fixture = Fixture::new(&[StreamSpec { seq: 1, source: None, sink: Some(full.as_raw_fd()) }]);
    fixture.output(1, &vec![0; 1 << 20]);
    assert_eq!(fixture.handle.error(1).unwrap().raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(fixture.handle.delivery(1, 1 << 20), Delivery::Done);
    assert!(fixture.credits().iter().all(|credit| credit.bytes > 0), "the stream is not closed");
}

#[test]
fn input_is_read_with_credit_and_ends_with_an_empty_frame() {
    let (mut fixture, mut writer) = Fixture::stdin(10);
    assert_eq!(fixture.watched, [(1, Watch::In)]);
    assert!(fixture.frames(4096).is_empty());
    writer.write_all(b"0123456789abcdef").unwrap();
    assert!(fixture.frames(4096).is_empty(), "not before the descriptor is ready");
    fixture.ready(1);
    assert_eq!(fixture.frames(4096), [StreamFrame { seq: 1, data: b"0123456789".into() }]);
    let mut credit = Vec::new();
    Credit::encode(&[Credit { seq: 1, bytes: 4 }, Credit { seq: 5, bytes: 4 }], &mut credit);
    fixture.take(&credit);
    assert_eq!(fixture.frames(4096), [StreamFrame { seq: 1, data: b"abcd".into() }]);
    fixture.take(&credit);
    drop(writer);
    fixture.ready(1);
    let end = StreamFrame { seq: 1, data: Vec::new() };
    assert_eq!(fixture.frames(4096), [StreamFrame { seq: 1, data: b"ef".into() }, end]);
    fixture.ready(1);
    assert!(fixture.frames(4096).is_empty());
}

#[test]
fn input_fits_buffers_of_any_size() {
    let data: Vec<u8> = (0..5000u32).map(|n| (n * 7) as u8).collect();
    for size in [1, 2, 11, 12, 13, 100, 4096, 1 << 20] {
        let (mut fixture, mut writer) = Fixture::stdin(STREAM_WINDOW);
        writer.write_all(&data).unwrap();
        drop(writer);
        let frames = fixture.frames(size);
        let got: Vec<u8> = frames.iter().flat_map(|frame| frame.data.clone()).collect();
        assert!(got == data, "{size}");
        assert!(frames.last().unwrap().data.is_empty());
        assert_eq!(frames.iter().filter(|frame| frame.data.is_empty()).count(), 1);
    }
}

#[test]
fn input_waits_for_the_process_and_stops_when_it_reads_no_more() {
    let (reader, mut writer) = pipe().unwrap();
    let mut fixture = Fixture::new(&[StreamSpec { seq: 1, source: Some(reader.as_raw_fd()), sink: None }]);
    writer.write_all(b"early").unwrap();
    assert!(fixture.frames(4096).is_empty());
    fixture.start(100);
    assert_eq!(fixture.frames(4096)[0].data, b"early");
    let mut closed = Vec::new();
    Credit::encode(&[Credit { seq: 1, bytes: 0 }], &mut closed);
    fixture.take(&closed);
    writer.write_all(b"late").unwrap();
    fixture.ready(1);
    assert!(fixture.frames(4096).is_empty());
}

#[test]
fn files_need_no_watching() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[9; 10_000]).unwrap();
    io::Seek::rewind(&mut file).unwrap();
    let null = File::open("/dev/null").unwrap();
    for (fd, length) in [(file.as_raw_fd(), 10_000), (null.as_raw_fd(), 0)] {
        let mut fixture = Fixture::new(&[StreamSpec { seq: 1, source: Some(fd), sink: None }]);
        fixture.handle.start(1, STREAM_WINDOW);
        fixture.table.ready(WAKE, &mut |_, _, _| Err(io::Error::from_raw_os_error(libc::EPERM)));
        let frames = fixture.frames(4096);
        assert_eq!(frames.iter().map(|frame| frame.data.len()).sum::<usize>(), length);
        assert!(frames.last().unwrap().data.is_empty());
    }
}

#[test]
fn the_first_byte_of_output_is_noted_once() {
    let (reader, writer) = pipe().unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let spec = StreamSpec { seq: 1, source: None, sink: Some(writer.as_raw_fd()) };
    let first = Box::new(move || sender.send(()).unwrap());
    let (mut table, _handle) = streams(&[spec], Some(first)).unwrap();
    let mut take = |data: &[u8]| {
        let mut bytes = Vec::new();
        StreamFrame { seq: 1, data: data.into() }.encode(&mut bytes);
        table.take(&bytes, &mut |_, _, _| Ok(()));
    };
    take(b"");
    assert!(receiver.try_recv().is_err());
    take(b"x");
    take(b"y");
    assert_eq!(receiver.iter().count(), 1);
    drop(reader);
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic_and_hold_no_more_than_the_window(
        frames in prop::collection::vec((0u64..4, 0usize..3000), 0..40),
        noise in prop::collection::vec(any::<u8>(), 0..512),
        step in 1usize..5000,
    ) {
        let (mut fixture, _reader) = Fixture::stdout();
        let mut bytes = Vec::new();
        for (seq, len) in frames {
            StreamFrame { seq, data: vec![seq as u8; len] }.encode(&mut bytes);
        }
        bytes.extend(noise);
        bytes.chunks(step).for_each(|chunk| fixture.take(chunk));
        fixture.ready(2);
        fixture.ready(u16::MAX);
        fixture.frames(100);
        prop_assert!(fixture.table.pending.left.is_empty() && fixture.table.pending.credits.is_empty());
        prop_assert!(fixture.table.complaints <= COMPLAINTS_MAX);
    }
}

#[test]
fn a_stream_that_is_opened_later_is_known_at_its_first_byte() {
    let mut fixture = Fixture::new(&[]);
    let (mut reader, writer) = pipe().unwrap();
    fixture.handle.open(&StreamSpec { seq: 3, source: None, sink: Some(writer.as_raw_fd()) }).unwrap();
    // The table was not woken.
    fixture.output(3, b"early");
    assert_eq!(read_all(&mut reader, 5), b"early");
    assert_eq!(fixture.handle.delivery(3, 5), Delivery::Done);
    assert_eq!(fixture.table.complaints, 0);
}

#[test]
fn a_closed_stream_closes_its_descriptors_and_its_place_is_reused() {
    let mut fixture = Fixture::new(&[]);
    for seq in (1..100).step_by(2) {
        let (mut out, out_writer) = pipe().unwrap();
        let (in_reader, mut into) = pipe().unwrap();
        let spec =
            StreamSpec { seq, source: Some(in_reader.as_raw_fd()), sink: Some(out_writer.as_raw_fd()) };
        fixture.handle.open(&spec).unwrap();
        drop((in_reader, out_writer));
        fixture.handle.start(seq, 100);
        fixture.ready(WAKE);
        fixture.output(seq, &[7; 2 * PIPE_SIZE]);
        fixture.watched.clear();
        fixture.handle.close(seq);
        fixture.ready(WAKE);
        assert_eq!(fixture.watched, [(SOURCE, Watch::Stop), (SINK, Watch::Stop)]);
        assert_eq!(fixture.table.streams.len(), 1);
        // Both descriptors are closed, and late frames are no fault.
        let mut all = Vec::new();
        out.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), PIPE_SIZE);
        assert_eq!(into.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        fixture.output(seq, b"late");
        let mut late = Vec::new();
        Credit::encode(&[Credit { seq, bytes: 4 }], &mut late);
        fixture.take(&late);
    }
    assert_eq!(fixture.table.complaints, 0);
    fixture.output(100, b"never opened");
    assert_eq!(fixture.table.complaints, 1);
}

#[test]
fn an_invalid_length_ends_all_streams_with_an_error() {
    let (mut fixture, mut reader) = Fixture::stdout();
    fixture.output(1, b"before");
    assert_eq!(fixture.handle.lost(), None);
    fixture.take(&[0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]);
    fixture.output(1, b"after");
    assert!(matches!(fixture.handle.lost(), Some(agent_proto::FrameError::TooLong { length: u32::MAX, .. })));
    assert!(sys::is_ready(fixture.handle.notify_fd(), libc::POLLIN));
    assert_eq!(read_all(&mut reader, 6), b"before");
    drop(fixture);
    assert_eq!(reader.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn a_guest_that_takes_no_input_has_one_credit_of_a_stream_waiting() {
    let null = File::options().write(true).open("/dev/null").unwrap();
    let mut fixture = Fixture::new(&[StreamSpec { seq: 1, source: None, sink: Some(null.as_raw_fd()) }]);
    for _ in 0..64 {
        fixture.output(1, &[0; STREAM_WINDOW as usize]);
    }
    let [credit] = fixture.credits()[..] else { panic!("one record") };
    // The bytes delivered since the last credit are less than a step.
    assert!(credit.seq == 1 && credit.bytes > 64 * STREAM_WINDOW - STREAM_WINDOW / 2);
}

#[test]
fn the_end_of_a_connection_s_output_is_passed_on_after_the_output() {
    let mut fixture = Fixture::new(&[]);
    let (ours, mut client) = std::os::unix::net::UnixStream::pair().unwrap();
    fixture.handle.open_connection(1, ours.as_fd()).unwrap();
    fixture.start(STREAM_WINDOW);
    let data = vec![7; STREAM_WINDOW as usize];
    fixture.output(1, &data);
    fixture.output(1, b"");
    fixture.take(&encode_header(1, 0));
    // The client takes output only as it reads it.
    assert!(fixture.watched.contains(&(SINK, Watch::Out)));
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        client.write_all(b"still open").unwrap();
        all
    });
    while !reader.is_finished() {
        fixture.ready(SINK);
        std::thread::yield_now();
    }
    assert!(reader.join().unwrap() == data);
    fixture.ready(SOURCE);
    let frames = fixture.frames(4096);
    let input = frames.iter().filter(|frame| frame.seq == 1).flat_map(|frame| frame.data.clone());
    assert_eq!(input.collect::<Vec<_>>(), b"still open");
}
