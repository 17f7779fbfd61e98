//! A client's descriptor that is never waited for.
//!
//! stdin, stdout and stderr are shared with whoever started us: a flag set on their open file description would be set
//! for all. So a pipe, a FIFO or a terminal is opened anew through /proc/self/fd, which makes a description of our
//! own; where that is refused, each access asks poll(2) first. Files need neither, and sockets have a flag per call.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use host::sys;

/// What is written to a pipe in one call after poll(2) said that there is room: the room that it promises (pipe(7)).
const PIPE_BUF: usize = 4096;

/// How a descriptor is kept from blocking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Reads and writes do not wait for anybody.
    File,
    /// Its description is ours and has O_NONBLOCK.
    Own,
    /// Its description is shared: poll first.
    Shared,
    /// MSG_DONTWAIT.
    Socket,
}

/// What the descriptor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Reading.
    Source,
    /// Writing.
    Sink,
}

/// A client's descriptor that is never waited for: where it would block, it is [`io::ErrorKind::WouldBlock`].
#[derive(Debug)]
pub struct Descriptor {
    file: File,
    kind: Kind,
}

impl Descriptor {
    /// Takes `fd` of this process, which stays as it is.
    pub fn open(fd: RawFd, purpose: Use) -> io::Result<Descriptor> {
        let file = sys::duplicate(fd)?;
        let file_type = file.metadata()?.file_type();
        if file_type.is_socket() {
            return Ok(Descriptor { file, kind: Kind::Socket });
        }
        if !file_type.is_fifo() && !file_type.is_char_device() {
            return Ok(Descriptor { file, kind: Kind::File });
        }
        let mut options = OpenOptions::new();
        options.read(purpose == Use::Source).write(purpose == Use::Sink);
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        match options.open(format!("/proc/self/fd/{fd}")) {
            Ok(own) => Ok(Descriptor { file: own, kind: Kind::Own }),
            Err(error) => {
                log::debug!("reopen descriptor {fd}: {error}; it is polled instead");
                Ok(Descriptor { file, kind: Kind::Shared })
            }
        }
    }

    /// The descriptor itself.
    pub fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The number to watch.
    pub fn raw(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Reads what is there; 0 at the end.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        retry(|| match self.kind {
            Kind::File | Kind::Own => (&self.file).read(buffer),
            Kind::Socket => sys::receive(self.file.as_fd(), buffer),
            Kind::Shared if !sys::is_ready(self.file.as_fd(), libc::POLLIN) => {
                Err(io::ErrorKind::WouldBlock.into())
            }
            Kind::Shared => (&self.file).read(buffer),
        })
    }

    /// Writes what goes in.
    pub fn write(&self, data: &[u8]) -> io::Result<usize> {
        retry(|| match self.kind {
            Kind::File | Kind::Own => (&self.file).write(data),
            Kind::Socket => sys::send(self.file.as_fd(), data),
            Kind::Shared if !sys::is_ready(self.file.as_fd(), libc::POLLOUT) => {
                Err(io::ErrorKind::WouldBlock.into())
            }
            Kind::Shared => (&self.file).write(&data[..data.len().min(PIPE_BUF)]),
        })
    }
}

/// Repeats what a signal interrupted.
fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::pipe;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn flags(fd: &impl AsRawFd) -> String {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
        info.lines().find(|line| line.starts_with("flags:")).unwrap().to_owned()
    }

    #[test]
    fn a_pipe_does_not_block_and_its_shared_flags_stay() {
        let (reader, writer) = pipe().unwrap();
        let before = (flags(&reader), flags(&writer));
        let source = Descriptor::open(reader.as_raw_fd(), Use::Source).unwrap();
        let sink = Descriptor::open(writer.as_raw_fd(), Use::Sink).unwrap();
        assert_eq!((source.kind, sink.kind), (Kind::Own, Kind::Own));
        let mut buffer = [0; 8];
        assert_eq!(source.read(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        while sink.write(&[7; 4096]).is_ok() {}
        assert_eq!(sink.write(&[7]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(source.read(&mut buffer).unwrap(), 8);
        assert_eq!((flags(&reader), flags(&writer)), before);
    }

    #[test]
    fn a_shared_description_is_polled_first() {
        let (reader, writer) = pipe().unwrap();
        let shared = |fd: RawFd| Descriptor { file: sys::duplicate(fd).unwrap(), kind: Kind::Shared };
        let (source, sink) = (shared(reader.as_raw_fd()), shared(writer.as_raw_fd()));
        let mut buffer = [0; 8];
        assert_eq!(source.read(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(sink.write(&[1; 100_000]).unwrap(), PIPE_BUF);
        while sink.write(&[1; 100_000]).is_ok() {}
        assert_eq!(source.read(&mut buffer).unwrap(), 8);
    }

    #[test]
    fn a_socket_does_not_block_and_a_closed_one_is_no_signal() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let end = Descriptor::open(ours.as_raw_fd(), Use::Source).unwrap();
        assert_eq!(end.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(theirs);
        assert_eq!(end.read(&mut [0]).unwrap(), 0);
        assert_eq!(end.write(&[0]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn files_and_null_are_always_ready() {
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let source = Descriptor::open(null.as_raw_fd(), Use::Source).unwrap();
        assert_eq!(source.read(&mut [0]).unwrap(), 0);
        assert_eq!(source.write(&[0]).unwrap_err().raw_os_error(), Some(libc::EBADF));
        let file = tempfile::tempfile().unwrap();
        let sink = Descriptor::open(file.as_raw_fd(), Use::Sink).unwrap();
        assert_eq!(sink.kind, Kind::File);
        assert_eq!(sink.write(&[0; 100_000]).unwrap(), 100_000);
    }
}
