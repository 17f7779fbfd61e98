//! The guest kernel's interface to the process that carries connections (`resources/kernel/patches/fuse-sockets.patch`).
// UNSAFETY: an ioctl; the function is a safe wrapper.
#![allow(unsafe_code)]

use rustix::fd::BorrowedFd;
use rustix::io::Result;
use rustix::ioctl::{Opcode, Updater, ioctl};

/// For a listening socket: makes it the one to which the kernel connects processes that connect to sockets of the host. For
/// a connection of it: returns the ticket, by which the host knows the connection. It is 0 if the kernel has not made it.
pub fn carry(socket: BorrowedFd<'_>) -> Result<u32> {
    const SIOCUNIXCARRY: Opcode = 0x89e1;
    let mut ticket = 0;
    // SAFETY: the ioctl writes nothing or a u32.
    let updater = unsafe { Updater::<SIOCUNIXCARRY, u32>::new(&mut ticket) };
    // SAFETY: as above.
    unsafe { ioctl(socket, updater) }?;
    Ok(ticket)
}
