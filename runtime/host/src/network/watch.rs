//! A socket at which the kernel tells of everything that changes in a network namespace.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys;

/// What of (linux/rtnetlink.h): interfaces, neighbours, addresses and routes.
const GROUPS: u32 = RTMGRP_LINK | RTMGRP_NEIGH | RTMGRP_IPV4 | RTMGRP_IPV6;
const RTMGRP_LINK: u32 = 0x1;
const RTMGRP_NEIGH: u32 = 0x4;
/// Addresses and routes.
const RTMGRP_IPV4: u32 = 0x10 | 0x40;
const RTMGRP_IPV6: u32 = 0x100 | 0x400;

/// The socket. What it is told is not looked at: whoever hears of a change asks for everything.
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl Watch {
    /// Opens one in this thread's network namespace.
    pub fn open() -> io::Result<Watch> {
        let socket = sys::route_socket()?;
        sys::hear_of_routes(socket.as_fd(), GROUPS)?;
        Ok(Watch(socket))
    }

    /// Readable when something has changed.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Takes what has been told so far.
    pub fn drain(&self) {
        // One byte of each message is enough; the kernel drops the rest of it.
        let mut byte = [0];
        loop {
            match sys::receive(self.fd(), &mut byte) {
                // More was told than there was room for: that is a change, too.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(_) => return,
                Ok(_) => {}
            }
        }
    }
}
