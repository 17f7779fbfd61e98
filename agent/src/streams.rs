//! The stream channel, and the input and output of processes.
//!
//! A process's output is read only while the stream has credit and the port's buffer has space, so that memory usage
//! does not grow with the output. Input is buffered up to the window; beyond that the channel is not read.

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;

use agent_proto::command::{CREDIT_SEQ, STREAM_HEADER, STREAM_WINDOW};
use agent_proto::stream::{Credit, CreditDecoder, Piece, StreamSplitter, encode_header};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;

use crate::channel::{Input, Port};
use crate::error::Error;
use crate::relay::RELAY_MAX;
use crate::sys;

/// Limit of a frame in bytes, including the header: what the kernel's port driver accepts in one write.
const FRAME_MAX: usize = 32 << 10;
/// Minimum free space in the port's buffer for a new frame.
const SPACE_MIN: usize = 4 << 10;
/// Limit of bytes that are read from the channel in one round. The port returns a page at a time, and a process's input
/// should not be split into pages.
const READ: usize = 64 << 10;
/// Size of one read in bytes.
const READ_STEP: usize = 16 << 10;
/// Limit of unsent output in bytes. Above it the channel is not read, because the host does not read.
const OUT_MAX: usize = 64 << 10;
/// Credit is returned in steps of this size: the host can use the other half of the window meanwhile.
const CREDIT_BATCH: u32 = STREAM_WINDOW / 2;

