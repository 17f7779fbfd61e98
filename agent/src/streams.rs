//! The stream channel and the two ends of a process's streams.
//!
//! A process's output is read only while the stream has credit and the port's buffer has room, so that nothing here
//! grows with what a process writes. Input is kept up to the window; beyond it the channel is not read.

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;

use agent_proto::command::{CREDIT_SEQ, STREAM_HEADER, STREAM_WINDOW};
use agent_proto::stream::{Credit, CreditDecoder, Piece, StreamSplitter, encode_header};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;

use crate::channel::{Input, Port};
use crate::fault::Fault;
use crate::relay::RELAY_MAX;
use crate::sys;

/// Bytes of a frame, header included: what the kernel's port driver takes in one write.
const FRAME: usize = 32 << 10;
/// The least room in the port's buffer for which a frame is begun.
const ROOM_MIN: usize = 4 << 10;
/// Bytes that are read from the channel in one round: the port gives a page at a time, and what a process reads should not
/// be cut into pages.
const READ: usize = 64 << 10;
/// Bytes that are asked for at a time.
const READ_STEP: usize = 16 << 10;
/// Bytes of unsent output at which the channel is not read: the host does not read it.
const OUT_MAX: usize = 64 << 10;
/// Input that a process has taken is told to the host when it is this much: the host has the other half to go on with.
const CREDIT_BATCH: u32 = STREAM_WINDOW / 2;

/// What the host sent for one stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Inbound<'a> {
    /// Input for a process.
    Data(u64, &'a [u8]),
    /// The end of a process's input.
    End(u64),
    /// The host took so many bytes of a process's output.
    Credit(Credit),
}

/// The stream channel.
#[derive(Debug)]
pub struct Streams {
    port: Port,
    splitter: StreamSplitter,
    credit: CreditDecoder,
    scratch: Vec<u8>,
    credits: Vec<Credit>,
    queued: u64,
}

impl Streams {
    /// Returns the channel over a non-blocking descriptor.
    pub fn new(fd: OwnedFd) -> Streams {
        Streams {
            port: Port::new(fd),
            splitter: StreamSplitter::new(),
            credit: CreditDecoder::default(),
            scratch: Vec::new(),
            credits: Vec::new(),
            queued: 0,
        }
    }

    /// Returns the port below.
    pub fn port(&mut self) -> &mut Port {
        &mut self.port
    }

    /// Reads once and hands what came to `deliver`, in order; it returns false for a stream that nothing stands behind,
    /// which API 4244 is told with an end of that stream.
    pub fn receive(
        &mut self,
        extended: bool,
        mut deliver: impl FnMut(Inbound<'_>) -> bool,
    ) -> Result<Input, Fault> {
        if !self.port.is_readable() || self.port.unsent() > OUT_MAX {
            return Ok(Input::Nothing);
        }
        let mut scratch = core::mem::take(&mut self.scratch);
        scratch.clear();
        let read = self.read(&mut scratch)?;
        let mut input = scratch.as_slice();
        loop {
            let piece = self.splitter.split(&mut input);
            let piece = piece.map_err(|error| Fault::failed(alloc::format!("stream channel: {error}")))?;
            let Some(Piece { seq, mut data, end }) = piece else { break };
            let known = if extended && seq == CREDIT_SEQ {
                while let Some(credit) = self.credit.next(&mut data, end) {
                    deliver(Inbound::Credit(credit));
                }
                true
            } else if data.is_empty() {
                deliver(Inbound::End(seq))
            } else {
                deliver(Inbound::Data(seq, data))
            };
            if !known && !extended && end {
                self.end(seq);
            }
        }
        self.scratch = scratch;
        Ok(read)
    }

    /// Reads until there is no more or the round has enough.
    fn read(&mut self, scratch: &mut Vec<u8>) -> Result<Input, Fault> {
        loop {
            let read = self.port.read(scratch, READ_STEP)?;
            let more = matches!(read, Input::Data(_)) && scratch.len() < READ;
            match read {
                _ if more => {}
                _ if !scratch.is_empty() => {
                    if read == Input::Closed {
                        // What came before the end is looked at first.
                        self.port.woken();
                    }
                    return Ok(Input::Data(scratch.len()));
                }
                read => return Ok(read),
            }
        }
    }

    /// Returns the bytes of data that a frame may have now; 0 when the port's buffer has no room for one.
    pub fn room(&self) -> usize {
        let room = FRAME.saturating_sub(self.port.unsent());
        if room < ROOM_MIN { 0 } else { room - STREAM_HEADER }
    }

    /// Queues a frame of at most `max` bytes that the pipe `fd` has, without copying them; returns their number, and none
    /// where something is queued already.
    fn relay(&mut self, seq: u64, fd: &OwnedFd, max: usize) -> Option<rustix::io::Result<usize>> {
        if self.port.unsent() > 0 {
            return None;
        }
        let relayed = self.port.relay(seq, fd, max);
        if let Ok(count @ 1..) = relayed {
            self.queued += (STREAM_HEADER + count) as u64;
        }
        Some(relayed)
    }

    /// Queues a frame of at most `max` bytes that `fd` has; returns their number.
    fn forward(&mut self, seq: u64, fd: &OwnedFd, max: usize) -> rustix::io::Result<usize> {
        let out = self.port.out();
        let start = out.len();
        out.extend_from_slice(&encode_header(seq, 0));
        let read = sys::read_append(fd.as_fd(), out, max);
        match read {
            Ok(count) if count > 0 => {
                out[start..start + STREAM_HEADER].copy_from_slice(&encode_header(seq, count));
                self.queued += (STREAM_HEADER + count) as u64;
            }
            _ => out.truncate(start),
        }
        read
    }

    /// Queues a stream's end.
    pub fn end(&mut self, seq: u64) {
        self.port.out().extend_from_slice(&encode_header(seq, 0));
        self.queued += STREAM_HEADER as u64;
    }

    /// Notes that a process took `bytes` of stream `seq`, or with 0 that it takes no more.
    pub fn give_credit(&mut self, seq: u64, bytes: u32) {
        self.credits.push(Credit { seq, bytes });
    }

    /// Queues the credit that was noted.
    pub fn queue_credit(&mut self) {
        for records in self.credits.chunks(Credit::FRAME_MAX) {
            let before = self.port.out().len();
            Credit::encode(records, self.port.out());
            self.queued += (self.port.out().len() - before) as u64;
        }
        self.credits.clear();
    }

    /// Returns the number of bytes that were ever queued: what [`sent`](Self::sent) must reach for all to be sent.
    pub fn queued(&self) -> u64 {
        self.queued
    }

    /// Returns the number of bytes that were ever sent.
    pub fn sent(&self) -> u64 {
        self.queued - self.port.unsent() as u64
    }
}

/// What a process reads: its end of stdin, or its terminal.
#[derive(Debug)]
pub struct Stdin {
    /// The stream.
    pub seq: u64,
    fd: Option<Rc<OwnedFd>>,
    writable: bool,
    buffer: VecDeque<u8>,
    terminal: bool,
    /// The last byte that a terminal took, for its end of file.
    last: u8,
    ended: bool,
    taken: u32,
}

impl Stdin {
    /// Returns the host's end of a process's input.
    pub fn new(seq: u64, fd: Rc<OwnedFd>, terminal: bool) -> Stdin {
        Stdin {
            seq,
            fd: Some(fd),
            writable: true,
            buffer: VecDeque::new(),
            terminal,
            last: b'\n',
            ended: false,
            taken: 0,
        }
    }

