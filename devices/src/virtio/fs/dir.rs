//! Reading directories: OPENDIR, READDIR and READDIRPLUS.

use std::sync::{Arc, Mutex};

use super::server::{Node, Request, ShareServer};
use super::wire::{Attr, Dirent, EntryOut, OpenOut, OutHeader, ReadIn};
use crate::share::cursor::Record;
use crate::share::errno::{Errno, Result};
use crate::share::inode::Inode;
use crate::share::table::Handle;
use crate::share::tree::Child;

/// Limit of a reply to READDIR, in bytes. Linux 6.1 requests a page at a time.
const MAX_REPLY: usize = 64 << 10;

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
        let begins_to_keep = cursor.begins_to_keep();
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