/// A message from the host for one stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Inbound<'a> {
    /// Input for a process.
    Data(u64, &'a [u8]),
    /// The end of a process's input.
    End(u64),
    /// The host has consumed bytes of a process's output.
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
    /// Returns the channel for a non-blocking file descriptor.
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

    /// Returns the underlying port.
    pub fn port(&mut self) -> &mut Port {
        &mut self.port
    }

    /// Reads once and passes the messages to `deliver`, in order. `deliver` returns false for an unknown stream; an API
    /// 4244 host is then told that this stream has ended.
    pub fn receive(
        &mut self,
        extended: bool,
        mut deliver: impl FnMut(Inbound<'_>) -> bool,
    ) -> Result<Input, Error> {
        if !self.port.is_readable() || self.port.unsent() > OUT_MAX {
            return Ok(Input::Nothing);
        }
        let mut scratch = core::mem::take(&mut self.scratch);
        scratch.clear();
        let read = self.read(&mut scratch)?;
        let mut input = scratch.as_slice();
        loop {
            let piece = self.splitter.split(&mut input);
            let piece = piece.map_err(|error| Error::failed(alloc::format!("stream channel: {error}")))?;
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

    /// Reads until there is no more input or the round's limit is reached.
    fn read(&mut self, scratch: &mut Vec<u8>) -> Result<Input, Error> {
        loop {
            let read = self.port.read(scratch, READ_STEP)?;
            let more = matches!(read, Input::Data(_)) && scratch.len() < READ;
            match read {
                _ if more => {}
                _ if !scratch.is_empty() => {
                    if read == Input::Closed {
                        // Handle the input before the end first.
                        self.port.woken();
                    }
                    return Ok(Input::Data(scratch.len()));
                }
                read => return Ok(read),
            }
        }
    }

    /// Returns the number of bytes that a frame may have now; 0 if the port's buffer has no space for a frame.
    pub fn space(&self) -> usize {
        let space = FRAME_MAX.saturating_sub(self.port.unsent());
        if space < SPACE_MIN { 0 } else { space - STREAM_HEADER }
    }

    /// Queues a frame of at most `max` bytes from the pipe `fd` without copying them. Returns their number, or `None`
    /// if the queue is not empty.
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

    /// Queues a frame of at most `max` bytes from `fd`. Returns their number.
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

    /// Queues the end frame of a stream.
    pub fn end(&mut self, seq: u64) {
        self.port.out().extend_from_slice(&encode_header(seq, 0));
        self.queued += STREAM_HEADER as u64;
    }

    /// Records that a process has consumed `bytes` of stream `seq`, or with 0 that it accepts no more input.
    pub fn give_credit(&mut self, seq: u64, bytes: u32) {
        self.credits.push(Credit { seq, bytes });
    }

    /// Queues the recorded credit.
    pub fn queue_credit(&mut self) {
        for records in self.credits.chunks(Credit::FRAME_MAX) {
            let before = self.port.out().len();
            Credit::encode(records, self.port.out());
            self.queued += (self.port.out().len() - before) as u64;
        }
        self.credits.clear();
    }

    /// Returns the number of bytes ever queued. All have been sent when [`sent`](Self::sent) reaches this number.
    pub fn queued(&self) -> u64 {
        self.queued
    }

    /// Returns the number of bytes ever sent.
    pub fn sent(&self) -> u64 {
        self.queued - self.port.unsent() as u64
    }
}

/// Input of a process: the pipe of its stdin, or its terminal.
#[derive(Debug)]
pub struct Stdin {
    /// Sequence number of the stream.
    pub seq: u64,
    fd: Option<Rc<OwnedFd>>,
    writable: bool,
    buffer: VecDeque<u8>,
    terminal: bool,
    /// Last byte that was written to a terminal, for the end-of-file character.
    last: u8,
    ended: bool,
    taken: u32,
}

impl Stdin {
    /// Returns the input of a process, which is written to `fd`.
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

    /// Marks the input as writable.
    pub fn woken(&mut self) {
        self.writable = true;
    }

    /// Whether no more input may be accepted. This stops the whole channel, including the credit of other streams, but
    /// never happens if the host respects the window.
    pub fn is_full(&self) -> bool {
        self.buffer.len() > STREAM_WINDOW as usize
    }

    /// Accepts input. Input is dropped after the end, and after the process has closed its side.
    pub fn push(&mut self, data: &[u8]) {
        if self.fd.is_some() && !self.ended {
            self.buffer.extend(data);
        }
    }

    /// Accepts the end of input: `fd` is closed when all input has been written. A terminal gets its end-of-file
    /// character instead. After an incomplete line it gets the character twice, because the first one only ends the
    /// line.
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

    /// Writes as much as the process accepts. Returns the credit to give back, 0 if the process has closed its side.
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

    /// Closes the process's input and drops what has not been written.
    pub fn close(&mut self) {
        self.fd = None;
        self.buffer = VecDeque::new();
    }
}

/// Bytes that a terminal may still contain after its process has exited, in addition to those that FIONREAD reports.
const TERMINAL_SLACK: u64 = 64 << 10;
/// Size of the buffer that an idle stdin keeps, in bytes.
const KEEP: usize = 4 << 10;
/// End-of-file character if the terminal's settings cannot be read.
const CONTROL_D: u8 = 4;

/// Output of a process: stdout, stderr or its terminal.
#[derive(Debug)]
pub struct Output {
    /// Sequence number of the stream.
    pub seq: u64,
    fd: Option<Rc<OwnedFd>>,
    readable: bool,
    /// Bytes that may be sent without further credit. Not used in the base form.
    credit: u64,
    /// Number of bytes sent in the stream.
    pub bytes: u64,
    /// Number of bytes that are still read after the process has exited. Set at the exit.
    left: Option<u64>,
    transfer: Transfer,
}

/// How output is transferred into frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transfer {
    /// Output is copied while it comes in small pieces.
    Copied,
    /// Pages are moved without copying.
    Relayed,
    /// Output is always copied, because its pages cannot be moved.
    CopiedAlways,
}

/// Size of a piece in bytes from which output is moved instead of copied.
const PIECE_LARGE: usize = 16 << 10;

impl Output {
    /// Returns the output of a process, which is read from `fd`.
    pub fn new(seq: u64, fd: Rc<OwnedFd>) -> Output {
        Output {
            seq,
            fd: Some(fd),
            readable: true,
            credit: u64::from(STREAM_WINDOW),
            bytes: 0,
            left: None,
            transfer: Transfer::Copied,
        }
    }

    /// Marks the output as readable.
    pub fn woken(&mut self) {
        self.readable = true;
    }

    /// Adds credit.
    pub fn add_credit(&mut self, bytes: u32) {
        // Limit the credit to the window, because the host's number is not trusted.
        self.credit = (self.credit + u64::from(bytes)).min(u64::from(STREAM_WINDOW));
    }

    /// Whether there may be more output.
    pub fn is_open(&self) -> bool {
        self.fd.is_some()
    }

    /// Closes the stream. Remaining writers get SIGPIPE or EIO.
    pub fn close(&mut self) {
        self.fd = None;
    }

    /// Queues one frame of output. `exited` means that the process has exited and has written all its output. In the
    /// extended form only that output is read, even if other processes still have the stream open or write to it.
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
        let limit = if extended { left.min(self.credit) } else { left };
        if left > 0 && (!(self.readable || exited) || limit == 0 || streams.space() == 0) {
            return Pump::Idle;
        }
        let read = match left {
            0 => Ok(0),
            _ => forward(&mut self.transfer, streams, self.seq, fd, limit),
        };
        match read {
            Ok(count) if count > 0 => {
                self.count(count as u64, extended);
                Pump::Moved
            }
            Err(Errno::INTR) => Pump::Moved,
            Err(Errno::AGAIN) if !last => {
                self.readable = false;
                Pump::Idle
            }
            // The end of a pipe, EIO of a terminal after the last close, or no more output of a process that has
            // exited.
            _ => {
                self.close();
                Pump::Ended
            }
        }
    }

    fn count(&mut self, count: u64, extended: bool) {
        self.bytes += count;
        if extended {
            self.credit -= count;
        }
        if let Some(left) = &mut self.left {
            *left -= count;
        }
    }
}

/// Queues a frame of at most `limit` bytes. They are moved if possible, and otherwise copied into the space that is
/// left.
fn forward(
    transfer: &mut Transfer,
    streams: &mut Streams,
    seq: u64,
    fd: &OwnedFd,
    limit: u64,
) -> rustix::io::Result<usize> {
    if *transfer == Transfer::Relayed {
        // A process that writes much is likely to continue. Let it fill the pipe, so that a frame carries several
        // writes.
        if rustix::io::ioctl_fionread(fd).is_ok_and(|there| there < RELAY_MAX as u64 / 2) {
            rustix::thread::sched_yield();
        }
        match streams.relay(seq, fd, usize::try_from(limit).unwrap_or(usize::MAX)) {
            Some(Ok(count)) => {
                if count < PIECE_LARGE {
                    *transfer = Transfer::Copied;
                }
                return Ok(count);
            }
            Some(Err(errno @ (Errno::AGAIN | Errno::INTR))) => return Err(errno),
            // Not a pipe, or no more file descriptors.
            Some(Err(_)) => *transfer = Transfer::CopiedAlways,
            None => {}
        }
    }
    let space = streams.space();
    let read = streams.forward(seq, fd, usize::try_from(limit).map_or(space, |limit| limit.min(space)));
    if *transfer == Transfer::Copied && read.is_ok_and(|count| count >= PIECE_LARGE) {
        *transfer = Transfer::Relayed;
        // Ignore failures: the pipe keeps its size.
        let _ = rustix::pipe::fcntl_setpipe_size(fd, RELAY_MAX);
    }
    read
}

/// Result of [`Output::pump`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pump {
    /// No progress is possible now.
    Idle,
    /// A frame was queued.
    Moved,
    /// The stream has ended; its end frame is not queued yet.
    Ended,
}
