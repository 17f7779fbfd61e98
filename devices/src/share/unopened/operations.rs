//! How files are read that the guest has not opened.

use std::os::fd::AsFd;
use std::sync::Arc;

use crate::share::errno::Result;
use crate::share::handle::Handle;
use crate::share::inode::Inode;
use crate::share::operations::Operations;
use crate::share::sys;

impl Operations {
    /// Sets whether the guest reads files without opening them.
    pub fn set_reads_unopened(&mut self, on: bool) {
        self.reads_unopened = on;
    }

    /// Returns a node that the guest has not opened as a file that is open for reading.
    pub(in crate::share) fn unopened(&self, node: u64) -> Result<Arc<Handle>> {
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
    pub(in crate::share) fn close_all_unopened(&self) {
        let mut table = self.shared.table.lock().unwrap();
        for (node, handle) in std::mem::take(&mut *self.unopened.borrow_mut()).0 {
            // An error means that the bind was removed.
            let _ = table.close(handle, node);
        }
    }

    /// Closes the file of a node that the guest has forgotten.
    pub(in crate::share) fn close_unopened(&self, node: u64) {
        if let Some(handle) = self.unopened.borrow_mut().take(node) {
            let closed = self.shared.table.lock().unwrap().close(handle, node);
            drop(closed);
        }
    }

    /// Whether the guest may read the file without opening it, if it asks for that.
    pub(in crate::share) fn may_stay_unopened(&self, inode: &Inode) -> bool {
        !self.reads_unopened
            || inode.kind != libc::S_IFREG
            || inode.keeps_pin()
            || self.shared.table.lock().unwrap().keep(inode)
    }
}
