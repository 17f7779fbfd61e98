//! A foreground pod's standard output and error: its containers' output, with the container's name before each line if
//! there are several. The pod does not wait for a slow reader: unread output is kept up to a limit, and then the
//! containers' pipes fill up.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use link::streams::descriptor::{Descriptor, Use};

use super::log::Stream;

/// Limit of unread bytes above which no output is read from the containers.
const WAITING_MAX: usize = 256 << 10;

/// One output of this process.
#[derive(Debug)]
struct Output {
    descriptor: Descriptor,
    waiting: VecDeque<u8>,
    /// The reader is gone or a write failed. The containers continue; their logs have the output.
    gone: bool,
}

/// Both outputs, or neither for a pod in the background.
#[derive(Debug, Default)]
pub struct PodOutput(Vec<Output>);

impl PodOutput {
    /// Returns outputs that write to this process's stdout and stderr.
    pub fn foreground() -> io::Result<PodOutput> {
        let open = |fd| {
            let descriptor = Descriptor::open(fd, Use::Sink)?;
            Ok(Output { descriptor, waiting: VecDeque::new(), gone: false })
        };
        let both: io::Result<Vec<Output>> =
            [libc::STDOUT_FILENO, libc::STDERR_FILENO].into_iter().map(open).collect();
        both.map(PodOutput)
    }

    pub fn write(&mut self, stream: Stream, bytes: &[u8]) {
        if let Some(output) = self.stream(stream) {
            output.waiting.extend(bytes);
            output.flush();
        }
    }

    /// Writes a line with the name of its container.
    pub fn write_line(&mut self, stream: Stream, name: &str, line: &[u8]) {
        let Some(output) = self.stream(stream) else { return };
        output.waiting.extend(name.as_bytes());
        output.waiting.extend(b" | ");
        output.waiting.extend(line);
        if !line.ends_with(b"\n") {
            output.waiting.push_back(b'\n');
        }
        output.flush();
    }

    /// Whether the limit of unread bytes is reached.
    pub fn is_full(&self) -> bool {
        self.0.iter().any(|output| output.waiting.len() >= WAITING_MAX)
    }

    /// Drops unread output, and stops writing to that output.
    pub fn drop_unread(&mut self) {
        for output in self.0.iter_mut().filter(|output| !output.waiting.is_empty()) {
            log::warn!("{} bytes of output were not read", output.waiting.len());
            output.gone = true;
            output.waiting.clear();
        }
    }

    pub fn is_flushed(&self) -> bool {
        self.0.iter().all(|output| output.waiting.is_empty())
    }

    /// Returns the descriptors with unread output, to wait for.
    pub fn blocked(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().filter(|output| !output.waiting.is_empty()).map(|output| output.descriptor.as_fd())
    }

    /// Writes unread output as far as possible.
    pub fn flush(&mut self) {
        self.0.iter_mut().for_each(Output::flush);
    }

    fn stream(&mut self, stream: Stream) -> Option<&mut Output> {
        self.0.get_mut(stream as usize).filter(|output| !output.gone)
    }
}

impl Output {
    fn flush(&mut self) {
        while !self.waiting.is_empty() {
            match self.descriptor.write(self.waiting.as_slices().0) {
                Ok(count @ 1..) => drop(self.waiting.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                end => {
                    if let Err(error) = end {
                        log::debug!("write the containers' output: {error}");
                    }
                    self.gone = true;
                    self.waiting.clear();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read, pipe};
    use std::os::fd::AsRawFd;

    use super::*;

    fn outputs() -> (PodOutput, PipeReader, PipeReader) {
        let ((out, out_writer), (err, err_writer)) = (pipe().unwrap(), pipe().unwrap());
        let output = [out_writer, err_writer].map(|writer| Output {
            descriptor: Descriptor::open(writer.as_raw_fd(), Use::Sink).unwrap(),
            waiting: VecDeque::new(),
            gone: false,
        });
        (PodOutput(output.into_iter().collect()), out, err)
    }

    #[test]
    fn lines_have_their_container_s_name() {
        let (mut outputs, mut out, mut err) = outputs();
        outputs.write_line(Stream::Stdout, "a", b"one\n");
        outputs.write_line(Stream::Stderr, "b", b"two");
        outputs.write(Stream::Stdout, b"plain");
        assert!(outputs.is_flushed());
        drop(outputs);
        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        err.read_to_string(&mut text).unwrap();
        assert_eq!(text, "a | one\nplainb | two\n");
    }

    #[test]
    fn a_reader_that_sleeps_or_leaves_does_not_block() {
        let (mut outputs, mut out, err) = outputs();
        let mut written = 0;
        while !outputs.is_full() {
            outputs.write(Stream::Stdout, &[7; 10_000]);
            written += 10_000;
        }
        assert_eq!(outputs.blocked().count(), 1);
        let mut taken = vec![0; written];
        for part in taken.chunks_mut(4096) {
            out.read_exact(part).unwrap();
            outputs.flush();
        }
        assert!(outputs.is_flushed());
        while !outputs.is_full() {
            outputs.write(Stream::Stdout, &[7; 10_000]);
        }
        outputs.drop_unread();
        outputs.write(Stream::Stdout, b"nobody");
        assert!(outputs.is_flushed() && !outputs.is_full());
        drop(err);
        outputs.write(Stream::Stderr, b"nobody");
        outputs.write(Stream::Stderr, b"nobody");
        assert!(outputs.is_flushed());
    }
}
