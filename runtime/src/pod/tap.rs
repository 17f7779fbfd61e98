//! Output of a container on its way to the log and to this process's output: the streams write to a pipe, and the main
//! thread reads it.

use std::io::{self, PipeWriter, pipe};
use std::os::fd::{AsRawFd, BorrowedFd};

use link::streams::descriptor::{Descriptor, Use};

use super::log::{Lines, Stream};

/// Maximum number of bytes per read.
const READ_SIZE: usize = 64 << 10;

/// One output of a container.
#[derive(Debug)]
pub struct Tap {
    pub stream: Stream,
    descriptor: Descriptor,
    lines: Lines,
    ended: bool,
}

impl Tap {
    /// Returns a tap, and the end of the pipe to write to. That end may be closed once it was duplicated.
    pub fn new(stream: Stream) -> io::Result<(Tap, PipeWriter)> {
        let (reader, writer) = pipe()?;
        let descriptor = Descriptor::open(reader.as_raw_fd(), Use::Source)?;
        Ok((Tap { stream, descriptor, lines: Lines::default(), ended: false }, writer))
    }

    /// Returns the descriptor to wait for, until end of file was read.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        (!self.ended).then(|| self.descriptor.as_fd())
    }

    /// Whether end of file was read.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Reads once. Passes the bytes to one function, and the lines that they complete to the other.
    pub fn read(&mut self, mut bytes: impl FnMut(&[u8]), mut line: impl FnMut(&[u8])) {
        if self.ended {
            return;
        }
        let mut buffer = vec![0; READ_SIZE];
        match self.descriptor.read(&mut buffer) {
            Ok(count @ 1..) => {
                bytes(&buffer[..count]);
                self.lines.push(&buffer[..count], line);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            end => {
                if let Err(error) = end {
                    log::warn!("read a container's output: {error}");
                }
                self.ended = true;
                self.lines.finish(&mut line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use host::sys;

    #[test]
    fn bytes_are_unchanged_and_lines_complete() {
        let (mut tap, mut writer) = Tap::new(Stream::Stdout).unwrap();
        let (mut bytes, mut lines) = (Vec::new(), Vec::new());
        for (piece, ready) in [("a\nb", true), ("", false), ("c\nd", true)] {
            writer.write_all(piece.as_bytes()).unwrap();
            assert_eq!(sys::is_ready(tap.fd().unwrap(), libc::POLLIN), ready);
            tap.read(|piece| bytes.extend_from_slice(piece), |line| lines.push(line.to_vec()));
        }
        assert_eq!((bytes.as_slice(), lines.len()), (&b"a\nbc\nd"[..], 2));
        assert!(!tap.is_ended());
        drop(writer);
        tap.read(|_| panic!(), |line| lines.push(line.to_vec()));
        assert!(tap.is_ended() && tap.fd().is_none());
        assert_eq!(lines, [b"a\n".to_vec(), b"bc\n".to_vec(), b"d".to_vec()]);
    }
}
