//! Reading directories: OPENDIR, READDIR and READDIRPLUS.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, Weak};

use super::errno::{Errno, Result};
use super::inode::Inode;
use super::server::{Node, Request, ShareServer};
use super::share::Child;
use super::sys;
use super::table::Handle;
use super::wire::{Attr, Dirent, EntryOut, OpenOut, OutHeader, ReadIn};

/// Size of the buffer for getdents64(2). A directory that is being read has one until its end is reached.
const BUFFER_LEN: usize = 16 << 10;
/// Limit of directories that keep their buffer between two requests: 1 MiB in total, independent of the number of open
/// directories. A directory that has lost its buffer is read again from the cursor's offset.
pub const MAX_BUFFERS: usize = 64;
/// Limit of a reply to READDIR, in bytes. Linux 6.1 requests a page at a time.
const MAX_REPLY: usize = 64 << 10;
/// Bytes of `struct linux_dirent64` before the name: inode, offset, record length, type.
const HOST_HEADER: usize = 19;

/// Read position of an open directory.
#[derive(Default)]
pub struct Cursor {
    /// Records from getdents64(2). Those before `used` have been delivered.
    records: Vec<u8>,
    used: usize,
    /// Offset of the last delivered record.
    offset: u64,
    /// The end of the directory was reached.
    ended: bool,
    /// The cursor is in [`Buffers`] and may keep its records.
    keeps: bool,
    /// Undelivered records were dropped: the host's file position is past `offset`.
    lost: bool,
}

/// The directories that keep their records between two requests, oldest first.
#[derive(Default)]
pub struct Buffers(VecDeque<Weak<Handle>>);

impl Buffers {
    /// Adds a directory that keeps its records. If there are too many, the oldest loses its records.
    fn keep(&mut self, handle: &Arc<Handle>) {
        self.0.push_back(Arc::downgrade(handle));
        if self.0.len() > MAX_BUFFERS
            && let Some(oldest) = self.0.pop_front().and_then(|handle| handle.upgrade())
            && let Some(cursor) = &oldest.cursor
        {
            cursor.lock().unwrap().lose();
        }
    }
}

/// One directory entry of the host.
struct Record<'a> {
    ino: u64,
    /// Offset at which reading continues after this entry.
    offset: u64,
    kind: u8,
    name: &'a CStr,
    len: usize,
}

impl Cursor {
    /// Moves to `offset`, which is 0 or was delivered with an entry.
    fn seek(&mut self, file: &File, offset: u64) -> Result<()> {
        if offset == self.offset && !self.lost && (offset != 0 || !self.ended) {
            return Ok(());
        }
        let position = i64::try_from(offset).map_err(|_| Errno(libc::EINVAL))?;
        sys::lseek(file.as_fd(), position, libc::SEEK_SET)?;
        *self = Cursor { offset, keeps: self.keeps, ..Cursor::default() };
        Ok(())
    }

    /// Drops the records. Undelivered ones are read again later.
    fn lose(&mut self) {
        self.lost |= self.used < self.records.len();
        self.records = Vec::new();
        self.used = 0;
        self.keeps = false;
    }

    /// Size of the buffer in bytes.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.records.capacity()
    }

    /// Returns the next entry without consuming it (see [`Self::advance`]), or `None` at the end.
    fn peek(&mut self, file: &File) -> Result<Option<Record<'_>>> {
        if self.used == self.records.len() && !self.ended {
            self.records.resize(BUFFER_LEN, 0);
            let len =
                sys::getdents(file.as_fd(), &mut self.records).inspect_err(|_| self.records = Vec::new())?;
            self.records.truncate(len);
            self.used = 0;
            if len == 0 {
                self.ended = true;
                self.records = Vec::new();
            }
        }
        let rest = &self.records[self.used..];
        if rest.is_empty() {
            return Ok(None);
        }
        parse(rest).map(Some).ok_or(Errno(libc::EIO))
    }

    fn advance(&mut self, len: usize, offset: u64) {
        self.used += len;
        self.offset = offset;
    }
}

/// Parses the `struct linux_dirent64` at the front of `bytes`.
fn parse(bytes: &[u8]) -> Option<Record<'_>> {
    let number = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let len = usize::from(u16::from_ne_bytes(bytes.get(16..18)?.try_into().ok()?));
    let name = CStr::from_bytes_until_nul(bytes.get(HOST_HEADER..len)?).ok()?;
    Some(Record { ino: number(0)?, offset: number(8)?, kind: *bytes.get(18)?, name, len })
}

