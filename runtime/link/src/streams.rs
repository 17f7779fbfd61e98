//! The host's side of the stream channel: writes output from the guest's frames directly to the clients' descriptors,
//! and reads their input into frames for the guest.
//!
//! A [`StreamTable`] runs in the devices thread behind the port `sh.hyper.channel.1`. [`StreamHandle`] is its
//! counterpart in the main thread, which opens and closes streams as processes start and exit. A slow client fills the
//! window of its own stream and stops only that stream.
//!
//! * A frame is never assembled: each piece is written when it arrives, and only bytes that the client does not accept
//!   are kept.
//! * Input is read from the client's descriptor only with credit and one frame at a time: the guest's buffers have the
//!   size of a page, and one read for many of them is cheaper than the copy.
//! * A client that disconnects closes its stream: the guest is informed, and the process's next write fails.
//! * An agent of API 4244 has no credit: its port is not read while any client is slow, and the main thread grants the
//!   credit for its input.
//! * Output that cannot be written for another reason (a full disk) is dropped, counted, and reported at the end.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use agent_proto::command::{CREDIT_SEQ, STREAM_FRAME_MAX, STREAM_HEADER};
use agent_proto::stream::{Credit, CreditDecoder, Piece, StreamSplitter};

pub mod descriptor;
mod handle;
mod port;
mod saved;
pub mod sink;
pub mod source;

use descriptor::{Descriptor, Use};
pub use handle::{Delivery, StreamHandle, StreamSpec, StreamState};
use handle::{Request, Shared};
pub use saved::continued;
use sink::{Owed, Sink};
use source::Source;

/// Token of the descriptor through which the main thread wakes the table.
const WAKE: u16 = 0;
/// Added to twice the index of a stream: token of its source.
const SOURCE: u16 = 1;
/// Added to twice the index of a stream: token of its sink.
const SINK: u16 = 2;
/// Maximum number of logged faults of a guest.
const COMPLAINTS_MAX: u32 = 16;

/// Events for which a descriptor is watched, always edge-triggered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    In,
    Out,
    /// None: stop watching.
    Stop,
}

/// Registers a descriptor in an event loop, with its token. EPERM means that the descriptor is always ready.
pub type Watcher<'a> = dyn FnMut(RawFd, u16, Watch) -> io::Result<()> + 'a;

/// Frames in transit to the guest: at most one of input and one of credits. Each is sent completely before the other.
#[derive(Default)]
struct Pending {
    credits: Vec<u8>,
    /// Buffer for the longest frame; empty until the first input.
    input: Vec<u8>,
    /// Range of `input` that was not sent.
    left: Range<usize>,
    /// Stream and number of data bytes to count once the frame is sent; only without credit.
    counted: Option<(Arc<StreamState>, usize)>,
}

impl Pending {
    /// Moves bytes to `buffer`. Returns their number.
    fn take(&mut self, buffer: &mut [u8]) -> usize {
        let input = self.left.len().min(buffer.len());
        buffer[..input].copy_from_slice(&self.input[self.left.start..self.left.start + input]);
        self.left.start += input;
        if !self.left.is_empty() {
            return input;
        }
        if let Some((state, bytes)) = self.counted.take() {
            state.sent(bytes);
        }
        let credits = self.credits.len().min(buffer.len() - input);
        buffer[input..input + credits].copy_from_slice(&self.credits[..credits]);
        self.credits.drain(..credits);
        input + credits
    }

    /// Fills the empty input buffer by `read`, which returns the length of the frame.
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
    /// Whether the descriptor of the source is registered.
    watched: bool,
    sink: Option<Sink>,
    state: Arc<StreamState>,
}

impl Stream {
    fn open(spec: &StreamSpec, state: Arc<StreamState>, is_connection: bool) -> io::Result<Stream> {
        let as_sink = if is_connection { Sink::of_connection } else { Sink::new };
        let source = spec.source.map(|fd| Descriptor::open(fd, Use::Source)).transpose()?;
        let sink = spec.sink.map(|fd| Descriptor::open(fd, Use::Sink)).transpose()?;
        Ok(Stream {
            seq: spec.seq,
            source: source.map(|descriptor| Source::new(spec.seq, descriptor)),
            watched: false,
            sink: sink.map(|descriptor| as_sink(descriptor, state.clone())),
            state,
        })
    }

    /// Returns the registered descriptors, each with [`SOURCE`] or [`SINK`].
    fn registered(&self) -> impl Iterator<Item = (RawFd, u16)> {
        let source = self.source.as_ref().filter(|_| self.watched).map(|source| source.descriptor().raw());
        let sink = self.sink.as_ref().and_then(Sink::blocked).map(Descriptor::raw);
        source.map(|fd| (fd, SOURCE)).into_iter().chain(sink.map(|fd| (fd, SINK)))
    }
}

