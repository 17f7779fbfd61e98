//! The main thread's side of the streams: requests to the table, and the progress of each stream.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use agent_proto::FrameError;
use devices::StateError;
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

/// State of a stream, shared between both threads.
#[derive(Debug)]
pub struct StreamState {
    progress: Mutex<Progress>,
    /// Eventfd that wakes the main thread.
    notify: Arc<File>,
}

#[derive(Debug, Default)]
struct Progress {
    /// Bytes of output received from the guest.
    received: u64,
    /// Bytes of output written to the client or dropped.
    delivered: u64,
    /// Value of `delivered` that the main thread waits for, if it does.
    target: Option<u64>,
    /// errno that ended delivery.
    error: Option<i32>,
    /// Bytes of input sent to the guest; counted only without credit.
    sent: u64,
    /// Whether the guest has ended the stream.
    ended: bool,
    /// Whether the client has disconnected and the guest cannot be informed.
    hung_up: bool,
}

impl StreamState {
    /// Returns the bytes that were received and delivered, and whether the guest has ended the stream.
    pub(super) fn counts(&self) -> (u64, u64, bool) {
        let progress = self.progress();
        (progress.received, progress.delivered, progress.ended)
    }

    /// Sets what [`counts`](Self::counts) returns.
    pub(super) fn set_counts(&self, (received, delivered, ended): (u64, u64, bool)) {
        let mut progress = self.progress();
        (progress.received, progress.delivered, progress.ended) = (received, delivered, ended);
    }

    fn new(notify: Arc<File>) -> StreamState {
        StreamState { progress: Mutex::default(), notify }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap()
    }

    pub(super) fn received(&self, bytes: usize) {
        self.progress().received += bytes as u64;
    }

    /// Counts delivered bytes, and wakes the main thread once its target is reached.
    pub(super) fn delivered(&self, bytes: usize) {
        let mut progress = self.progress();
        let before = progress.delivered;
        progress.delivered += bytes as u64;
        if progress.target.is_some_and(|target| before < target && target <= progress.delivered) {
            wake(&self.notify);
        }
    }

    /// Counts input, and wakes the main thread, which asks the agent whether the input was taken.
    pub(super) fn sent(&self, bytes: usize) {
        self.progress().sent += bytes as u64;
        wake(&self.notify);
    }

    /// Records the stream's end, and wakes the main thread if no exit report does.
    pub(super) fn ended(&self, tell: bool) {
        self.progress().ended = true;
        if tell {
            wake(&self.notify);
        }
    }

    /// Records that the client has disconnected, and wakes the main thread, which informs the process.
    pub(super) fn hung_up(&self) {
        self.progress().hung_up = true;
        wake(&self.notify);
    }

    pub(super) fn failed(&self, number: i32) {
        self.progress().error = Some(number);
    }
}

/// How much of a stream's output has arrived at its client.
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
pub(super) enum Request {
    /// Adds a stream.
    Open(Stream),
    /// Starts reading the stream's source, with this window: its process exists.
    Start(u64, u32),
    /// Grants this much credit for the stream's input.
    Give(u64, u32),
    Close(u64),
    /// Stops everything, and sends the table's state.
    Freeze(Sender<Result<Vec<u8>, StateError>>),
    /// Lets everything go on after a freeze.
    Thaw,
}

/// State shared by both threads.
pub(super) struct Shared {
    pub(super) requests: Mutex<Vec<Request>>,
    pub(super) wake: File,
    notify: Arc<File>,
    /// The first invalid frame, after which all output is lost.
    lost: OnceLock<FrameError>,
}