impl ShareServer {
    pub(super) fn opendir(&mut self, request: &Request) -> Result<()> {
        let fh = match self.node(request.nodeid)? {
            Node::Virtual(id) => {
                self.shared.tree.lock().unwrap().names(id)?;
                0
            }
            Node::Host(inode) if inode.is_dir() => {
                let file = self.open_inode(&inode, libc::O_RDONLY | libc::O_DIRECTORY)?;
                let handle = Handle::new(&inode, file, Some(Mutex::default()));
                self.shared.table.lock().unwrap().open(handle)?
            }
            Node::Host(_) => return Err(Errno(libc::ENOTDIR)),
        };
        OpenOut { fh, ..Default::default() }.put(&mut self.reply);
        Ok(())
    }

    pub(super) fn readdir(&mut self, request: &Request, plus: bool) -> Result<()> {
        let input = ReadIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let end = OutHeader::SIZE + (input.size as usize).min(MAX_REPLY);
        if let Node::Virtual(id) = self.node(request.nodeid)? {
            return self.readdir_virtual(id, input.offset, end, plus);
        }
        let handle = self.handle(input.fh, request.nodeid)?;
        let mut cursor = handle.cursor.as_ref().ok_or(Errno(libc::ENOTDIR))?.lock().unwrap();
        cursor.seek(&handle.file, input.offset)?;
        loop {
            let record = match cursor.peek(&handle.file) {
                Ok(Some(record)) => record,
                // The guest must get the entries whose lookups were counted. It gets the error with its next request.
                Err(_) if self.reply.len() > OutHeader::SIZE => break,
                Ok(None) => break,
                Err(errno) => return Err(errno),
            };
            let (offset, len) = (record.offset, record.len);
            if self.reply.len() + entry_len(record.name.to_bytes(), plus) > end {
                break;
            }
            self.put_record(&handle.inode, &record, plus);
            cursor.advance(len, offset);
        }
        let begins_to_keep = cursor.records.capacity() != 0 && !cursor.keeps;
        cursor.keeps |= begins_to_keep;
        drop(cursor);
        if begins_to_keep {
            self.buffers.keep(&handle);
        }
        Ok(())
    }

    /// Appends one entry. With `plus` it also looks the entry up.
    fn put_record(&mut self, dir: &Arc<Inode>, record: &Record, plus: bool) {
        let name = record.name.to_bytes();
        let dots = name == b"." || name == b"..";
        if plus {
            // The guest knows `.` and `..`. An entry that has vanished gets no lookup.
            let found = if dots { None } else { self.lookup_host(dir, record.name).ok() };
            match found {
                Some((inode, stat)) => self.put_entry(&inode, &stat, Some(dir.key.0)),
                None => self.put_nothing(),
            }
        }
        // The guest must not see the inode number of the directory above a bind.
        let ino = if dots { dir.key.1 } else { record.ino };
        self.put_dirent(name, Dirent { ino, off: record.offset, namelen: 0, kind: u32::from(record.kind) });
    }

    fn readdir_virtual(&mut self, id: u64, offset: u64, end: usize, plus: bool) -> Result<()> {
        let shared = self.shared.clone();
        let tree = shared.tree.lock().unwrap();
        let own = Child::Dir(id);
        let dots = [(&b"."[..], &own), (&b".."[..], &own)];
        let names = tree.names(id)?.iter().map(|(name, child)| (name.as_slice(), child));
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, (name, child)) in dots.into_iter().chain(names).enumerate().skip(skip) {
            if self.reply.len() + entry_len(name, plus) > end {
                break;
            }
            if plus {
                match child {
                    _ if index < 2 => self.put_nothing(),
                    Child::Dir(child) => self.put_node(*child, Self::virtual_attr(*child)),
                    Child::Bind(bind) => match shared.enter(bind) {
                        Ok((inode, stat)) => self.put_entry(&inode, &stat, None),
                        Err(_) => self.put_nothing(),
                    },
                }
            }
            let is_file = matches!(child, Child::Bind(bind) if !bind.is_dir);
            let kind = if is_file { libc::DT_REG } else { libc::DT_DIR };
            let dirent =
                Dirent { ino: child.ino(), off: index as u64 + 1, namelen: 0, kind: u32::from(kind) };
            self.put_dirent(name, dirent);
        }
        Ok(())
    }

    /// Appends the attributes of an entry without a counted lookup.
    fn put_nothing(&mut self) {
        EntryOut::default().put(&mut self.reply);
        Attr::default().put(&mut self.reply);
    }

    fn put_dirent(&mut self, name: &[u8], dirent: Dirent) {
        Dirent { namelen: name.len() as u32, ..dirent }.put(&mut self.reply);
        self.reply.extend_from_slice(name);
        let padding = name.len().next_multiple_of(8) - name.len();
        self.reply.extend_from_slice(&[0; 8][..padding]);
    }
}

/// Length of an entry in the reply, in bytes.
fn entry_len(name: &[u8], plus: bool) -> usize {
    let entry = if plus { EntryOut::SIZE + Attr::SIZE } else { 0 };
    entry + Dirent::SIZE + name.len().next_multiple_of(8)
}