/// All streams and the frames for the guest; belongs to the devices thread.
pub struct StreamTable {
    shared: Arc<Shared>,
    splitter: StreamSplitter,
    credits: CreditDecoder,
    /// By index, which is part of the token. Free places are reused.
    streams: Vec<Option<Stream>>,
    /// Highest stream number so far. A lower number that is not in the table was closed.
    newest: u64,
    /// Credits to send to the guest.
    owed: Vec<Credit>,
    /// Frames in transit to the guest.
    pending: Pending,
    /// The guest sent an invalid frame: all further bytes are dropped.
    lost: bool,
    /// The agent uses API 4244 without the extension, which has no credit.
    base: bool,
    /// The machine is being saved: nothing moves in either direction.
    frozen: bool,
    /// Number of logged faults of the guest.
    complaints: u32,
    /// Called at the first byte of output.
    first_output: Option<Box<dyn FnOnce() + Send>>,
}

/// Creates a table and its handle with the streams `specs`. `first_output` is called at the first byte of output.
pub fn streams(
    specs: &[StreamSpec],
    first_output: Option<Box<dyn FnOnce() + Send>>,
) -> io::Result<(StreamTable, StreamHandle)> {
    let shared = Arc::new(Shared::new()?);
    let mut handle = StreamHandle::new(shared.clone());
    let mut table = StreamTable {
        shared,
        splitter: StreamSplitter::new(),
        credits: CreditDecoder::default(),
        streams: Vec::new(),
        newest: 0,
        owed: Vec::new(),
        pending: Pending::default(),
        lost: false,
        base: false,
        frozen: false,
        complaints: 0,
        first_output,
    };
    for spec in specs {
        table.add(handle.make(spec, false)?);
    }
    Ok((table, handle))
}

impl StreamTable {
    /// Returns the table for an agent of API 4244 without the extension.
    pub fn without_credit(self) -> StreamTable {
        StreamTable { base: true, ..self }
    }

    /// Whether the table accepts output now. Without credit the guest's sending is not limited, so that its output
    /// stays in the port while any client is slow.
    pub fn takes_output(&self) -> bool {
        let mut sinks = self.streams.iter().flatten().filter_map(|stream| stream.sink.as_ref());
        !self.frozen && (!self.base || sinks.all(|sink| sink.blocked().is_none()))
    }

    /// Registers the table's wake-up descriptor, and those of streams that continue.
    pub fn begin(&mut self, watch: &mut Watcher<'_>) -> io::Result<()> {
        watch(self.shared.wake.as_raw_fd(), WAKE, Watch::In)?;
        self.begin_saved(watch);
        Ok(())
    }

    /// Handles bytes from the guest, all of `data`.
    pub fn take(&mut self, mut data: &[u8], watch: &mut Watcher<'_>) {
        while !self.lost {
            match self.splitter.split(&mut data) {
                Ok(Some(piece)) if piece.seq == CREDIT_SEQ && !self.base => self.take_credit(piece),
                Ok(Some(piece)) => self.take_output(piece, watch),
                Ok(None) => return,
                Err(error) => {
                    self.lost = true;
                    self.shared.lose(error);
                }
            }
        }
    }

