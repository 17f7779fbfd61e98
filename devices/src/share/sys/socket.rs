// UNSAFETY: the standard library binds a socket only together with listen(2).
#![allow(unsafe_code)]
//! Binding sockets to names in shared directories.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::super::errno::{Errno, Result};
use super::{check, owned};

/// Returns a new AF_UNIX socket for byte streams, which never blocks.
pub fn stream() -> Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers.
    owned(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })
}

/// Binds a socket to a path, which is created. ENAMETOOLONG if an address has no room for it.
pub fn bind(socket: BorrowedFd, path: &[u8]) -> Result<()> {
    let mut address =
        libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] };
    let space = address.sun_path.get_mut(..path.len()).ok_or(Errno(libc::ENAMETOOLONG))?;
    for (to, from) in space.iter_mut().zip(path) {
        *to = *from as libc::c_char;
    }
    let len = std::mem::offset_of!(libc::sockaddr_un, sun_path) + path.len();
    // SAFETY: the kernel reads `len` bytes of `address`, which has at least so many.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len as libc::socklen_t) })
}
