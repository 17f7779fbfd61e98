//! The main thread's end of the streams: what it asks of the table, and how far each stream is.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use agent_proto::FrameError;
use host::sys;

use super::Stream;

/// The most streams at a time; two for each process.
const STREAMS_MAX: usize = 2048;

/// What a stream is tied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamSpec {
    /// The stream's number, not 0, and above every earlier one's.
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
    /// Bytes of input that went to the guest; counted where there is no credit.
    sent: AtomicU64,
    /// The guest has ended the stream.
    ended: AtomicBool,
    /// The client is gone, and the guest cannot be told.
    hung_up: AtomicBool,
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
            sent: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            hung_up: AtomicBool::new(false),
            notify,
        }
    }

    pub(super) fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::SeqCst);
    }

    /// Counts, and wakes the main thread when it has waited for these bytes.
    pub(super) fn delivered(&self, bytes: usize) {
        let before = self.delivered.fetch_add(bytes as u64, Ordering::SeqCst);
        let target = self.target.load(Ordering::SeqCst);
        if before < target && before + bytes as u64 >= target {
            wake(&self.notify);
        }
    }

    /// Counts input, and wakes the main thread, which finds out when it is taken.
    pub(super) fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::SeqCst);
        wake(&self.notify);
    }

    /// Takes note of the stream's end, and wakes the main thread if nothing else tells it.
    pub(super) fn ended(&self, tell: bool) {
        self.ended.store(true, Ordering::SeqCst);
        if tell {
            wake(&self.notify);
        }
    }

    /// Takes note that the client is gone, and wakes the main thread, which has to tell the process.
    pub(super) fn hung_up(&self) {
        self.hung_up.store(true, Ordering::SeqCst);
        wake(&self.notify);
    }

    pub(super) fn failed(&self, number: i32) {
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

/// What the main thread asks of the table.
pub(super) enum Order {
    /// There is a further stream.
    Open(Stream),
    /// The process is there: its stream's source may be read, with this window.
    Start(u64, u32),
    /// So many bytes of the stream's input have been taken.
    Give(u64, u32),
    /// Nothing more of this stream is wanted.
    Close(u64),
}

/// What both threads hold.
pub(super) struct Shared {
    pub(super) orders: Mutex<Vec<Order>>,
    pub(super) wake: File,
    notify: Arc<File>,
    /// Why nothing more comes.
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

    /// The guest's frames make no sense any more.
    pub(super) fn lose(&self, error: FrameError) {
        // The first error says why; the table takes nothing after it.
        let _ = self.lost.set(error);
        wake(&self.notify);
    }
}

/// The main thread's end.
pub struct StreamHandle {
    shared: Arc<Shared>,
    states: Vec<(u64, Arc<StreamState>)>,
}

impl StreamHandle {
    pub(super) fn new(shared: Arc<Shared>) -> StreamHandle {
        StreamHandle { shared, states: Vec::new() }
    }

    /// Why nothing more comes out of any stream, if that is so: a length that no frame can have, after which nobody knows
    /// where the next frame begins.
    pub fn lost(&self) -> Option<FrameError> {
        self.shared.lost.get().copied()
    }

    /// Readable when a stream that is waited for may be complete, or all are lost.
    pub fn notify_fd(&self) -> BorrowedFd<'_> {
        self.shared.notify.as_fd()
    }

    /// Takes a notification.
    pub fn acknowledge(&self) {
        let mut count = [0; 8];
        // Nothing there to take is no error: the notification was taken before.
        let _ = io::Read::read(&mut &*self.shared.notify, &mut count);
    }

    /// Opens a further stream over descriptors of this process, which stay as they are.
    ///
    /// To be called before the command that starts the stream's process is sent: nobody is woken for it, the table looks
    /// here when it meets a stream that it does not know.
    pub fn open(&mut self, spec: &StreamSpec) -> io::Result<()> {
        let stream = self.make(spec)?;
        self.order(Order::Open(stream));
        Ok(())
    }

    /// Returns the stream, whose counters this side has from here on.
    pub(super) fn make(&mut self, spec: &StreamSpec) -> io::Result<Stream> {
        if self.states.len() >= STREAMS_MAX {
            return Err(io::Error::other(format!("{STREAMS_MAX} streams are the most")));
        }
        let state = Arc::new(StreamState::new(self.shared.notify.clone()));
        let stream = Stream::open(spec, state.clone())?;
        self.states.push((spec.seq, state));
        Ok(stream)
    }

    /// The process of stream `seq` is there, and takes `window` bytes of input at a time.
    pub fn start(&self, seq: u64, window: u32) {
        self.order(Order::Start(seq, window));
        wake(&self.shared.wake);
    }

    /// Says that `bytes` more of stream `seq`'s input have been taken, where the guest does not say so itself.
    pub fn give(&self, seq: u64, bytes: u32) {
        self.order(Order::Give(seq, bytes));
        wake(&self.shared.wake);
    }

    /// Bytes of stream `seq`'s input that went to the guest, where it gives no credit.
    pub fn sent(&self, seq: u64) -> u64 {
        self.state(seq).map_or(0, |state| state.sent.load(Ordering::SeqCst))
    }

    /// Bytes that came of stream `seq`.
    pub fn received(&self, seq: u64) -> u64 {
        self.state(seq).map_or(0, |state| state.received.load(Ordering::SeqCst))
    }

    /// Whether the guest has ended stream `seq`.
    pub fn is_ended(&self, seq: u64) -> bool {
        self.state(seq).is_none_or(|state| state.ended.load(Ordering::SeqCst))
    }

    /// Whether stream `seq`'s client is gone, where the guest cannot be told.
    pub fn is_hung_up(&self, seq: u64) -> bool {
        self.state(seq).is_some_and(|state| state.hung_up.load(Ordering::SeqCst))
    }

    fn state(&self, seq: u64) -> Option<&StreamState> {
        self.states.iter().find(|(known, _)| *known == seq).map(|(_, state)| &**state)
    }

    /// Lets go of stream `seq`: its descriptors are closed, what its client has not taken is dropped.
    pub fn close(&mut self, seq: u64) {
        self.states.retain(|(known, _)| *known != seq);
        self.order(Order::Close(seq));
        wake(&self.shared.wake);
    }

    fn order(&self, order: Order) {
        self.shared.orders.lock().unwrap().push(order);
    }

    /// Says whether `total` bytes of stream `seq` have reached the client, and asks for a notification when they do.
    pub fn delivery(&self, seq: u64, total: u64) -> Delivery {
        let Some(state) = self.state(seq) else { return Delivery::Done };
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
        match self.state(seq)?.error.load(Ordering::SeqCst) {
            0 => None,
            number => Some(io::Error::from_raw_os_error(number)),
        }
    }
}

/// Adds one to an eventfd; a full one is as good as woken.
fn wake(mut eventfd: &File) {
    let _ = eventfd.write(&1_u64.to_ne_bytes());
}