    /// Fills `buffer` with complete or partial frames for the guest. Returns the number of bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) -> usize {
        let mut filled = 0;
        if self.frozen {
            return filled;
        }
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
            let mut sources = self
                .streams
                .iter_mut()
                .flatten()
                .filter_map(|stream| Some((stream.source.as_mut()?, &stream.state)));
            let Some((source, state)) = sources.find(|(source, _)| source.has_more()) else { return filled };
            self.pending.input(|frame| source.frame(frame));
            let bytes = self.pending.left.len().saturating_sub(STREAM_HEADER);
            self.pending.counted = (self.base && bytes > 0).then(|| (state.clone(), bytes));
        }
    }

    /// Handles a ready descriptor.
    pub fn ready(&mut self, token: u16, watch: &mut Watcher<'_>) {
        if token == WAKE {
            return self.take_requests(watch);
        }
        let (index, is_sink) = (usize::from(token - 1) / 2, token.is_multiple_of(2));
        let Some(Some(stream)) = self.streams.get_mut(index) else { return };
        if let (Some(sink), true) = (&mut stream.sink, is_sink) {
            if self.frozen {
                return;
            }
            let watched = sink.blocked().map(Descriptor::raw);
            sink.flush();
            self.after_write(index, watched, watch);
        } else if let Some(source) = &mut stream.source {
            source.ready();
        }
    }

    fn take_requests(&mut self, watch: &mut Watcher<'_>) {
        let mut count = [0; 8];
        // An empty eventfd is no error: the requests are handled in any case.
        let _ = io::Read::read(&mut &self.shared.wake, &mut count);
        let requests = std::mem::take(&mut *self.shared.requests.lock().unwrap());
        for request in requests {
            match request {
                Request::Open(stream) => self.add(stream),
                Request::Start(seq, window) => self.start(seq, window, watch),
                Request::Give(seq, bytes) => {
                    let stream = self.find(seq).map(|(_, stream)| stream);
                    stream
                        .and_then(|stream| stream.source.as_mut())
                        .into_iter()
                        .for_each(|source| source.give(bytes));
                }
                Request::Close(seq) => self.remove(seq, watch),
                Request::Freeze(saved) => self.freeze(&saved),
                Request::Thaw => self.thaw(watch),
            }
        }
    }

    fn add(&mut self, stream: Stream) {
        self.newest = self.newest.max(stream.seq);
        match self.streams.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(stream),
            None => self.streams.push(Some(stream)),
        }
    }

    fn start(&mut self, seq: u64, window: u32, watch: &mut Watcher<'_>) {
        let Some((index, stream)) = self.find(seq) else { return };
        let Some(source) = &mut stream.source else { return };
        if source.start(window) {
            match watch(source.descriptor().raw(), token(index, SOURCE), Watch::In) {
                Ok(()) => stream.watched = true,
                // A file or /dev/null, which is always ready.
                Err(error) => log::debug!("stdin is not watched: {error}"),
            }
        }
    }

    fn remove(&mut self, seq: u64, watch: &mut Watcher<'_>) {
        let Some((index, _)) = self.find(seq) else { return };
        let Some(stream) = self.streams[index].take() else { return };
        stream.registered().for_each(|(fd, which)| unwatch(seq, fd, token(index, which), watch));
    }

    fn find(&mut self, seq: u64) -> Option<(usize, &mut Stream)> {
        let mut streams = self.streams.iter_mut().enumerate();
        streams.find_map(|(index, stream)| Some((index, stream.as_mut().filter(|stream| stream.seq == seq)?)))
    }

    fn take_credit(&mut self, piece: Piece<'_>) {
        let mut data = piece.data;
        while let Some(credit) = self.credits.next(&mut data, piece.end) {
            let newest = self.newest;
            let source = self.find(credit.seq).and_then(|(_, stream)| stream.source.as_mut());
            match source {
                Some(source) => source.give(credit.bytes),
                // The credit was sent before the agent knew that the stream is closed.
                None if credit.seq <= newest => {}
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
        if piece.seq > self.newest {
            // The main thread opened the stream before it started the process, but has not woken the table since.
            self.take_requests(watch);
        }
        let (newest, base) = (self.newest, self.base);
        let Some((index, Stream { sink: Some(sink), state, .. })) = self.find(piece.seq) else {
            if piece.seq > newest {
                self.complain(format_args!("output of stream {}, which is not open", piece.seq));
            }
            return;
        };
        if piece.data.is_empty() {
            // In the extended form the exit report has the same information.
            state.ended(base);
            sink.end();
            return;
        }
        let watched = sink.blocked().map(Descriptor::raw);
        let taken = sink.take(piece.data);
        self.after_write(index, watched, watch);
        if let Err(error) = taken {
            self.complain(format_args!("stream {}: {error}", piece.seq));
        }
    }

    /// Records the credit that a sink owes, and watches its descriptor while output waits for it. `watched` is the
    /// descriptor that was watched before.
    fn after_write(&mut self, index: usize, watched: Option<RawFd>, watch: &mut Watcher<'_>) {
        let Some(Stream { seq, sink: Some(sink), state, .. }) = &mut self.streams[index] else { return };
        let token = token(index, SINK);
        match (watched, sink.blocked().map(Descriptor::raw)) {
            (None, Some(fd)) => {
                if let Err(error) = watch(fd, token, Watch::Out) {
                    sink.give_up(&error);
                    sink.flush();
                }
            }
            (Some(fd), None) => unwatch(*seq, fd, token, watch),
            _ => {}
        }
        match sink.take_owed() {
            Owed::Nothing => {}
            Owed::Credit(_) if self.base => {}
            Owed::Closed if self.base => state.hung_up(),
            Owed::Credit(bytes) => {
                // At most one record per stream waits, even for a guest that accepts no input.
                let record = self.owed.iter_mut().find(|record| record.seq == *seq && record.bytes > 0);
                match record {
                    Some(record) => record.bytes = record.bytes.saturating_add(bytes),
                    None => self.owed.push(Credit { seq: *seq, bytes }),
                }
            }
            Owed::Closed => self.owed.push(Credit { seq: *seq, bytes: 0 }),
        }
    }

    /// Logs a fault of the guest, up to a limit.
    fn complain(&mut self, what: std::fmt::Arguments<'_>) {
        if self.complaints < COMPLAINTS_MAX {
            self.complaints += 1;
            log::warn!("stream channel: {what}");
        }
    }
}

fn unwatch(seq: u64, fd: RawFd, token: u16, watch: &mut Watcher<'_>) {
    if let Err(error) = watch(fd, token, Watch::Stop) {
        log::debug!("stream {seq}: stop watching: {error}");
    }
}

/// Returns the token of a stream's source or sink.
fn token(index: usize, which: u16) -> u16 {
    2 * index as u16 + which
}

#[cfg(test)]
mod tests;
