//! The main thread's side of the streams: requests to the table, and the progress of each stream.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use agent_proto::FrameError;
use host::sys;

use super::Stream;

/// Maximum number of streams at a time; each process has two.
const STREAMS_MAX: usize = 2048;

/// Number and descriptors of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamSpec {
    /// Number of the stream: not 0, and higher than those of all earlier streams.
    pub seq: u64,
    /// Descriptor of this process to read input from.
    pub source: Option<RawFd>,
    /// Descriptor of this process to write output to.
    pub sink: Option<RawFd>,
}

/// Counters of a stream, shared between both threads.
#[derive(Debug)]
pub struct StreamState {
    /// Bytes of output received from the guest.
    received: AtomicU64,
    /// Bytes of output written to the client or dropped.
    delivered: AtomicU64,
    /// Value of `delivered` that the main thread waits for.
    target: AtomicU64,
    /// errno that ended delivery; 0 for none.
    error: AtomicI32,
    /// Bytes of input sent to the guest; counted only without credit.
    sent: AtomicU64,
    /// Whether the guest has ended the stream.
    ended: AtomicBool,
    /// Whether the client has disconnected and the guest cannot be informed.
    hung_up: AtomicBool,
    /// Eventfd that wakes the main thread.
    notify: Arc<File>,
}

impl StreamState {
    fn new(notify: Arc<File>) -> StreamState {
        StreamState {
            received: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            target: AtomicU64::new(u64::MAX),
            error: AtomicI32::new(0),
            sent: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            hung_up: AtomicBool::new(false),
            notify,
        }
    }

    pub(super) fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::SeqCst);
    }

    /// Counts delivered bytes, and wakes the main thread once its target is reached.
    pub(super) fn delivered(&self, bytes: usize) {
        let before = self.delivered.fetch_add(bytes as u64, Ordering::SeqCst);
        let target = self.target.load(Ordering::SeqCst);
        if before < target && before + bytes as u64 >= target {
            wake(&self.notify);
        }
    }

    /// Counts input, and wakes the main thread, which asks the agent whether the input was taken.
    pub(super) fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::SeqCst);
        wake(&self.notify);
    }

    /// Records the stream's end, and wakes the main thread if no exit report does.
    pub(super) fn ended(&self, tell: bool) {
        self.ended.store(true, Ordering::SeqCst);
        if tell {
            wake(&self.notify);
        }
    }

    /// Records that the client has disconnected, and wakes the main thread, which informs the process.
    pub(super) fn hung_up(&self) {
        self.hung_up.store(true, Ordering::SeqCst);
        wake(&self.notify);
    }

    pub(super) fn failed(&self, number: i32) {
        self.error.store(number, Ordering::SeqCst);
    }
}

/// Progress of a stream's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// All bytes were written to the client or dropped.
    Done,
    /// The table has bytes that the client has not accepted.
    Client,
    /// The guest has not sent all bytes.
    Guest,
}

/// A request of the main thread to the table.
pub(super) enum Order {
    /// Adds a stream.
    Open(Stream),
    /// Starts reading the stream's source, with this window: its process exists.
    Start(u64, u32),
    /// Grants this much credit for the stream's input.
    Give(u64, u32),
    /// Removes the stream.
    Close(u64),
}

/// State shared by both threads.
pub(super) struct Shared {
    pub(super) orders: Mutex<Vec<Order>>,
    pub(super) wake: File,
    notify: Arc<File>,
    /// The first invalid frame, after which all output is lost.
    lost: OnceLock<FrameError>,
}

impl Shared {
    pub(super) fn new() -> io::Result<Shared> {
        Ok(Shared {
            orders: Mutex::new(Vec::new()),
            wake: sys::eventfd()?,
            notify: Arc::new(sys::eventfd()?),
            lost: OnceLock::new(),
        })
    }

    /// Records an invalid frame of the guest.
    pub(super) fn lose(&self, error: FrameError) {
        // Only the first error counts; the table drops everything after it.
        let _ = self.lost.set(error);
        wake(&self.notify);
    }
}

/// The main thread's side of the streams.
pub struct StreamHandle {
    shared: Arc<Shared>,
    states: Vec<(u64, Arc<StreamState>)>,
}

impl StreamHandle {
    pub(super) fn new(shared: Arc<Shared>) -> StreamHandle {
        StreamHandle { shared, states: Vec::new() }
    }

    /// Returns why no stream can deliver any more, if so: an invalid length, after which the start of the next frame is
    /// unknown.
    pub fn lost(&self) -> Option<FrameError> {
        self.shared.lost.get().copied()
    }

