//! Reading directories.

use std::ffi::CStr;
use std::sync::{Arc, Mutex};

use super::attributes::{Entry, Validity};
use super::bind::Bind;
use super::cursor::Cursor;
use super::errno::{Errno, Result};
use super::handle::Handle;
use super::inode::Inode;
use super::operations::{Node, OpenFile, Operations, UNOPENED};
use super::tree::Child;

/// An entry of a directory that is being read.
pub struct Listed<'a> {
    /// Inode number that programs in the guest see.
    pub ino: u64,
    /// Offset at which reading continues after this entry.
    pub offset: u64,
    /// Type as `DT_*`.
    pub kind: u8,
    /// The entry's name.
    pub name: &'a [u8],
    source: Source<'a>,
}

/// How far a directory was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Number of the open directory, 0 if there is none: the guest has not opened it, and need not read on.
    pub handle: u64,
    /// Offset at which reading continues.
    pub offset: u64,
    /// There are no more entries.
    pub ended: bool,
}

/// What a listed entry is looked up in.
enum Source<'a> {
    /// `.` or `..`, which the guest knows.
    Dots,
    /// A virtual directory.
    Virtual(u64),
    /// A bind in a virtual directory.
    Bind(&'a Operations, &'a Arc<Bind>),
    /// A host directory and the name in it.
    Host(&'a Operations, &'a Arc<Inode>, &'a CStr),
}

impl Listed<'_> {
    /// Looks the entry up. `None` for `.` and `..`, and for an entry that has vanished: no lookup was counted.
    pub fn look_up(&self) -> Option<Entry> {
        match self.source {
            Source::Dots => None,
            Source::Virtual(id) => Some(Entry::of_virtual(id)),
            Source::Bind(operations, bind) => {
                let (inode, stat) = operations.shared.enter(bind).ok()?;
                Some(operations.entry(&inode, &stat, None))
            }
            Source::Host(operations, dir, name) => operations.lookup_entry(dir, name).ok(),
        }
    }
}

impl Operations {
    /// Opens a directory. Returns the number of the open directory.
    pub fn opendir(&self, node: u64) -> Result<u64> {
        match self.node(node)? {
            Node::Virtual(id) => {
                self.shared.tree.lock().unwrap().names(id)?;
                Ok(0)
            }
            Node::Host(inode) => {
                let handle = self.open_dir(&inode)?;
                self.shared.table.lock().unwrap().open(handle)
            }
        }
    }

    /// Opens a host directory, and watches it.
    fn open_dir(&self, inode: &Arc<Inode>) -> Result<Handle> {
        if !inode.is_dir() {
            return Err(Errno(libc::ENOTDIR));
        }
        self.watch(inode);
        let file = self.or_as_caller(|| self.open_inode(inode, libc::O_RDONLY | libc::O_DIRECTORY))?;
        Ok(Handle::new(inode, file, self.caller(), Some(Mutex::default())))
    }

    /// Watches a directory of the container's root that the guest has created. Returns whether the guest then knows all
    /// names in it: it is empty, and the guest is told of names that others create.
    pub(super) fn watch_empty(&self, dir: &Arc<Inode>) -> bool {
        if !dir.bind.owned {
            return false;
        }
        self.watch(dir);
        self.names_in(dir) == Validity::Lasting && self.is_empty(dir) == Ok(true)
    }

    /// Whether a directory has no entries.
    fn is_empty(&self, dir: &Inode) -> Result<bool> {
        let file = self.open_inode(dir, libc::O_RDONLY | libc::O_DIRECTORY)?;
        let mut cursor = Cursor::default();
        while let Some(record) = cursor.peek(&file)? {
            if !matches!(record.name.to_bytes(), b"." | b"..") {
                return Ok(false);
            }
            let (len, offset) = (record.len, record.offset);
            cursor.advance(len, offset);
        }
        Ok(true)
    }

