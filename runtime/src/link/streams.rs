//! The stream channel's host side: output from the guest's frames straight into the clients' descriptors, and their
//! input into the guest's frames.
//!
//! A [`StreamTable`] runs in the devices thread behind the port `sh.hyper.channel.1`; [`StreamHandle`] is the main
//! thread's end of it. A client that is slow fills its own stream's window and stops that stream alone.
//!
//! * A frame is never gathered: each piece is written as it comes, and only what the client does not take is kept.
//! * Input is read from the client's descriptor only with credit, a frame at a time: the guest's buffers are a page
//!   each, and one read for many of them costs less than the copy.
//! * A client that goes away closes its stream: the guest hears it and the process's next write fails.
//! * Output that cannot be written for any other reason (a full disk) is dropped, counted, and reported at the end.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use agent_proto::command::{CREDIT_SEQ, STREAM_FRAME_MAX};
use agent_proto::stream::{Credit, CreditDecoder, Piece, StreamSplitter};

use crate::sys;

pub mod descriptor;
mod port;
pub mod sink;
pub mod source;

use descriptor::{Descriptor, Use};
use sink::{Owed, Sink};
use source::Source;

/// The table's own descriptor, by which the main thread wakes it.
const WAKE: u16 = 0;
/// The most streams at a time; two for each process.
const STREAMS_MAX: usize = 1024;

/// How often a guest's faults are logged.
const COMPLAINTS_MAX: u32 = 16;

/// What a stream is tied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamSpec {
    /// The stream's number, not 0.
    pub seq: u64,
    /// Descriptor of this process to read.
    pub source: Option<RawFd>,
    /// Descriptor of this process to write.
    pub sink: Option<RawFd>,
}

/// A stream's counters, shared with the main thread.
#[derive(Debug)]
pub struct StreamState {
    /// Bytes that came from the guest.
    received: AtomicU64,
    /// Bytes that have left to the client or were dropped.
    delivered: AtomicU64,
    /// The main thread waits for this many.
    target: AtomicU64,
    /// The error that ended delivery; 0 for none.
    error: AtomicI32,
    /// Wakes the main thread.
    notify: Arc<File>,
}

impl StreamState {
    fn new(notify: Arc<File>) -> StreamState {
        StreamState {
            received: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            target: AtomicU64::new(u64::MAX),
            error: AtomicI32::new(0),
            notify,
        }
    }

    fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::SeqCst);
    }

    /// Counts, and wakes the main thread when it has waited for these bytes.
    fn delivered(&self, bytes: usize) {
        let before = self.delivered.fetch_add(bytes as u64, Ordering::SeqCst);
        let target = self.target.load(Ordering::SeqCst);
        if before < target && before + bytes as u64 >= target {
            wake(&self.notify);
        }
    }

    fn failed(&self, number: i32) {
        self.error.store(number, Ordering::SeqCst);
    }
}

/// Where a stream's output stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Every byte is with the client.
    Done,
    /// The client has to take what is here.
    Client,
    /// The guest has not sent all of it.
    Guest,
}

enum Order {
    /// The process is there: its stream's source may be read, with this window.
    Start(u64, u32),
}

/// What both threads hold.
struct Shared {
    orders: Mutex<Vec<Order>>,
    wake: File,
    notify: Arc<File>,
}

/// The main thread's end.
pub struct StreamHandle {
    shared: Arc<Shared>,
    states: Vec<(u64, Arc<StreamState>)>,
}

impl StreamHandle {
    /// Readable when a stream that is waited for may be complete.
    pub fn notify_fd(&self) -> BorrowedFd<'_> {
        self.shared.notify.as_fd()
    }

    /// Takes a notification.
    pub fn acknowledge(&self) {
        let mut count = [0; 8];
        // Nothing there to take is no error: the notification was taken before.
        let _ = io::Read::read(&mut &*self.shared.notify, &mut count);
    }

    /// The process of stream `seq` is there, and takes `window` bytes of input at a time.
    pub fn start(&self, seq: u64, window: u32) {
        self.shared.orders.lock().unwrap().push(Order::Start(seq, window));
        wake(&self.shared.wake);
    }

    /// Says whether `total` bytes of stream `seq` have reached the client, and asks for a notification when they do.
    pub fn delivery(&self, seq: u64, total: u64) -> Delivery {
        let Some((_, state)) = self.states.iter().find(|(known, _)| *known == seq) else {
            return Delivery::Done;
        };
        // The target is set before the count is read, and the table counts before it reads the target, so that one
        // of the two sees the other.
        state.target.store(total, Ordering::SeqCst);
        if state.delivered.load(Ordering::SeqCst) >= total {
            Delivery::Done
        } else if state.received.load(Ordering::SeqCst) >= total {
            Delivery::Client
        } else {
            Delivery::Guest
        }
    }

    /// The error that kept stream `seq`'s output from its client; a client that went away is none.
    pub fn error(&self, seq: u64) -> Option<io::Error> {
        let (_, state) = self.states.iter().find(|(known, _)| *known == seq)?;
        match state.error.load(Ordering::SeqCst) {
            0 => None,
            number => Some(io::Error::from_raw_os_error(number)),
        }
    }
}

