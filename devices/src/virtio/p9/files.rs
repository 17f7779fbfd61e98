//! Open files and directories, and extended attributes, which 9P treats as files.

use super::fids::{Fid, Open};
use super::server::P9Server;
use super::wire::{self, DATA_HEADER, Fields, Qid, put_bytes};
use crate::pieces::Pieces;
use crate::share::errno::{Errno, Result};
use crate::virtio::fs::server::{MAX_WRITE, Request};
use crate::virtio::fs::wire::{
    CreateIn, Dirent, FSYNC_FDATASYNC, FsyncIn, GetxattrIn, OPEN_KILL_SUIDGID, OpenIn, OpenOut, ReadIn,
    ReleaseIn, SetxattrIn, WRITE_KILL_SUIDGID, WriteIn, op,
};
use crate::virtio::fs::xattr::MAX_VALUE;

/// P9_DOTL_SYNC: the bit of O_SYNC without O_DSYNC. All other flags have the values of Linux on x86.
const DOTL_SYNC: u32 = 0o4_000_000;

impl P9Server {
    pub(super) fn lopen(&mut self, fields: &mut Fields) -> Result<()> {
        let (fid, flags) = (fields.u32()?, linux_flags(fields.u32()?));
        let node = self.unopened(fid)?.node;
        let qid = self.qid(node)?;
        let is_dir = self.fs.identify(node)?.1 == libc::S_IFDIR;
        if is_dir && flags & libc::O_ACCMODE as u32 != 0 {
            return Err(Errno(libc::EISDIR));
        }
        // 9P does not say whether the truncating process may keep set-user-ID.
        let put = |body: &mut Vec<u8>| OpenIn { flags, open_flags: OPEN_KILL_SUIDGID }.put(body);
        let opcode = if is_dir { op::OPENDIR } else { op::OPEN };
        let fh = OpenOut::parse(self.ask(opcode, node, (0, 0), put)?).ok_or(Errno(libc::EIO))?.fh;
        self.fids.set_open(fid, if is_dir { Open::Dir { fh } } else { Open::File { fh, flags } })?;
        self.put_opened(qid);
        Ok(())
    }

