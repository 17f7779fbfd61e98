//! Open files and directories, and extended attributes, which 9P treats as files.

use super::fids::{Fid, Open};
use super::server::P9Server;
use super::wire::{self, DATA_HEADER, DIRENT_HEADER, DOTL_SYNC, Fields, Qid, put_bytes};
use crate::pieces::Pieces;
use crate::share::errno::{Errno, Result};
use crate::share::file::{How, MAX_WRITE, Write};
use crate::share::names::{Name, XattrName};
use crate::share::operations::{Caller, NewFile, OpenFile};
use crate::share::xattr::MAX_VALUE;

/// Limit of entries in one reply to READDIR, in bytes.
const MAX_LISTING: usize = 64 << 10;

impl P9Server {
    pub(super) fn lopen(&mut self, fields: &mut Fields) -> Result<()> {
        let (fid, flags) = (fields.u32()?, linux_flags(fields.u32()?));
        let node = self.unopened(fid)?.node;
        let qid = self.qid(node)?;
        let is_dir = self.share.identify(node)?.1 == libc::S_IFDIR;
        if is_dir && flags & libc::O_ACCMODE as u32 != 0 {
            return Err(Errno(libc::EISDIR));
        }
        let open = match is_dir {
            true => Open::Dir { fh: self.share.opendir(node)? },
            false => Open::File { fh: self.share.open(node, how(flags))?.handle, flags },
        };
        self.fids.set_open(fid, open)?;
        self.put_opened(qid);
        Ok(())
    }

    /// LCREATE: the fid of the directory becomes that of the new file.
    pub(super) fn lcreate(&mut self, fields: &mut Fields) -> Result<()> {
        let (fid, name, flags) = (fields.u32()?, fields.name()?, linux_flags(fields.u32()?));
        let (mode, group) = (fields.u32()?, fields.u32()?);
        let dir = self.unopened(fid)?;
        // The guest's kernel has applied the umask.
        let new = NewFile { caller: Caller { uid: dir.user, gid: group }, mode, umask: 0 };
        let (made, opened) = self.share.create(dir.node, Name::new(&name)?, &new, how(flags))?;
        let before = self.fids.set_node(fid, made.node)?;
        self.fids.set_open(fid, Open::File { fh: opened.handle, flags })?;
        self.share.let_go(before);
        let qid = self.qid(made.node)?;
        self.put_opened(qid);
        Ok(())
    }

    /// Replies with the file's qid and an iounit of 0, which means that only the message size limits a request.
    fn put_opened(&mut self, qid: Qid) {
        qid.put(&mut self.reply);
        self.reply.extend_from_slice(&[0; 4]);
    }

    fn unopened(&self, fid: u32) -> Result<&Fid> {
        let known = self.fids.get(fid)?;
        if matches!(known.open, Open::No) { Ok(known) } else { Err(Errno(libc::EBADF)) }
    }

    /// Returns `count`, limited to the data that fits into one reply.
    fn most(&self, count: u32) -> u32 {
        count.min(self.msize - DATA_HEADER as u32).min(MAX_WRITE)
    }

    /// READ: the host's kernel writes into guest memory, directly after the space for the reply's header.
    pub(super) fn read(&mut self, fields: &mut Fields, output: &Pieces) -> Result<usize> {
        let (fid, offset, count) = (fields.u32()?, fields.u64()?, fields.u32()?);
        let size = self.most(count);
        let mut data = output.tail(DATA_HEADER);
        let known = self.fids.get(fid)?;
        let len = match &known.open {
            Open::File { fh, .. } => {
                data.truncate(size as usize);
                self.share.read(OpenFile { node: known.node, handle: *fh }, offset, data)?
            }
            Open::XattrRead(value) => {
                let from = usize::try_from(offset).map_or(value.len(), |at| at.min(value.len()));
                data.write(&value[from..][..(size as usize).min(value.len() - from)])
            }
            Open::Dir { .. } => return Err(Errno(libc::EISDIR)),
            _ => return Err(Errno(libc::EBADF)),
        };
        self.reply.extend_from_slice(&(len as u32).to_le_bytes());
        Ok(len)
    }