    /// Reads a directory from `offset`, which is 0 or that of an entry. Calls `take` with each entry until it returns
    /// false; that entry is not consumed. A directory that the guest has not opened ([`UNOPENED`]) stays open if there
    /// are more entries.
    pub fn readdir(
        &mut self,
        dir: OpenFile,
        offset: u64,
        take: impl FnMut(&Listed) -> Result<bool>,
    ) -> Result<Progress> {
        let inode = match self.node(dir.node)? {
            Node::Virtual(id) => return self.readdir_virtual(id, offset, take),
            Node::Host(inode) => inode,
        };
        let handle = match dir.handle {
            UNOPENED => Arc::new(self.open_dir(&inode)?),
            _ => self.handle(dir)?,
        };
        let mut progress = self.read_entries(&handle, offset, take)?;
        progress.handle = match dir.handle {
            UNOPENED if progress.ended => 0,
            // Without a number, the guest's next request opens it again.
            UNOPENED => self.shared.table.lock().unwrap().open(handle).unwrap_or(0),
            known => known,
        };
        Ok(progress)
    }

    /// Reads an open host directory from `offset`.
    fn read_entries(
        &mut self,
        handle: &Arc<Handle>,
        offset: u64,
        mut take: impl FnMut(&Listed) -> Result<bool>,
    ) -> Result<Progress> {
        let mut cursor = handle.cursor.as_ref().ok_or(Errno(libc::ENOTDIR))?.lock().unwrap();
        cursor.seek(&handle.file, offset)?;
        let (mut taken, mut result) = (false, Ok(()));
        let mut progress = Progress { handle: 0, offset, ended: false };
        while result.is_ok() {
            let record = match cursor.peek(&handle.file) {
                Ok(Some(record)) => record,
                // The guest must get the entries whose lookups were counted. It gets the error with its next request.
                Err(_) if taken => break,
                Ok(None) => {
                    progress.ended = true;
                    break;
                }
                Err(errno) => return Err(errno),
            };
            let (offset, len) = (record.offset, record.len);
            let name = record.name.to_bytes();
            let dots = name == b"." || name == b"..";
            let listed = Listed {
                // The guest must not see the inode number of the directory above a bind.
                ino: if dots { handle.inode.key.1 } else { record.ino },
                offset,
                kind: record.kind,
                name,
                source: if dots { Source::Dots } else { Source::Host(self, &handle.inode, record.name) },
            };
            match take(&listed) {
                Ok(true) => {
                    taken = true;
                    progress.offset = offset;
                    cursor.advance(len, offset);
                }
                Ok(false) => break,
                Err(errno) => result = Err(errno),
            }
        }
        let begins_to_keep = cursor.begins_to_keep();
        drop(cursor);
        if begins_to_keep {
            self.buffers.keep(handle);
        }
        result.map(|()| progress)
    }

    fn readdir_virtual(
        &self,
        id: u64,
        offset: u64,
        mut take: impl FnMut(&Listed) -> Result<bool>,
    ) -> Result<Progress> {
        let tree = self.shared.tree.lock().unwrap();
        let own = Child::Dir(id);
        let dots = [(&b"."[..], &own), (&b".."[..], &own)];
        let names = tree.names(id)?.iter().map(|(name, child)| (name.as_slice(), child));
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut progress = Progress { handle: 0, offset, ended: true };
        for (index, (name, child)) in dots.into_iter().chain(names).enumerate().skip(skip) {
            let is_file = matches!(child, Child::Bind(bind) if !bind.is_dir);
            let source = match child {
                _ if index < 2 => Source::Dots,
                Child::Dir(child) => Source::Virtual(*child),
                Child::Bind(bind) => Source::Bind(self, bind),
            };
            let kind = if is_file { libc::DT_REG } else { libc::DT_DIR };
            let listed = Listed { ino: child.ino(), offset: index as u64 + 1, kind, name, source };
            if !take(&listed)? {
                progress.ended = false;
                break;
            }
            progress.offset = listed.offset;
        }
        Ok(progress)
    }
}