/// How a descriptor is to be watched; always by edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Until there is something to read.
    In,
    /// Until there is room.
    Out,
    /// No more.
    Stop,
}

/// Registers a descriptor with whatever watches them. An error of EPERM says that it is always ready.
pub type Watcher<'a> = dyn FnMut(RawFd, u16, Watch) -> io::Result<()> + 'a;

/// Frames on their way to the guest: at most one of input, and one of credits, of which each goes out whole before
/// anything else.
#[derive(Default)]
struct Pending {
    credits: Vec<u8>,
    /// Room for the longest frame, once there was one.
    input: Vec<u8>,
    /// Which part of `input` is left.
    left: Range<usize>,
}

impl Pending {
    /// Moves what fits to `buffer`; returns how much.
    fn take(&mut self, buffer: &mut [u8]) -> usize {
        let input = self.left.len().min(buffer.len());
        buffer[..input].copy_from_slice(&self.input[self.left.start..self.left.start + input]);
        self.left.start += input;
        if !self.left.is_empty() {
            return input;
        }
        let credits = self.credits.len().min(buffer.len() - input);
        buffer[input..input + credits].copy_from_slice(&self.credits[..credits]);
        self.credits.drain(..credits);
        input + credits
    }

    /// Has `read` make a frame; there is none left.
    fn input(&mut self, read: impl FnOnce(&mut [u8]) -> usize) {
        if self.input.is_empty() {
            self.input = vec![0; STREAM_FRAME_MAX];
        }
        self.left = 0..read(&mut self.input);
    }
}

struct Stream {
    seq: u64,
    source: Option<Source>,
    sink: Option<Sink>,
}

/// The devices thread's end: every stream, and what is to go to the guest.
pub struct StreamTable {
    shared: Arc<Shared>,
    splitter: StreamSplitter,
    credits: CreditDecoder,
    streams: Vec<Stream>,
    /// Credit that the guest has not been given.
    owed: Vec<Credit>,
    /// Frames on their way to the guest.
    pending: Pending,
    /// The guest's frames make no sense any more: its bytes are dropped.
    lost: bool,
    /// What was logged about the guest.
    complaints: u32,
    /// Called at the first byte of output.
    first_output: Option<Box<dyn FnOnce() + Send>>,
}

/// Makes the two ends of a table with the streams `specs`. `first_output` is called when the first byte has come.
pub fn streams(
    specs: &[StreamSpec],
    first_output: Option<Box<dyn FnOnce() + Send>>,
) -> io::Result<(StreamTable, StreamHandle)> {
    assert!(specs.len() <= STREAMS_MAX, "the tables are made by this program");
    let shared = Arc::new(Shared {
        orders: Mutex::new(Vec::new()),
        wake: sys::eventfd()?,
        notify: Arc::new(sys::eventfd()?),
    });
    let mut streams = Vec::new();
    let mut states = Vec::new();
    for spec in specs {
        let state = Arc::new(StreamState::new(shared.notify.clone()));
        let source = spec.source.map(|fd| Descriptor::open(fd, Use::Source)).transpose()?;
        let sink = spec.sink.map(|fd| Descriptor::open(fd, Use::Sink)).transpose()?;
        streams.push(Stream {
            seq: spec.seq,
            source: source.map(|descriptor| Source::new(spec.seq, descriptor)),
            sink: sink.map(|descriptor| Sink::new(descriptor, state.clone())),
        });
        states.push((spec.seq, state));
    }
    let table = StreamTable {
        shared: shared.clone(),
        splitter: StreamSplitter::new(),
        credits: CreditDecoder::default(),
        streams,
        owed: Vec::new(),
        pending: Pending::default(),
        lost: false,
        complaints: 0,
        first_output,
    };
    Ok((table, StreamHandle { shared, states }))
}

impl StreamTable {
    /// Registers the table's own descriptor.
    pub fn begin(&mut self, watch: &mut Watcher<'_>) -> io::Result<()> {
        watch(self.shared.wake.as_raw_fd(), WAKE, Watch::In)
    }

    /// Takes all of what the guest sent.
    pub fn take(&mut self, mut data: &[u8], watch: &mut Watcher<'_>) {
        while !self.lost {
            match self.splitter.split(&mut data) {
                Ok(Some(piece)) if piece.seq == CREDIT_SEQ => self.take_credit(piece),
                Ok(Some(piece)) => self.take_output(piece, watch),
                Ok(None) => return,
                Err(error) => {
                    log::error!("stream channel: {error}; nothing more is taken from it");
                    self.lost = true;
                }
            }
        }
    }

