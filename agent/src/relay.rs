//! Two pipes through which a large frame is sent to its port without copying: its pages are moved from the process's
//! pipe to the host.
//!
//! A frame's header precedes its data and contains their length. The length is known only after the data have been
//! moved, because other processes may also read from the process's pipe. So the data are moved to a first pipe, and
//! from there to a second pipe that already contains the header.

use agent_proto::command::{STREAM_FRAME_MAX, STREAM_HEADER};
use agent_proto::stream::encode_header;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{Errno, Result};
use rustix::pipe::{PipeFlags, SpliceFlags};

/// Limit of data of a frame in bytes, and capacity of a pipe whose output is moved.
pub const RELAY_MAX: usize = STREAM_FRAME_MAX - STREAM_HEADER;
/// Capacity of the second pipe in bytes: slots for all pages of the first pipe, and one more.
const FRAMED: usize = 2 * RELAY_MAX;

/// Read end and write end of a pipe.
type Pipe = (OwnedFd, OwnedFd);

/// The two pipes of a large frame.
#[derive(Debug)]
pub struct Relay {
    data: Pipe,
    framed: Pipe,
    /// Number of bytes in `framed`.
    left: usize,
}

impl Relay {
    /// Creates the two pipes.
    pub fn new() -> Result<Relay> {
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK);
        let (data, framed) = (pipe()?, pipe()?);
        rustix::pipe::fcntl_setpipe_size(&data.1, RELAY_MAX)?;
        rustix::pipe::fcntl_setpipe_size(&framed.1, FRAMED)?;
        Ok(Relay { data, framed, left: 0 })
    }

    /// Returns the number of unsent bytes.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Creates a frame of at most `max` bytes from the pipe `from`. Returns their number. No other frame may be unsent.
    pub fn load(&mut self, seq: u64, from: &OwnedFd, max: usize) -> Result<usize> {
        let count = splice(from, &self.data.1, max.min(RELAY_MAX))?;
        if count == 0 {
            return Ok(0);
        }
        let header = encode_header(seq, count);
        self.left = rustix::io::write(&self.framed.1, &header)?;
        while self.left < header.len() + count {
            // There is a slot for each page, so this loop completes.
            match splice(&self.data.0, &self.framed.1, count)? {
                0 => return Err(Errno::IO),
                moved => self.left += moved,
            }
        }
        Ok(count)
    }

    /// Sends as much as `to` accepts now. Returns the number of bytes sent.
    pub fn send(&mut self, to: &OwnedFd) -> Result<usize> {
        let count = splice(&self.framed.0, to, self.left)?;
        self.left -= count;
        Ok(count)
    }
}

fn splice(from: &OwnedFd, to: &OwnedFd, max: usize) -> Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    rustix::pipe::splice(from.as_fd(), None, to.as_fd(), None, max, flags)
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use rustix::fs::{Mode, OFlags};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use rustix::pipe::pipe;

    use super::*;

    fn sockets() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::empty(), None).unwrap()
    }

    fn write(to: &OwnedFd, data: &[u8]) {
        assert_eq!(rustix::io::write(to, data), Ok(data.len()));
    }

    /// Returns the bytes that `relay` sends, and the number of bytes taken from its source.
    fn relayed(relay: &mut Relay, from: &OwnedFd, max: usize) -> (Vec<u8>, usize) {
        let (ours, theirs) = sockets();
        let count = relay.load(7, from, max).unwrap();
        let mut all = Vec::new();
        while relay.left() > 0 {
            let sent = relay.send(&ours).unwrap();
            let mut part = vec![0; sent];
            let mut filled = 0;
            while filled < sent {
                filled += rustix::io::read(&theirs, &mut part[filled..]).unwrap();
            }
            all.extend(part);
        }
        (all, count)
    }

    #[test]
    fn a_frame_is_a_header_and_the_available_data() {
        let (reader, writer) = pipe().unwrap();
        let mut relay = Relay::new().unwrap();
        let data: Vec<u8> = (0..60_000u32).map(|number| number as u8).collect();
        write(&writer, &data);
        for (max, part) in [(10_000, &data[..10_000]), (usize::MAX, &data[10_000..])] {
            let (frame, count) = relayed(&mut relay, &reader, max);
            assert_eq!(count, part.len());
            assert_eq!(frame[..STREAM_HEADER], encode_header(7, count));
            assert!(frame[STREAM_HEADER..] == *part);
        }
        assert_eq!(relay.load(7, &reader, 1), Err(Errno::AGAIN));
        drop(writer);
        assert_eq!((relay.load(7, &reader, 1), relay.left()), (Ok(0), 0));
    }

    #[test]
    fn many_small_pages_fit_too() {
        // In packet mode each write uses a whole page.
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::DIRECT | PipeFlags::NONBLOCK).unwrap();
        rustix::pipe::fcntl_setpipe_size(&writer, RELAY_MAX).unwrap();
        let mut relay = Relay::new().unwrap();
        let mut count = 0;
        while rustix::io::write(&writer, b"x").is_ok() {
            count += 1;
        }
        assert!(count > 16);
        let (frame, moved) = relayed(&mut relay, &reader, usize::MAX);
        assert_eq!((moved, frame.len()), (count, STREAM_HEADER + count));
    }

    #[test]
    fn a_source_other_than_a_pipe_is_refused() {
        let mut relay = Relay::new().unwrap();
        assert_eq!(
            relay.load(1, &rustix::fs::open("/", OFlags::RDONLY, Mode::empty()).unwrap(), 10),
            Err(Errno::INVAL)
        );
        assert_eq!(relay.left(), 0);
    }
}
