//! Files and directories that the guest has open, and which directories keep their records.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::atomic::AtomicI32;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::caller::Caller;
use super::cursor::Cursor;
use super::inode::Inode;
use super::mappings::Mapping;

/// Limit of directories that keep their buffer between two requests: 1 MiB in total, independent of the number of open
/// directories. A directory that has lost its buffer is read again from the cursor's offset.
pub const MAX_BUFFERS: usize = 64;

/// A file or directory that the guest has open.
pub struct Handle {
    /// Inode of the file or directory.
    pub inode: Arc<Inode>,
    /// The open file of the host.
    pub file: Arc<File>,
    /// Read position of a directory; `None` for files.
    pub cursor: Option<Mutex<Cursor>>,
    /// The process in the guest that has opened it.
    pub opener: Caller,
    /// The guest has shared mappings of the file that write to it.
    pub mapping: OnceLock<Mapping>,
    /// The guest's lock of the file by flock(2): 0 for none, or LOCK_SH or LOCK_EX.
    pub flocked: AtomicI32,
}

impl Handle {
    /// Returns a handle, whose inode can use its descriptor.
    pub fn new(inode: &Arc<Inode>, file: File, opener: Caller, cursor: Option<Mutex<Cursor>>) -> Handle {
        let file = Arc::new(file);
        inode.opened(&file);
        Handle {
            inode: inode.clone(),
            file,
            cursor,
            opener,
            mapping: OnceLock::new(),
            flocked: AtomicI32::new(0),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.inode.closed(&self.file);
    }
}

/// The directories that keep their records between two requests, oldest first.
#[derive(Default)]
pub struct Buffers(VecDeque<Weak<Handle>>);

impl Buffers {
    /// Adds a directory that keeps its records. If there are too many, the oldest loses its records.
    pub fn keep(&mut self, handle: &Arc<Handle>) {
        self.0.push_back(Arc::downgrade(handle));
        if self.0.len() > MAX_BUFFERS
            && let Some(oldest) = self.0.pop_front().and_then(|handle| handle.upgrade())
            && let Some(cursor) = &oldest.cursor
        {
            cursor.lock().unwrap().lose();
        }
    }
}