    /// Fills `buffer` with whole or partial frames for the guest; returns how much.
    pub fn fill(&mut self, buffer: &mut [u8]) -> usize {
        let mut filled = 0;
        loop {
            filled += self.pending.take(&mut buffer[filled..]);
            if filled == buffer.len() {
                return filled;
            }
            if !self.owed.is_empty() {
                let count = self.owed.len().min(Credit::FRAME_MAX);
                Credit::encode(&self.owed[..count], &mut self.pending.credits);
                self.owed.drain(..count);
                continue;
            }
            let mut sources = self.streams.iter_mut().filter_map(|stream| stream.source.as_mut());
            let Some(source) = sources.find(|source| source.has_more()) else { return filled };
            self.pending.input(|frame| source.frame(frame));
        }
    }

    /// One of the table's descriptors became ready.
    pub fn ready(&mut self, token: u16, watch: &mut Watcher<'_>) {
        if token == WAKE {
            return self.take_orders(watch);
        }
        let (index, is_sink) = (usize::from(token - 1) / 2, token.is_multiple_of(2));
        let Some(stream) = self.streams.get_mut(index) else { return };
        if let (Some(sink), true) = (&mut stream.sink, is_sink) {
            let watched = sink.blocked().map(Descriptor::raw);
            sink.flush();
            self.settle(index, watched, watch);
        } else if let Some(source) = &mut stream.source {
            source.ready();
        }
    }

    fn take_orders(&mut self, watch: &mut Watcher<'_>) {
        let mut count = [0; 8];
        // Nothing there to take is no error: the orders are looked at all the same.
        let _ = io::Read::read(&mut &self.shared.wake, &mut count);
        for Order::Start(seq, window) in self.shared.orders.lock().unwrap().drain(..) {
            let found = self.streams.iter_mut().enumerate().find(|(_, stream)| stream.seq == seq);
            let Some((index, Stream { source: Some(source), .. })) = found else { continue };
            if source.start(window)
                && let Err(error) = watch(source.descriptor().raw(), 2 * index as u16 + 1, Watch::In)
            {
                // A file or /dev/null: it never has to be waited for.
                log::debug!("stdin is not watched: {error}");
            }
        }
    }

    fn take_credit(&mut self, piece: Piece<'_>) {
        let mut data = piece.data;
        while let Some(credit) = self.credits.next(&mut data, piece.end) {
            let stream = self.streams.iter_mut().find(|stream| stream.seq == credit.seq);
            match stream.and_then(|stream| stream.source.as_mut()) {
                Some(source) => source.give(credit.bytes),
                None => self.complain(format_args!("credit for stream {}, which has no input", credit.seq)),
            }
        }
    }

    fn take_output(&mut self, piece: Piece<'_>, watch: &mut Watcher<'_>) {
        if !piece.data.is_empty()
            && let Some(first_output) = self.first_output.take()
        {
            first_output();
        }
        let found = self.streams.iter_mut().enumerate().find(|(_, stream)| stream.seq == piece.seq);
        let Some((index, Stream { sink: Some(sink), .. })) = found else {
            return self.complain(format_args!("output of stream {}, which nobody has opened", piece.seq));
        };
        let watched = sink.blocked().map(Descriptor::raw);
        let taken = sink.take(piece.data);
        self.settle(index, watched, watch);
        if let Err(error) = taken {
            self.complain(format_args!("stream {}: {error}", piece.seq));
        }
    }

    /// Notes the credit that a sink owes, and watches its descriptor as long as something waits for it. `watched` is
    /// the descriptor that something waited for before.
    fn settle(&mut self, index: usize, watched: Option<RawFd>, watch: &mut Watcher<'_>) {
        let Stream { seq, sink: Some(sink), .. } = &mut self.streams[index] else { return };
        let token = 2 * index as u16 + 2;
        match (watched, sink.blocked().map(Descriptor::raw)) {
            (None, Some(fd)) => {
                if let Err(error) = watch(fd, token, Watch::Out) {
                    sink.give_up(&error);
                    sink.flush();
                }
            }
            (Some(fd), None) => {
                if let Err(error) = watch(fd, token, Watch::Stop) {
                    log::debug!("stream {seq}: stop watching: {error}");
                }
            }
            _ => {}
        }
        match sink.take_owed() {
            Owed::Nothing => {}
            Owed::Credit(bytes) => self.owed.push(Credit { seq: *seq, bytes }),
            Owed::Closed => self.owed.push(Credit { seq: *seq, bytes: 0 }),
        }
    }

    /// Logs what the guest does wrong; a guest that goes on is not heard for ever.
    fn complain(&mut self, what: std::fmt::Arguments<'_>) {
        if self.complaints < COMPLAINTS_MAX {
            self.complaints += 1;
            log::warn!("stream channel: {what}");
        }
    }
}

/// Adds one to an eventfd; a full one is as good as woken.
fn wake(mut eventfd: &File) {
    let _ = eventfd.write(&1_u64.to_ne_bytes());
}

#[cfg(test)]
mod tests;
