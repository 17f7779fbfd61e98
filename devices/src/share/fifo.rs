//! FIFOs of a volume, which processes of several kernels use. The host's FIFO is the one pipe of all of them.
//!
//! The server opens it without waiting. A process of the guest that must wait, because there is no other end, no data or
//! no room, waits in the guest's kernel, which asks again (`resources/kernel/patches/fuse-fifo.patch`). So a FIFO costs an
//! open file of the server for each of the guest, and nothing else.
//!
//! FIFOs in a container's own root are pipes of the guest's kernel.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::errno::{Errno, Result};
use super::file::{Cache, Opened};
use super::handle::Handle;
use super::inode::Inode;
use super::operations::{OpenFile, Operations};
use super::sys;

/// In the answer of [`Operations::poll`] for a reader: there is a writer, but nothing to read. No pipe has this event.
pub const HAS_WRITER: u32 = libc::POLLRDBAND as u32;
/// The events for which a guest may ask.
const EVENTS: i16 = libc::POLLIN | libc::POLLRDNORM | libc::POLLOUT | libc::POLLWRNORM;

impl Inode {
    /// Whether the file is a FIFO.
    pub fn is_fifo(&self) -> bool {
        self.kind == libc::S_IFIFO
    }

    /// Whether the file is a FIFO that processes of other kernels may use. `device` is that of the file.
    pub(super) fn is_shared_fifo(&self, device: u64) -> bool {
        self.is_fifo() && !(self.bind.owned && device == self.bind.key.0)
    }
}

impl Operations {
    /// Opens a FIFO without waiting: ENXIO for a writer without a reader. It may be written to on a read-only bind, as on a
    /// read-only mount.
    pub(super) fn open_fifo(&mut self, inode: &Arc<Inode>, flags: i32) -> Result<Opened> {
        let acting = self.act_as(self.caller());
        let file = self.open_inode(inode, flags & libc::O_ACCMODE | libc::O_NONBLOCK)?;
        drop(acting);
        let handle = Handle::new(inode, file, self.caller(), None);
        let handle = self.shared.table.lock().unwrap().open(handle)?;
        Ok(Opened { handle, cache: Cache::Bypass })
    }

    /// Returns which of `events` an open FIFO has, with POLLHUP, POLLERR and [`HAS_WRITER`]. ENOSYS for another file.
    pub fn poll(&self, file: OpenFile, events: u32) -> Result<u32> {
        let handle = self.handle(file)?;
        if !handle.inode.is_fifo() {
            return Err(Errno(libc::ENOSYS));
        }
        let fd = handle.file.as_fd();
        let ready = sys::poll_now(fd, events as i16 & EVENTS)?;
        let ready = u32::from(ready as u16);
        let asks_for_data = events & libc::POLLIN as u32 != 0;
        let silent = asks_for_data && ready & (libc::POLLIN | libc::POLLHUP) as u32 == 0;
        Ok(if silent && sys::has_writer(fd) { ready | HAS_WRITER } else { ready })
    }
}
