//! Requests about directory entries: lookup, creation, rename, link and removal.

use super::attr::put_missing;
use super::server::{FuseServer, Request, take_name, take_string};
use super::wire::{BatchForgetIn, ForgetIn, ForgetOne, LinkIn, MkdirIn, MknodIn, Rename2In, RenameIn, op};
use crate::share::entry::Rename;
use crate::share::errno::{Errno, Result};

impl FuseServer {
    pub(super) fn lookup(&mut self, request: &Request) -> Result<()> {
        let name = take_name(&mut { request.body })?;
        match self.share.lookup(request.nodeid, name) {
            Ok(entry) => self.put_entry(&entry),
            Err(Errno(libc::ENOENT)) => {
                let name = self.share.names_of(request.nodeid);
                put_missing(&mut self.reply, name);
            }
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    pub(super) fn forget(&mut self, opcode: u32, request: &Request) {
        if opcode == op::FORGET {
            if let Some(one) = ForgetIn::parse(request.body) {
                self.share.forget([(request.nodeid, one.nlookup)]);
            }
            return;
        }
        let Some(batch) = BatchForgetIn::parse(request.body) else { return };
        let entries = request.body[BatchForgetIn::SIZE..].chunks_exact(ForgetOne::SIZE);
        let entries = entries.take(batch.count as usize).filter_map(ForgetOne::parse);
        self.share.forget(entries.map(|one| (one.nodeid, one.nlookup)));
    }

    pub(super) fn mkdir(&mut self, request: &Request) -> Result<()> {
        let input = MkdirIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let name = take_name(&mut &request.body[MkdirIn::SIZE..])?;
        let entry = self.share.mkdir(request.nodeid, name, &request.new_file(input.mode, input.umask))?;
        self.put_entry(&entry);
        Ok(())
    }

    pub(super) fn mknod(&mut self, request: &Request) -> Result<()> {
        let input = MknodIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let name = take_name(&mut &request.body[MknodIn::SIZE..])?;
        let new = request.new_file(input.mode, input.umask);
        let entry = self.share.mknod(request.nodeid, name, &new, input.rdev)?;
        self.put_entry(&entry);
        Ok(())
    }

    pub(super) fn symlink(&mut self, request: &Request) -> Result<()> {
        let mut body = request.body;
        let name = take_name(&mut body)?;
        let target = take_string(&mut body)?;
        let entry = self.share.symlink(request.nodeid, name, target, request.caller)?;
        self.put_entry(&entry);
        Ok(())
    }

    pub(super) fn readlink(&mut self, request: &Request) -> Result<()> {
        self.share.readlink(request.nodeid, &mut self.reply)
    }

    pub(super) fn unlink(&mut self, request: &Request) -> Result<()> {
        self.share.unlink(request.nodeid, take_name(&mut { request.body })?)
    }

    pub(super) fn rmdir(&mut self, request: &Request) -> Result<()> {
        self.share.rmdir(request.nodeid, take_name(&mut { request.body })?)
    }

    pub(super) fn rename(&mut self, request: &Request) -> Result<()> {
        let input = RenameIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        self.rename_to(request, input.newdir, 0, &request.body[RenameIn::SIZE..])
    }

    pub(super) fn rename2(&mut self, request: &Request) -> Result<()> {
        let input = Rename2In::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        self.rename_to(request, input.newdir, input.flags, &request.body[Rename2In::SIZE..])
    }

    fn rename_to(&mut self, request: &Request, to: u64, flags: u32, mut names: &[u8]) -> Result<()> {
        let old = take_name(&mut names)?;
        let new = take_name(&mut names)?;
        self.share.rename(&Rename { from: request.nodeid, old, to, new, flags, caller: request.caller })
    }

    pub(super) fn link(&mut self, request: &Request) -> Result<()> {
        let input = LinkIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let name = take_name(&mut &request.body[LinkIn::SIZE..])?;
        let entry = self.share.link(input.oldnodeid, request.nodeid, name)?;
        self.put_entry(&entry);
        Ok(())
    }
}
