// UNSAFETY: connect(2) with a timeout, and messages with descriptors.
#![allow(unsafe_code)]
//! Sockets between processes of the host.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::{check, check_len};

/// Maximum number of descriptors in one message.
pub const FDS_MAX: usize = 3;
/// Length in bytes of a control message with that many descriptors.
const CONTROL_LEN: usize = 64;

/// Buffer for a control message, aligned for its header.
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

/// Sends some of `data` over a socket, with `fds`, at most [`FDS_MAX`], at its first byte. Blocks unless the socket is
/// non-blocking.
pub fn send_with_fds(socket: BorrowedFd<'_>, data: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut control = Control([0; CONTROL_LEN]);
    let numbers: Vec<RawFd> = fds.iter().take(FDS_MAX).map(AsRawFd::as_raw_fd).collect();
    let mut vector = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: a zeroed msghdr is valid: no address, no vectors, no control message.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut vector, 1);
    if !numbers.is_empty() {
        let bytes = size_of_val(numbers.as_slice()) as u32;
        // SAFETY: the macros compute sizes and positions. The control buffer is aligned and large enough for FDS_MAX
        // descriptors, so that its first header and the data after it lie inside it.
        unsafe {
            message.msg_control = (&raw mut control.0).cast();
            message.msg_controllen = libc::CMSG_SPACE(bytes) as usize;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(bytes) as usize;
            std::ptr::copy_nonoverlapping(numbers.as_ptr().cast(), libc::CMSG_DATA(header), bytes as usize);
        }
    }
    // SAFETY: the message names `data`, which is readable, and the control buffer.
    check_len(unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) })
}

/// Receives available data from a socket, and descriptors with close-on-exec. The kernel closes descriptors in excess
/// of [`FDS_MAX`]. Blocks unless the socket is non-blocking.
pub fn receive_with_fds(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut control = Control([0; CONTROL_LEN]);
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: a zeroed msghdr is valid.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut vector, 1);
    message.msg_control = (&raw mut control.0).cast();
    // SAFETY: the macro computes a size, which is below the buffer's.
    message.msg_controllen = unsafe { libc::CMSG_SPACE((FDS_MAX * size_of::<RawFd>()) as u32) } as usize;
    // SAFETY: the message names `buffer` and the control buffer, both writable.
    let count =
        check_len(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) })?;
    // SAFETY: the kernel filled the control buffer up to msg_controllen. The macros walk its headers, and the
    // descriptors in an SCM_RIGHTS message are new and have no other owner.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*header).cmsg_len - libc::CMSG_LEN(0) as usize;
                let data: *const RawFd = libc::CMSG_DATA(header).cast();
                for index in 0..bytes / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok(count)
}

/// Connects to the socket at `path`. Waits at most `patience` while its queue is full, then returns EAGAIN.
pub fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is involved.
    let fd = check(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    // SAFETY: the kernel has just created `fd`, which has no other owner.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // A timeout of 0 would wait without limit.
    let patience = patience.max(Duration::from_millis(1));
    let time = libc::timeval { tv_sec: patience.as_secs() as i64, tv_usec: patience.subsec_micros().into() };
    // SAFETY: a zeroed sockaddr_un is valid.
    let mut address: libc::sockaddr_un = unsafe { MaybeUninit::zeroed().assume_init() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let path = path.as_os_str().as_bytes();
    // The last byte stays NUL.
    if path.len() >= address.sun_path.len() {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    address.sun_path.iter_mut().zip(path).for_each(|(to, from)| *to = *from as libc::c_char);
    let (level, option) = (libc::SOL_SOCKET, libc::SO_SNDTIMEO);
    // SAFETY: SO_SNDTIMEO reads one timeval, connect(2) the whole address.
    unsafe {
        let size = size_of_val(&time) as libc::socklen_t;
        check(libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const time).cast(), size))?;
        let size = size_of_val(&address) as libc::socklen_t;
        check(libc::connect(fd.as_raw_fd(), (&raw const address).cast(), size))?;
    }
    Ok(fd.into())
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
