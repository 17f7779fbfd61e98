//! Output of a container on its way to the log and to this process's output: the streams write to a pipe, and the main
//! thread reads it.

use std::io::{self, PipeWriter, pipe};
use std::os::fd::{AsRawFd, BorrowedFd};

use link::streams::descriptor::{Descriptor, Use};

use super::log::{LineSplitter, Stream};

/// Maximum number of bytes per read.
const READ_SIZE: usize = 64 << 10;

/// The pipe of one output of a container.
#[derive(Debug)]
pub struct OutputPipe {
    pub stream: Stream,
    descriptor: Descriptor,
    lines: LineSplitter,
}

/// What one read returned: the bytes, and the lines that they complete.
#[derive(Debug, Default)]
pub struct Chunk {
    pub bytes: Vec<u8>,
    pub lines: Vec<Vec<u8>>,
    /// End of file was read, which completes the last line.
    pub ended: bool,
}

impl OutputPipe {
    /// Returns the pipe, and its end to write to. That end may be closed once it was duplicated.
    pub fn new(stream: Stream) -> io::Result<(OutputPipe, PipeWriter)> {
        let (reader, writer) = pipe()?;
        let descriptor = Descriptor::open(reader.as_raw_fd(), Use::Source)?;
        Ok((OutputPipe { stream, descriptor, lines: LineSplitter::default() }, writer))
    }

    /// Returns the descriptor to wait for.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Reads once.
    pub fn read(&mut self) -> Chunk {
        let mut chunk = Chunk { bytes: vec![0; READ_SIZE], ..Chunk::default() };
        let read = self.descriptor.read(&mut chunk.bytes);
        chunk.bytes.truncate(*read.as_ref().unwrap_or(&0));
        match read {
            Ok(1..) => self.lines.push(&chunk.bytes, |line| chunk.lines.push(line.to_vec())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            end => {
                if let Err(error) = end {
                    log::warn!("read a container's output: {error}");
                }
                chunk.ended = true;
                self.lines.finish(|line| chunk.lines.push(line.to_vec()));
            }
        }
        chunk
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use host::sys;

    #[test]
    fn bytes_are_unchanged_and_lines_complete() {
        let (mut pipe, mut writer) = OutputPipe::new(Stream::Stdout).unwrap();
        let (mut bytes, mut lines) = (Vec::new(), Vec::new());
        for (piece, ready) in [("a\nb", true), ("", false), ("c\nd", true)] {
            writer.write_all(piece.as_bytes()).unwrap();
            assert_eq!(sys::is_ready(pipe.fd(), libc::POLLIN), ready);
            let chunk = pipe.read();
            bytes.extend(chunk.bytes);
            lines.extend(chunk.lines);
            assert!(!chunk.ended);
        }
        assert_eq!((bytes.as_slice(), lines.len()), (&b"a\nbc\nd"[..], 2));
        drop(writer);
        let last = pipe.read();
        assert!(last.ended && last.bytes.is_empty());
        lines.extend(last.lines);
        assert_eq!(lines, [b"a\n".to_vec(), b"bc\n".to_vec(), b"d".to_vec()]);
    }
}
