//! Files that the guest reads without having opened them (FUSE_UNOPENED).
//!
//! The guest's kernel checks the permissions, and is told when the host changes such a file
//! ([`Attributes::lasting`](super::attributes::Attributes::lasting)), so an open without writing tells the server nothing
//! new. A process that opens, reads and closes a file whose pages the guest has then costs no request. The first READ opens
//! the file here. It stays open for further ones until the guest has read [`MAX_UNOPENED`] others, or forgets the inode.
//!
//! An open file of the host would survive the removal of its name, and so must this one: the inode of each file that the
//! guest may read in this way keeps its descriptor. Only as long as descriptors are not scarce are inodes given that right
//! ([`Table::keep`](super::table::Table::keep)).

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::errno::Result;
use super::handle::Handle;
use super::inode::Inode;
use super::operations::Operations;
use super::sys;

/// Limit of files that stay open for the next READ.
pub const MAX_UNOPENED: usize = 64;

/// The files that are open for the next READ, each with the number of its node and of the open file, oldest use first.
#[derive(Default)]
pub struct Unopened(VecDeque<(u64, u64)>);

impl Unopened {
    /// Removes the open file of a node. Returns its number.
    fn take(&mut self, node: u64) -> Option<u64> {
        let at = self.0.iter().rposition(|(known, _)| *known == node)?;
        self.0.remove(at).map(|(_, handle)| handle)
    }

    /// Adds the open file of a node as the one that was used last. Returns the oldest one if there are too many.
    fn put(&mut self, node: u64, handle: u64) -> Option<(u64, u64)> {
        self.0.push_back((node, handle));
        if self.0.len() > MAX_UNOPENED { self.0.pop_front() } else { None }
    }

    /// Forgets all open files, when the guest starts a new session.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl Operations {
    /// Sets whether the guest reads files without opening them.
    pub fn set_reads_unopened(&mut self, on: bool) {
        self.reads_unopened = on;
    }

    /// Returns a node that the guest has not opened as a file that is open for reading.
    pub(super) fn unopened(&self, node: u64) -> Result<Arc<Handle>> {
        let mut files = self.unopened.borrow_mut();
        // The bind of a known file may have been removed, and its files closed.
        let known = files.take(node).and_then(|handle| {
            let found = self.shared.table.lock().unwrap().handle(handle, node);
            found.ok().map(|found| (handle, found))
        });
        let (number, handle) = match known {
            Some(known) => known,
            None => {
                let inode = self.host_node(node, libc::EBADF)?;
                let file = self.open_inode(&inode, libc::O_RDONLY)?;
                inode.check_kind(&sys::fstat(file.as_fd())?)?;
                let handle = Handle::new(&inode, file, self.caller(), None);
                let mut table = self.shared.table.lock().unwrap();
                let number = table.open(handle)?;
                (number, table.handle(number, node)?)
            }
        };
        if let Some((node, oldest)) = files.put(node, number) {
            // An error means that the bind was removed.
            let closed = self.shared.table.lock().unwrap().close(oldest, node);
            drop(closed);
        }
        Ok(handle)
    }

    /// Closes all files that are open for the next READ.
    pub(super) fn close_all_unopened(&self) {
        let mut table = self.shared.table.lock().unwrap();
        for (node, handle) in std::mem::take(&mut *self.unopened.borrow_mut()).0 {
            // An error means that the bind was removed.
            let _ = table.close(handle, node);
        }
    }

    /// Closes the file of a node that the guest has forgotten.
    pub(super) fn close_unopened(&self, node: u64) {
        if let Some(handle) = self.unopened.borrow_mut().take(node) {
            let closed = self.shared.table.lock().unwrap().close(handle, node);
            drop(closed);
        }
    }

    /// Whether the guest may read the file without opening it, if it asks for that.
    pub(super) fn may_stay_unopened(&self, inode: &Inode) -> bool {
        !self.reads_unopened
            || inode.kind != libc::S_IFREG
            || inode.keeps_pin()
            || self.shared.table.lock().unwrap().keep(inode)
    }
}
