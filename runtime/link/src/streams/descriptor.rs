//! A client's descriptor with non-blocking reads and writes.
//!
//! stdin, stdout and stderr are shared with the process that started `vmm`: a flag on their open file description would
//! affect all processes that share it. Pipes, FIFOs and terminals are therefore reopened through /proc/self/fd, which
//! creates a new description; if that is refused, each access is preceded by poll(2). Files need neither, and sockets
//! have a flag per call.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use host::sys;

/// Maximum bytes of a write to a pipe after poll(2) reported it writable, which guarantees this much room (pipe(7)).
const PIPE_BUF: usize = 4096;

/// The way in which a descriptor is kept from blocking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A file, whose reads and writes never block, or a file description that is not shared and has O_NONBLOCK.
    NonBlocking,
    /// The file description is shared: poll(2) before each access.
    Shared,
    /// MSG_DONTWAIT on each call.
    Socket,
}

/// Direction in which a descriptor is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Read from the client.
    Source,
    /// Write to the client.
    Sink,
}

/// A client's descriptor that never blocks: it returns [`io::ErrorKind::WouldBlock`] instead.
#[derive(Debug)]
pub struct Descriptor {
    file: File,
    kind: Kind,
}

impl Descriptor {
    /// Duplicates or reopens `fd` of this process. `fd` itself and its flags do not change.
    pub fn open(fd: RawFd, purpose: Use) -> io::Result<Descriptor> {
        let file = sys::duplicate(fd)?;
        let file_type = file.metadata()?.file_type();
        if file_type.is_socket() {
            return Ok(Descriptor { file, kind: Kind::Socket });
        }
        if !file_type.is_fifo() && !file_type.is_char_device() {
            return Ok(Descriptor { file, kind: Kind::NonBlocking });
        }
        let mut options = OpenOptions::new();
        options.read(purpose == Use::Source).write(purpose == Use::Sink);
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        match options.open(format!("/proc/self/fd/{fd}")) {
            Ok(own) => Ok(Descriptor { file: own, kind: Kind::NonBlocking }),
            Err(error) => {
                log::debug!("reopen descriptor {fd}: {error}; it is polled instead");
                Ok(Descriptor { file, kind: Kind::Shared })
            }
        }
    }

    /// Returns the duplicate.
    pub fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Returns the number of the duplicate, for registration.
    pub fn raw(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Reads available bytes. Returns 0 at the end.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        retry(|| match self.kind {
            Kind::Socket => sys::receive(self.file.as_fd(), buffer),
            Kind::Shared if !sys::is_ready(self.file.as_fd(), libc::POLLIN) => {
                Err(io::ErrorKind::WouldBlock.into())
            }
            Kind::Shared | Kind::NonBlocking => (&self.file).read(buffer),
        })
    }

    /// Writes as many bytes as the descriptor accepts.
    pub fn write(&self, data: &[u8]) -> io::Result<usize> {
        retry(|| match self.kind {
            Kind::NonBlocking => (&self.file).write(data),
            Kind::Socket => sys::send(self.file.as_fd(), data),
            Kind::Shared if !sys::is_ready(self.file.as_fd(), libc::POLLOUT) => {
                Err(io::ErrorKind::WouldBlock.into())
            }
            Kind::Shared => (&self.file).write(&data[..data.len().min(PIPE_BUF)]),
        })
    }
}

/// Repeats a call that a signal interrupted.
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
        assert_eq!((source.kind, sink.kind), (Kind::NonBlocking, Kind::NonBlocking));
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
    fn a_socket_does_not_block_and_a_closed_one_raises_no_signal() {
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
        assert_eq!(sink.kind, Kind::NonBlocking);
        assert_eq!(sink.write(&[0; 100_000]).unwrap(), 100_000);
    }
}
