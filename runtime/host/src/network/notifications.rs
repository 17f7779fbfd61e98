//! A socket with the kernel's notifications about changes in a network namespace.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::bind;
use rustix::net::netlink::SocketAddrNetlink;

use super::netlink;
use crate::sys;

/// Multicast groups (linux/rtnetlink.h): interfaces, neighbours, addresses and routes.
const GROUPS: u32 = RTMGRP_LINK | RTMGRP_NEIGH | RTMGRP_IPV4 | RTMGRP_IPV6;
const RTMGRP_LINK: u32 = 0x1;
const RTMGRP_NEIGH: u32 = 0x4;
/// Addresses and routes.
const RTMGRP_IPV4: u32 = 0x10 | 0x40;
const RTMGRP_IPV6: u32 = 0x100 | 0x400;

/// The socket. Notifications are not parsed: after a change the owner lists the namespace again.
#[derive(Debug)]
pub struct Notifications(OwnedFd);

impl Notifications {
    /// Opens a socket in this thread's network namespace.
    pub fn open() -> io::Result<Notifications> {
        let socket = netlink::socket()?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        Ok(Notifications(socket))
    }

    /// Returns a descriptor that is readable when something has changed.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Discards all pending notifications.
    pub fn drain(&self) {
        // Reads one byte of each message; the kernel drops the rest.
        let mut byte = [0];
        loop {
            match sys::receive(self.fd(), &mut byte) {
                // Notifications were lost because the buffer was full. The remaining ones suffice.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(_) => return,
                Ok(_) => {}
            }
        }
    }
}
