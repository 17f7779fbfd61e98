// UNSAFETY: SO_PEERCRED, whose process id may be 0, which rustix's type excludes.
#![allow(unsafe_code)]
//! Sockets between processes of the host.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, SendAncillaryBuffer, SendAncillaryMessage};

use super::check;

/// Maximum number of descriptors in one message. The kernel's is 253.
pub const FDS_MAX: usize = 250;

/// Sends some of `data` over a socket, with `fds`, at most [`FDS_MAX`], at its first byte. Blocks unless the socket is
/// non-blocking.
pub fn send_with_fds(socket: BorrowedFd<'_>, data: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds[..fds.len().min(FDS_MAX)]));
    }
    Ok(net::sendmsg(socket, &[IoSlice::new(data)], &mut control, SendFlags::NOSIGNAL)?)
}

/// Receives available data from a socket, and descriptors with close-on-exec. Closes descriptors in excess of
/// [`FDS_MAX`]. Blocks unless the socket is non-blocking.
pub fn receive_with_fds(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received.take(FDS_MAX));
        }
    }
    Ok(received.bytes)
}

/// Connects to the socket at `path`. Waits at most `patience` while its queue is full, then returns EAGAIN.
pub fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // A timeout of 0 would wait without limit.
    set_socket_timeout(&socket, Timeout::Send, Some(patience.max(Duration::from_millis(1))))?;
    net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// Returns the id of the process at the other end: the one that connected the socket, or that listens on it.
pub fn peer_process(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    // SAFETY: SO_PEERCRED writes one ucred.
    check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut peer).cast(), &raw mut size)
    })?;
    Ok(peer.pid as u32)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn descriptors_in_excess_of_the_limit_are_dropped() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let fds = [ours.as_fd(); FDS_MAX + 2];
        assert_eq!(send_with_fds(ours.as_fd(), b"some", &fds).unwrap(), 4);
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FDS_MAX + 2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        net::sendmsg(&ours, &[IoSlice::new(b"more")], &mut control, SendFlags::empty()).unwrap();
        for data in [b"some", b"more"] {
            let (mut buffer, mut received) = ([0; 4], Vec::new());
            assert_eq!(receive_with_fds(theirs.as_fd(), &mut buffer, &mut received).unwrap(), 4);
            assert_eq!((&buffer, received.len()), (data, FDS_MAX));
        }
    }

    #[test]
    fn a_connection_knows_its_peer_and_a_long_path_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        let socket = connect(&path, Duration::ZERO).unwrap();
        assert_eq!(peer_process(socket.as_fd()).unwrap(), std::process::id());
        let long = folder.path().join("x".repeat(200));
        assert_eq!(connect(&long, Duration::ZERO).unwrap_err().kind(), io::ErrorKind::InvalidFilename);
    }
}