    /// WRITE: the host's kernel reads from guest memory.
    pub(super) fn write(&mut self, fields: &mut Fields, data: &mut Pieces) -> Result<()> {
        let (fid, offset, count) = (fields.u32()?, fields.u64()?, fields.u32()?);
        if count as usize > data.len() {
            return Err(wire::MALFORMED);
        }
        data.truncate(count as usize);
        let known = self.fids.get(fid)?;
        let written = match &known.open {
            Open::File { fh, flags } => {
                let write = Write {
                    offset,
                    size: count.min(MAX_WRITE),
                    flags: *flags as i32,
                    from_cache: false,
                    // 9P does not say whether the writer may keep set-user-ID.
                    kill_setid: true,
                };
                self.share.write(OpenFile { node: known.node, handle: *fh }, &write, data)? as u32
            }
            Open::XattrWrite { .. } => {
                let mut value = vec![0; data.len().min(MAX_VALUE + 1)];
                data.read(&mut value);
                self.fids.write_xattr(fid, offset, &value)?;
                count
            }
            _ => return Err(Errno(libc::EBADF)),
        };
        self.reply.extend_from_slice(&written.to_le_bytes());
        Ok(())
    }

    /// READDIR. It reserves space for each name as if it were padded to 8 bytes, so that a directory is listed in the
    /// same portions as over virtio-fs.
    pub(super) fn readdir(&mut self, fields: &mut Fields) -> Result<()> {
        let (fid, offset, count) = (fields.u32()?, fields.u64()?, fields.u32()?);
        let mut room = (self.most(count) as usize).min(MAX_LISTING);
        let known = self.fids.get(fid)?;
        let (node, Open::Dir { fh }) = (known.node, &known.open) else { return Err(Errno(libc::EBADF)) };
        let file = OpenFile { node, handle: *fh };
        let dir = self.share.identify(node)?.0;
        let start = self.reply.len();
        self.reply.extend_from_slice(&[0; 4]);
        let (reply, numbers) = (&mut self.reply, &mut self.numbers);
        self.share.readdir(file, offset, |entry| {
            let Some(rest) = room.checked_sub(DIRENT_HEADER + entry.name.len().next_multiple_of(8)) else {
                return Ok(false);
            };
            room = rest;
            let path = numbers.below(dir, entry.ino)?;
            // The types of getdents64(2) are the upper bits of a mode.
            Qid { kind: Qid::kind_of(u32::from(entry.kind) << 12), path }.put(reply);
            reply.extend_from_slice(&entry.offset.to_le_bytes());
            reply.push(entry.kind);
            put_bytes(reply, entry.name);
            Ok(true)
        })?;
        let len = (self.reply.len() - start - 4) as u32;
        self.reply[start..start + 4].copy_from_slice(&len.to_le_bytes());
        Ok(())
    }

    pub(super) fn fsync(&mut self, fields: &mut Fields) -> Result<()> {
        let (fid, data_only) = (fields.u32()?, fields.u32()? != 0);
        let known = self.fids.get(fid)?;
        let (node, Open::File { fh, .. } | Open::Dir { fh }) = (known.node, &known.open) else {
            return Err(Errno(libc::EBADF));
        };
        self.share.fsync(OpenFile { node, handle: *fh }, data_only)
    }

    /// LOCK. In a container's root the guest's kernel has already acquired the lock, and only the guest has processes that
    /// lock. In a volume others lock as well, and the message does not name the owner as the host's kernel would need it:
    /// ENOLCK in the guest.
    pub(super) fn lock(&mut self, fields: &mut Fields) -> Result<()> {
        let node = self.opened_file(fields.u32()?)?;
        let (kind, _) = (fields.u8()?, fields.u32()?);
        let (_, _, _, _) = (fields.u64()?, fields.u64()?, fields.u32()?, fields.bytes()?);
        let refused = kind != wire::UNLOCKED && self.share.has_other_users(node)?;
        self.reply.push(if refused { wire::LOCK_ERROR } else { wire::LOCK_SUCCESS });
        Ok(())
    }