impl Shared {
    pub(super) fn new() -> io::Result<Shared> {
        Ok(Shared {
            requests: Mutex::new(Vec::new()),
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
        let stream = self.make(spec, false)?;
        self.add(stream);
        Ok(())
    }

    /// Opens stream `seq` over a connection, which is both source and sink. The client is told when no output follows.
    pub fn open_connection(&mut self, seq: u64, connection: BorrowedFd<'_>) -> io::Result<()> {
        let fd = Some(connection.as_raw_fd());
        let stream = self.make(&StreamSpec { seq, source: fd, sink: fd }, true)?;
        self.add(stream);
        Ok(())
    }

    fn add(&self, stream: Stream) {
        self.shared.requests.lock().unwrap().push(Request::Open(stream));
    }

    /// Creates a stream and keeps its counters.
    pub(super) fn make(&mut self, spec: &StreamSpec, is_connection: bool) -> io::Result<Stream> {
        if self.states.len() >= STREAMS_MAX {
            return Err(io::Error::other(format!("limit of {STREAMS_MAX} streams reached")));
        }
        let state = Arc::new(StreamState::new(self.shared.notify.clone()));
        let stream = Stream::open(spec, state.clone(), is_connection)?;
        self.states.push((spec.seq, state));
        Ok(stream)
    }

    /// Starts input of stream `seq`: its process exists and accepts `window` bytes at a time.
    pub fn start(&self, seq: u64, window: u32) {
        self.request(Request::Start(seq, window));
    }

    /// Grants `bytes` of credit for input of stream `seq`, for a guest that grants none itself.
    pub fn give(&self, seq: u64, bytes: u32) {
        self.request(Request::Give(seq, bytes));
    }

    /// Returns the bytes of input that stream `seq` has sent to a guest without credit.
    pub fn sent(&self, seq: u64) -> u64 {
        self.progress(seq).map_or(0, |progress| progress.sent)
    }

    /// Returns the bytes of output that the guest has sent on stream `seq`.
    pub fn received(&self, seq: u64) -> u64 {
        self.progress(seq).map_or(0, |progress| progress.received)
    }

    /// Whether the guest has ended stream `seq`.
    pub fn is_ended(&self, seq: u64) -> bool {
        self.progress(seq).is_none_or(|progress| progress.ended)
    }

    /// Whether the client of stream `seq` has disconnected and the guest cannot be informed.
    pub fn is_hung_up(&self, seq: u64) -> bool {
        self.progress(seq).is_some_and(|progress| progress.hung_up)
    }

    fn progress(&self, seq: u64) -> Option<MutexGuard<'_, Progress>> {
        self.states.iter().find(|(known, _)| *known == seq).map(|(_, state)| state.progress())
    }

    /// Closes stream `seq` with its descriptors, and drops output that its client has not accepted.
    pub fn close(&mut self, seq: u64) {
        self.states.retain(|(known, _)| *known != seq);
        self.request(Request::Close(seq));
    }

    /// Stops all streams and returns their state, at most after `patience`. They go on after [`thaw`](Self::thaw).
    pub fn freeze(&self, patience: Duration) -> Result<Vec<u8>, StateError> {
        let (saved, state) = channel();
        self.request(Request::Freeze(saved));
        state.recv_timeout(patience).unwrap_or(Err(StateError::Busy("the devices' thread does not answer")))
    }

    /// Lets all streams go on.
    pub fn thaw(&self) {
        self.request(Request::Thaw);
    }

    fn request(&self, request: Request) {
        self.shared.requests.lock().unwrap().push(request);
        wake(&self.shared.wake);
    }

    /// Returns the progress of stream `seq` towards `total` bytes, and requests a notification when they are delivered.
    pub fn delivery(&self, seq: u64, total: u64) -> Delivery {
        let Some(mut progress) = self.progress(seq) else { return Delivery::Done };
        progress.target = Some(total);
        if progress.delivered >= total {
            Delivery::Done
        } else if progress.received >= total {
            Delivery::Client
        } else {
            Delivery::Guest
        }
    }

    /// Returns the error that prevented delivery of stream `seq`'s output. A disconnected client is no error.
    pub fn error(&self, seq: u64) -> Option<io::Error> {
        self.progress(seq)?.error.map(io::Error::from_raw_os_error)
    }
}

/// Adds one to an eventfd. A full eventfd is readable anyway.
fn wake(mut eventfd: &File) {
    let _ = eventfd.write(&1_u64.to_ne_bytes());
}
