//! Reading directories.

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

/// What one getdents64(2) fills: a directory that is being read costs as much, until its end is reached.
const BUFFER_LEN: usize = 16 << 10;
/// How many directories keep it between two requests: 1 MiB in all, however many the guest has open. One that has lost
/// it is read again from where its reader is.
pub const MAX_BUFFERS: usize = 64;
/// The longest answer to READDIR. Linux 6.1 asks for a page at a time.
const MAX_REPLY: usize = 64 << 10;
/// Bytes of `struct linux_dirent64` before the name: inode, offset, record length, type.
const HOST_HEADER: usize = 19;

/// Where a directory's reader is.
#[derive(Default)]
pub struct Cursor {
    /// Records as getdents64(2) wrote them; those before `used` are delivered.
    records: Vec<u8>,
    used: usize,
    /// The offset that the next record follows.
    offset: u64,
    /// There is nothing more.
    ended: bool,
    /// It is among those that keep their records.
    keeps: bool,
    /// It is no more: the host's file is further than `offset`.
    lost: bool,
}

/// The directories that keep their records between two requests, the longest first.
#[derive(Default)]
pub struct Buffers(VecDeque<Weak<Handle>>);

impl Buffers {
    /// Lets a directory keep its records, and the one that has kept them longest lose them if they are too many.
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

/// One entry as the host gives it.
struct Record<'a> {
    ino: u64,
    /// Where to go on after this entry.
    offset: u64,
    kind: u8,
    name: &'a CStr,
    len: usize,
}

impl Cursor {
    /// Goes to `offset`, which is 0 or was delivered with some entry.
    fn seek(&mut self, file: &File, offset: u64) -> Result<()> {
        if offset == self.offset && !self.lost && (offset != 0 || !self.ended) {
            return Ok(());
        }
        let position = i64::try_from(offset).map_err(|_| Errno(libc::EINVAL))?;
        sys::lseek(file.as_fd(), position, libc::SEEK_SET)?;
        *self = Cursor { offset, keeps: self.keeps, ..Cursor::default() };
        Ok(())
    }

    /// Gives the records up; what was not delivered of them is read again.
    fn lose(&mut self) {
        self.lost |= self.used < self.records.len();
        self.records = Vec::new();
        self.used = 0;
        self.keeps = false;
    }

    /// Bytes of the host's memory that it takes.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.records.capacity()
    }

    /// The next entry, which stays the next one until [`Self::advance`]; `None` at the end.
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

/// Reads one `struct linux_dirent64` from the front of `bytes`.
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
                // Entries with counted lookups must reach the guest; it meets the error when it asks for more.
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

    /// Appends one entry; with `plus`, also a lookup of it.
    fn put_record(&mut self, dir: &Arc<Inode>, record: &Record, plus: bool) {
        let name = record.name.to_bytes();
        let dots = name == b"." || name == b"..";
        if plus {
            // The guest knows the two dots, and what vanishes meanwhile it looks up itself.
            let found = if dots { None } else { self.lookup_host(dir, record.name).ok() };
            match found {
                Some((inode, stat)) => self.put_entry(&inode, &stat, Some(dir.key.0)),
                None => self.put_nothing(),
            }
        }
        // What is above a share is none of the guest's business.
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

    /// An entry of which no lookup was counted.
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

/// Bytes of an entry in the reply.
fn entry_len(name: &[u8], plus: bool) -> usize {
    let entry = if plus { EntryOut::SIZE + Attr::SIZE } else { 0 };
    entry + Dirent::SIZE + name.len().next_multiple_of(8)
}