    /// GETLOCK: there are no locks outside of the guest.
    pub(super) fn getlock(&mut self, fields: &mut Fields) -> Result<()> {
        self.opened_file(fields.u32()?)?;
        let _ = fields.u8()?;
        let (start, len, process, client) = (fields.u64()?, fields.u64()?, fields.u32()?, fields.bytes()?);
        self.reply.push(wire::UNLOCKED);
        self.reply.extend_from_slice(&start.to_le_bytes());
        self.reply.extend_from_slice(&len.to_le_bytes());
        self.reply.extend_from_slice(&process.to_le_bytes());
        put_bytes(&mut self.reply, client);
        Ok(())
    }

    /// Returns the node of an open file or directory.
    fn opened_file(&self, fid: u32) -> Result<u64> {
        let known = self.fids.get(fid)?;
        let open = matches!(known.open, Open::File { .. } | Open::Dir { .. });
        if open { Ok(known.node) } else { Err(Errno(libc::EBADF)) }
    }

    pub(super) fn clunk(&mut self, fields: &mut Fields) -> Result<()> {
        self.close(fields.u32()?)
    }

    /// Removes a fid: closes its open file, or sets the extended attribute that was written to it.
    pub(super) fn close(&mut self, fid: u32) -> Result<()> {
        let Fid { node, open, .. } = self.fids.remove(fid)?;
        let closed = match open {
            Open::No | Open::XattrRead(_) => Ok(()),
            Open::File { fh, .. } | Open::Dir { fh } => self.share.release(OpenFile { node, handle: fh }),
            Open::XattrWrite { size, ref value, .. } if value.len() != size => Err(Errno(libc::EINVAL)),
            // Linux's removexattr(2): an empty value with XATTR_REPLACE.
            Open::XattrWrite { name, size: 0, flags, .. } if flags as i32 & libc::XATTR_REPLACE != 0 => {
                XattrName::new(&name).and_then(|name| self.share.removexattr(node, name))
            }
            Open::XattrWrite { name, flags, value, .. } => {
                XattrName::new(&name).and_then(|name| self.share.setxattr(node, name, &value, flags as i32))
            }
        };
        self.share.let_go(node);
        closed
    }

    /// XATTRWALK: makes a fid from which the value of an attribute can be read, or without a name the list of names.
    pub(super) fn xattrwalk(&mut self, fields: &mut Fields) -> Result<()> {
        let (fid, new, name) = (fields.u32()?, fields.u32()?, fields.name()?);
        let known = self.fids.get(fid)?;
        let (node, user) = (known.node, known.user);
        self.fids.check_free(new)?;
        // The reply's buffer takes the longest value; the fid keeps a copy of the value's length.
        let start = self.reply.len();
        match name.is_empty() {
            true => self.share.listxattr(node, MAX_VALUE, &mut self.reply)?,
            false => self.share.getxattr(node, XattrName::new(&name)?, MAX_VALUE, &mut self.reply)?,
        };
        let value = self.reply[start..].to_vec();
        self.reply.truncate(start);
        let len = value.len() as u64;
        self.share.hold(node)?;
        self.fids.insert(new, node, user);
        if let Err(errno) = self.fids.set_open(new, Open::XattrRead(value)) {
            self.close(new)?;
            return Err(errno);
        }
        self.reply.extend_from_slice(&len.to_le_bytes());
        Ok(())
    }

    /// XATTRCREATE: the value is then written to the fid by WRITE, and set by CLUNK. An attribute that cannot be set is
    /// refused here, because not every guest checks the reply to CLUNK.
    pub(super) fn xattrcreate(&mut self, fields: &mut Fields) -> Result<()> {
        let (fid, name) = (fields.u32()?, fields.name()?);
        let (size, flags) = (fields.u64()?, fields.u32()?);
        let node = self.unopened(fid)?.node;
        let size = usize::try_from(size).ok().filter(|size| *size <= MAX_VALUE).ok_or(Errno(libc::E2BIG))?;
        self.share.check_xattr(node, name.to_bytes())?;
        self.fids.set_open(fid, Open::XattrWrite { name, size, flags, value: Vec::new() })
    }
}

/// 9P does not say whether the truncating process may keep set-user-ID.
fn how(flags: u32) -> How {
    How { flags: flags as i32, kill_setid: true }
}

fn linux_flags(flags: u32) -> u32 {
    if flags & DOTL_SYNC != 0 { flags | libc::O_SYNC as u32 } else { flags }
}