    /// LCREATE: the fid of the directory becomes that of the new file.
    pub(super) fn lcreate(&mut self, fields: &mut Fields) -> Result<()> {
        let (fid, name, flags) = (fields.u32()?, fields.name()?, linux_flags(fields.u32()?));
        let (mode, group) = (fields.u32()?, fields.u32()?);
        let dir = self.unopened(fid)?;
        let (node, caller) = (dir.node, (dir.user, group));
        let (made, rest) = self.ask_entry(op::CREATE, node, caller, |body| {
            // The guest's kernel has applied the umask.
            CreateIn { flags, mode, umask: 0, open_flags: OPEN_KILL_SUIDGID }.put(body);
            body.extend_from_slice(name.to_bytes_with_nul());
        })?;
        let fh = OpenOut::parse(&rest).ok_or(Errno(libc::EIO))?.fh;
        let before = self.fids.set_node(fid, made)?;
        self.fids.set_open(fid, Open::File { fh, flags })?;
        self.fs.let_go(before);
        let qid = self.qid(made)?;
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
                let mut body = Vec::with_capacity(ReadIn::SIZE);
                ReadIn { fh: *fh, offset, size, ..Default::default() }.put(&mut body);
                self.fs.read_data(&Request { nodeid: known.node, caller: (0, 0), body: &body }, data)?
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
                let mut body = Vec::with_capacity(WriteIn::SIZE);
                // 9P does not say whether the writer may keep set-user-ID.
                let input = WriteIn {
                    fh: *fh,
                    offset,
                    size: count.min(MAX_WRITE),
                    write_flags: WRITE_KILL_SUIDGID,
                    flags: *flags,
                    ..Default::default()
                };
                input.put(&mut body);
                self.fs.write_data(&Request { nodeid: known.node, caller: (0, 0), body: &body }, data)?
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

    /// READDIR. An entry is never longer than FUSE's entry with the same name, so all entries fit into the requested size.
    pub(super) fn readdir(&mut self, fields: &mut Fields) -> Result<()> {
        let (fid, offset, count) = (fields.u32()?, fields.u64()?, fields.u32()?);
        let size = self.most(count);
        let known = self.fids.get(fid)?;
        let (node, Open::Dir { fh }) = (known.node, &known.open) else { return Err(Errno(libc::EBADF)) };
        let input = ReadIn { fh: *fh, offset, size, ..Default::default() };
        let entries = self.ask(op::READDIR, node, (0, 0), |body| input.put(body))?.to_vec();
        let dir = self.fs.identify(node)?.0;
        let start = self.reply.len();
        self.reply.extend_from_slice(&[0; 4]);
        let mut rest = &entries[..];
        while let Some(entry) = Dirent::parse(rest) {
            let len = entry.namelen as usize;
            let name = rest.get(Dirent::SIZE..Dirent::SIZE + len).ok_or(Errno(libc::EIO))?;
            rest = rest.get(Dirent::SIZE + len.next_multiple_of(8)..).unwrap_or_default();
            let path = self.number_below(dir, entry.ino)?;
            // The types of getdents64(2) are the upper bits of a mode.
            Qid { kind: Qid::kind_of(entry.kind << 12), path }.put(&mut self.reply);
            self.reply.extend_from_slice(&entry.off.to_le_bytes());
            self.reply.push(entry.kind as u8);
            put_bytes(&mut self.reply, name);
        }
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
        let fsync_flags = if data_only { FSYNC_FDATASYNC } else { 0 };
        let input = FsyncIn { fh: *fh, fsync_flags, padding: 0 };
        self.ask(op::FSYNC, node, (0, 0), |body| input.put(body)).map(drop)
    }

    /// LOCK always succeeds: the guest's kernel has already acquired the lock, and only the guest has processes that lock.
    pub(super) fn lock(&mut self, fields: &mut Fields) -> Result<()> {
        self.opened_file(fields.u32()?)?;
        let (_, _) = (fields.u8()?, fields.u32()?);
        let (_, _, _, _) = (fields.u64()?, fields.u64()?, fields.u32()?, fields.bytes()?);
        self.reply.push(wire::LOCK_SUCCESS);
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

    fn opened_file(&self, fid: u32) -> Result<()> {
        let open = matches!(self.fids.get(fid)?.open, Open::File { .. } | Open::Dir { .. });
        if open { Ok(()) } else { Err(Errno(libc::EBADF)) }
    }

    pub(super) fn clunk(&mut self, fields: &mut Fields) -> Result<()> {
        self.close(fields.u32()?)
    }

    /// Removes a fid: closes its open file, or sets the extended attribute that was written to it.
    pub(super) fn close(&mut self, fid: u32) -> Result<()> {
        let Fid { node, open, .. } = self.fids.remove(fid)?;
        let closed = match open {
            Open::No | Open::XattrRead(_) => Ok(()),
            Open::File { fh, .. } | Open::Dir { fh } => {
                let input = ReleaseIn { fh, ..Default::default() };
                self.ask(op::RELEASE, node, (0, 0), |body| input.put(body)).map(drop)
            }
            Open::XattrWrite { size, ref value, .. } if value.len() != size => Err(Errno(libc::EINVAL)),
            // Linux's removexattr(2): an empty value with XATTR_REPLACE.
            Open::XattrWrite { name, size: 0, flags, .. } if flags as i32 & libc::XATTR_REPLACE != 0 => self
                .ask(op::REMOVEXATTR, node, (0, 0), |body| body.extend_from_slice(name.to_bytes_with_nul()))
                .map(drop),
            Open::XattrWrite { name, size, flags, value } => self
                .ask(op::SETXATTR, node, (0, 0), |body| {
                    SetxattrIn { size: size as u32, flags }.put(body);
                    body.extend_from_slice(name.to_bytes_with_nul());
                    body.extend_from_slice(&value);
                })
                .map(drop),
        };
        self.fs.let_go(node);
        closed
    }

    /// XATTRWALK: makes a fid from which the value of an attribute can be read, or without a name the list of names.
    pub(super) fn xattrwalk(&mut self, fields: &mut Fields) -> Result<()> {
        let (fid, new, name) = (fields.u32()?, fields.u32()?, fields.name()?);
        let known = self.fids.get(fid)?;
        let (node, user) = (known.node, known.user);
        self.fids.check_free(new)?;
        let opcode = if name.is_empty() { op::LISTXATTR } else { op::GETXATTR };
        let put = |body: &mut Vec<u8>| {
            GetxattrIn { size: MAX_VALUE as u32, padding: 0 }.put(body);
            body.extend_from_slice(name.to_bytes_with_nul());
        };
        let value = self.ask(opcode, node, (0, 0), put)?.to_vec();
        let len = value.len() as u64;
        self.fs.hold(node)?;
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
        self.fs.check_xattr(node, name.to_bytes())?;
        self.fids.set_open(fid, Open::XattrWrite { name, size, flags, value: Vec::new() })
    }
}

fn linux_flags(flags: u32) -> u32 {
    if flags & DOTL_SYNC != 0 { flags | libc::O_SYNC as u32 } else { flags }
}