    /// Takes note that the process reads.
    pub fn woken(&mut self) {
        self.writable = true;
    }

    /// Returns true while no more input may be taken. A host that keeps to the window never gets here: the channel
    /// carries other streams' credit too, and must not stop for this one.
    pub fn is_full(&self) -> bool {
        self.buffer.len() > STREAM_WINDOW as usize
    }

    /// Takes input; what comes after the end is dropped, as is all once the process has closed its side.
    pub fn push(&mut self, data: &[u8]) {
        if self.fd.is_some() && !self.ended {
            self.buffer.extend(data);
        }
    }

    /// Takes the end of input: closed once everything before it is written. A terminal is given its end-of-file
    /// character instead, twice where a line has been begun, whose first one only ends the line.
    pub fn end(&mut self) {
        if core::mem::replace(&mut self.ended, true) || !self.terminal {
            return;
        }
        let Some(fd) = &self.fd else { return };
        let eof = rustix::termios::tcgetattr(fd.as_ref()).map_or(CONTROL_D, |attributes| {
            attributes.special_codes[rustix::termios::SpecialCodeIndex::VEOF]
        });
        if self.buffer.back().copied().unwrap_or(self.last) != b'\n' {
            self.buffer.push_back(eof);
        }
        self.buffer.push_back(eof);
    }

    /// Writes what the process takes; returns the credit to give back, 0 when the process has closed its side.
    pub fn pump(&mut self) -> Option<u32> {
        let fd = self.fd.as_ref()?;
        while self.writable && !self.buffer.is_empty() {
            let (front, _) = self.buffer.as_slices();
            match rustix::io::write(fd.as_ref(), front) {
                Ok(count) => {
                    self.last = front[count.max(1) - 1];
                    self.buffer.drain(..count);
                    self.taken += count as u32;
                }
                Err(Errno::AGAIN) => self.writable = false,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.close();
                    return Some(0);
                }
            }
        }
        if self.buffer.is_empty() {
            self.buffer.shrink_to(KEEP);
            if self.ended && !self.terminal {
                self.close();
            }
        }
        (self.taken >= CREDIT_BATCH).then(|| core::mem::take(&mut self.taken))
    }

    /// Closes the process's input and drops what it has not taken.
    pub fn close(&mut self) {
        self.fd = None;
        self.buffer = VecDeque::new();
    }
}

/// Bytes that may still be on their way through a terminal when its process has ended, above those that it tells of.
const TERMINAL_SLACK: u64 = 64 << 10;
/// Bytes of buffer that an idle stdin keeps.
const KEEP: usize = 4 << 10;
/// The end-of-file character of a terminal whose settings cannot be read.
const CONTROL_D: u8 = 4;

