//! How a file is mapped for writing.

use std::os::fd::AsFd;

use super::is_locked_by_a_process;
use crate::share::errno::{Errno, Result};
use crate::share::operations::{OpenFile, Operations};

impl Operations {
    /// Lets the guest map an open file shared and writable until it closes the file. EAGAIN means that another machine has
    /// such mappings of the file, or that a process of the host probably has.
    pub fn map_shared(&mut self, file: OpenFile) -> Result<()> {
        let handle = self.handle(file)?;
        handle.inode.writable()?;
        // The registry may be created, whatever the umask of the last caller was.
        let _creating = self.credentials().create_as((0, 0), 0, 0);
        if handle.mapping.get().is_none() {
            let shared = !handle.inode.bind.owned && !self.shared.mappings.has(handle.inode.key);
            if shared && is_locked_by_a_process(handle.file.as_fd()) {
                return Err(Errno(libc::EAGAIN));
            }
            // Only this thread sets it.
            let _ = handle.mapping.set(self.shared.mappings.add(handle.inode.key)?);
        }
        Ok(())
    }
}