    /// Returns a descriptor that is readable when a stream may have reached its target, or all are lost.
    pub fn notify_fd(&self) -> BorrowedFd<'_> {
        self.shared.notify.as_fd()
    }

    /// Clears the notification.
    pub fn acknowledge(&self) {
        let mut count = [0; 8];
        // An empty eventfd is no error: an earlier call has cleared the notification.
        let _ = io::Read::read(&mut &*self.shared.notify, &mut count);
    }

    /// Opens a stream over descriptors of this process, which do not change.
    ///
    /// The caller must open a stream before it sends the command that starts the process: the table is not woken for
    /// it, and checks for new streams only when the guest uses an unknown number.
    pub fn open(&mut self, spec: &StreamSpec) -> io::Result<()> {
        let stream = self.make(spec)?;
        self.order(Order::Open(stream));
        Ok(())
    }

    /// Creates a stream and keeps its counters.
    pub(super) fn make(&mut self, spec: &StreamSpec) -> io::Result<Stream> {
        if self.states.len() >= STREAMS_MAX {
            return Err(io::Error::other(format!("limit of {STREAMS_MAX} streams reached")));
        }
        let state = Arc::new(StreamState::new(self.shared.notify.clone()));
        let stream = Stream::open(spec, state.clone())?;
        self.states.push((spec.seq, state));
        Ok(stream)
    }

    /// Starts input of stream `seq`: its process exists and accepts `window` bytes at a time.
    pub fn start(&self, seq: u64, window: u32) {
        self.order(Order::Start(seq, window));
        wake(&self.shared.wake);
    }

    /// Grants `bytes` of credit for input of stream `seq`, for a guest that grants none itself.
    pub fn give(&self, seq: u64, bytes: u32) {
        self.order(Order::Give(seq, bytes));
        wake(&self.shared.wake);
    }

    /// Returns the bytes of input that stream `seq` has sent to a guest without credit.
    pub fn sent(&self, seq: u64) -> u64 {
        self.state(seq).map_or(0, |state| state.sent.load(Ordering::SeqCst))
    }

    /// Returns the bytes of output that the guest has sent on stream `seq`.
    pub fn received(&self, seq: u64) -> u64 {
        self.state(seq).map_or(0, |state| state.received.load(Ordering::SeqCst))
    }

    /// Whether the guest has ended stream `seq`.
    pub fn is_ended(&self, seq: u64) -> bool {
        self.state(seq).is_none_or(|state| state.ended.load(Ordering::SeqCst))
    }

    /// Whether the client of stream `seq` has disconnected and the guest cannot be informed.
    pub fn is_hung_up(&self, seq: u64) -> bool {
        self.state(seq).is_some_and(|state| state.hung_up.load(Ordering::SeqCst))
    }

    fn state(&self, seq: u64) -> Option<&StreamState> {
        self.states.iter().find(|(known, _)| *known == seq).map(|(_, state)| &**state)
    }

    /// Closes stream `seq` with its descriptors, and drops output that its client has not accepted.
    pub fn close(&mut self, seq: u64) {
        self.states.retain(|(known, _)| *known != seq);
        self.order(Order::Close(seq));
        wake(&self.shared.wake);
    }

    fn order(&self, order: Order) {
        self.shared.orders.lock().unwrap().push(order);
    }

    /// Returns the progress of stream `seq` towards `total` bytes, and requests a notification when they are delivered.
    pub fn delivery(&self, seq: u64, total: u64) -> Delivery {
        let Some(state) = self.state(seq) else { return Delivery::Done };
        // The target is stored before the count is read, and the table counts before it reads the target, so that at
        // least one of the two threads sees the other's value.
        state.target.store(total, Ordering::SeqCst);
        if state.delivered.load(Ordering::SeqCst) >= total {
            Delivery::Done
        } else if state.received.load(Ordering::SeqCst) >= total {
            Delivery::Client
        } else {
            Delivery::Guest
        }
    }

    /// Returns the error that prevented delivery of stream `seq`'s output. A disconnected client is no error.
    pub fn error(&self, seq: u64) -> Option<io::Error> {
        match self.state(seq)?.error.load(Ordering::SeqCst) {
            0 => None,
            number => Some(io::Error::from_raw_os_error(number)),
        }
    }
}

/// Adds one to an eventfd. A full eventfd is readable anyway.
fn wake(mut eventfd: &File) {
    let _ = eventfd.write(&1_u64.to_ne_bytes());
}