/// What a process writes: stdout, stderr or its terminal.
#[derive(Debug)]
pub struct Output {
    /// The stream.
    pub seq: u64,
    fd: Option<Rc<OwnedFd>>,
    readable: bool,
    /// Bytes that may be sent before the host gives credit; not counted in the base form.
    credit: u64,
    /// Bytes that the stream carried.
    pub bytes: u64,
    /// Bytes that are still taken of a process which has ended; set when it has.
    left: Option<u64>,
    way: Way,
}

/// How output gets into frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It is copied, as long as it comes in small pieces.
    Copied,
    /// Its pages are moved.
    Relayed,
    /// It is copied, because it cannot be moved.
    CopiedAlways,
}

/// Bytes in one piece from which on output is moved in place of being copied.
const PIECE_LARGE: usize = 16 << 10;

impl Output {
    /// Returns the host's end of a process's output.
    pub fn new(seq: u64, fd: Rc<OwnedFd>) -> Output {
        Output {
            seq,
            fd: Some(fd),
            readable: true,
            credit: u64::from(STREAM_WINDOW),
            bytes: 0,
            left: None,
            way: Way::Copied,
        }
    }

    /// Takes note that there may be output.
    pub fn woken(&mut self) {
        self.readable = true;
    }

    /// Takes credit.
    pub fn add_credit(&mut self, bytes: u32) {
        // More than the window can never be outstanding, whatever the host says.
        self.credit = (self.credit + u64::from(bytes)).min(u64::from(STREAM_WINDOW));
    }

    /// Returns true while there may be more.
    pub fn is_open(&self) -> bool {
        self.fd.is_some()
    }

    /// Closes the stream: a writer that is left gets SIGPIPE or EIO.
    pub fn close(&mut self) {
        self.fd = None;
    }

    /// Queues one frame of output. `exited` says that the process has ended: what it wrote is all there then, and in the
    /// extended form it is all that is taken, should something else still hold the stream open or go on writing.
    pub fn pump(&mut self, streams: &mut Streams, extended: bool, exited: bool) -> Pump {
        let Some(fd) = &self.fd else { return Pump::Idle };
        let last = extended && exited;
        let left = match (&mut self.left, last) {
            (_, false) => u64::MAX,
            (Some(left), true) => *left,
            (none, true) => {
                let there = rustix::io::ioctl_fionread(fd.as_ref()).unwrap_or(0);
                *none.insert(there + TERMINAL_SLACK)
            }
        };
        let room = streams.room();
        let most = if extended { left.min(self.credit) } else { left };
        let max = usize::try_from(most).map_or(room, |most| most.min(room));
        if left > 0 && (!(self.readable || exited) || max == 0) {
            return Pump::Idle;
        }
        let read = match left {
            0 => Ok(0),
            _ => forward(&mut self.way, streams, (self.seq, fd), (most, max)),
        };
        match read {
            Ok(count) if count > 0 => {
                self.took(count as u64, extended);
                Pump::Moved
            }
            Err(Errno::INTR) => Pump::Moved,
            Err(Errno::AGAIN) if !last => {
                self.readable = false;
                Pump::Idle
            }
            // The end of a pipe; EIO of a terminal whose last process has closed it; nothing more of one that ended.
            _ => {
                self.close();
                Pump::Ended
            }
        }
    }

    fn took(&mut self, count: u64, extended: bool) {
        self.bytes += count;
        if extended {
            self.credit -= count;
        }
        if let Some(left) = &mut self.left {
            *left -= count;
        }
    }
}

/// Queues a frame of at most `most` bytes if they can be moved, otherwise of at most `max`.
fn forward(
    way: &mut Way,
    streams: &mut Streams,
    (seq, fd): (u64, &OwnedFd),
    (most, max): (u64, usize),
) -> rustix::io::Result<usize> {
    if *way == Way::Relayed {
        // Whoever writes much goes on writing: a frame for each of its writes would be several times as many.
        if rustix::io::ioctl_fionread(fd).is_ok_and(|there| there < RELAY_MAX as u64 / 2) {
            rustix::thread::sched_yield();
        }
        match streams.relay(seq, fd, usize::try_from(most).unwrap_or(usize::MAX)) {
            Some(Ok(count)) => {
                if count < PIECE_LARGE {
                    *way = Way::Copied;
                }
                return Ok(count);
            }
            Some(Err(errno @ (Errno::AGAIN | Errno::INTR))) => return Err(errno),
            // No pipe, or no more descriptors.
            Some(Err(_)) => *way = Way::CopiedAlways,
            None => {}
        }
    }
    let read = streams.forward(seq, fd, max);
    if *way == Way::Copied && read.is_ok_and(|count| count >= PIECE_LARGE) {
        *way = Way::Relayed;
        // Where it may not be larger it stays what it is.
        let _ = rustix::pipe::fcntl_setpipe_size(fd, RELAY_MAX);
    }
    read
}

/// What [`Output::pump`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pump {
    /// Nothing can be done now.
    Idle,
    /// A frame was queued.
    Moved,
    /// The stream is over; its end is not queued yet.
    Ended,
}
