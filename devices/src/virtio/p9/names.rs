//! Directory entries: walk, creation, rename, link and removal.

use std::ffi::{CStr, CString};

use super::fids::Open;
use super::server::P9Server;
use super::wire::{Fields, MALFORMED, MAX_WALK, NO_FID, Qid, put_bytes};
use crate::share::errno::{Errno, Result};
use crate::share::tree::ROOT_ID;
use crate::virtio::fs::wire::{LinkIn, MkdirIn, MknodIn, Rename2In, op};

/// User of a guest that attaches without a user ID.
const NOBODY: u32 = 65534;

impl P9Server {
    pub(super) fn attach(&mut self, fields: &mut Fields) -> Result<()> {
        let (fid, auth) = (fields.u32()?, fields.u32()?);
        let (_, tree, user) = (fields.bytes()?, fields.bytes()?, fields.u32()?);
        if auth != NO_FID {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        if !matches!(tree, b"" | b"/") {
            return Err(Errno(libc::ENOENT));
        }
        self.fids.check_free(fid)?;
        let qid = self.qid(ROOT_ID)?;
        self.fids.insert(fid, ROOT_ID, if user == u32::MAX { NOBODY } else { user });
        qid.put(&mut self.reply);
        Ok(())
    }

    pub(super) fn walk(&mut self, fields: &mut Fields) -> Result<()> {
        let (fid, new, count) = (fields.u32()?, fields.u32()?, fields.u16()?);
        if count > MAX_WALK {
            return Err(MALFORMED);
        }
        let names = (0..count).map(|_| fields.name()).collect::<Result<Vec<_>>>()?;
        let known = self.fids.get(fid)?;
        let (start, user) = (known.node, known.user);
        let in_use = !matches!(known.open, Open::No);
        match (&known.open, new == fid) {
            (Open::XattrRead(_) | Open::XattrWrite { .. }, _) => return Err(Errno(libc::EBADF)),
            (_, true) if in_use => return Err(Errno(libc::EBADF)),
            (_, true) => {}
            (_, false) => self.fids.check_free(new)?,
        }
        let (node, qids) = self.walk_names(start, &names)?;
        if let Some(node) = node {
            if new == fid {
                let before = self.fids.set_node(fid, node)?;
                self.fs.let_go(before);
            } else {
                self.fids.insert(new, node, user);
            }
        }
        self.reply.extend_from_slice(&(qids.len() as u16).to_le_bytes());
        qids.into_iter().for_each(|qid| qid.put(&mut self.reply));
        Ok(())
    }

    /// Looks up a path of names from `start`. Returns the last node, with its lookup counted, and the qids of all names
    /// found. The node is `None` if a name was not found; if that was the first name, the result is an error.
    fn walk_names(&mut self, start: u64, names: &[CString]) -> Result<(Option<u64>, Vec<Qid>)> {
        self.fs.hold(start)?;
        let (mut node, mut qids) = (start, Vec::new());
        for name in names {
            let next = self.look_up(node, name);
            self.fs.let_go(node);
            match next {
                Ok((next, qid)) => {
                    node = next;
                    qids.push(qid);
                }
                Err(errno) if qids.is_empty() => return Err(errno),
                Err(_) => return Ok((None, qids)),
            }
        }
        Ok((Some(node), qids))
    }

    fn look_up(&mut self, dir: u64, name: &CStr) -> Result<(u64, Qid)> {
        let put = |body: &mut Vec<u8>| body.extend_from_slice(name.to_bytes_with_nul());
        let (node, _) = self.ask_entry(op::LOOKUP, dir, (0, 0), put)?;
        let qid = self.qid(node).inspect_err(|_| self.fs.let_go(node))?;
        Ok((node, qid))
    }

    pub(super) fn mkdir(&mut self, fields: &mut Fields) -> Result<()> {
        let (dir, name, mode) = (fields.u32()?, fields.name()?, fields.u32()?);
        let group = fields.u32()?;
        self.make(op::MKDIR, (dir, group), |body| {
            // The guest's kernel has applied the umask.
            MkdirIn { mode, umask: 0 }.put(body);
            body.extend_from_slice(name.to_bytes_with_nul());
        })
    }

    pub(super) fn mknod(&mut self, fields: &mut Fields) -> Result<()> {
        let (dir, name, mode) = (fields.u32()?, fields.name()?, fields.u32()?);
        let (major, minor, group) = (fields.u32()?, fields.u32()?, fields.u32()?);
        if major >= 1 << 12 || minor >= 1 << 20 {
            return Err(Errno(libc::EINVAL));
        }
        let rdev = minor & 0xff | major << 8 | (minor & !0xff) << 12;
        self.make(op::MKNOD, (dir, group), |body| {
            MknodIn { mode, rdev, umask: 0, padding: 0 }.put(body);
            body.extend_from_slice(name.to_bytes_with_nul());
        })
    }

    pub(super) fn symlink(&mut self, fields: &mut Fields) -> Result<()> {
        let (dir, name) = (fields.u32()?, fields.name()?);
        let (target, group) = (fields.string()?, fields.u32()?);
        self.make(op::SYMLINK, (dir, group), |body| {
            body.extend_from_slice(name.to_bytes_with_nul());
            body.extend_from_slice(target.to_bytes_with_nul());
        })
    }

    /// Creates an entry in a directory for the fid's user and a group, and replies with its qid.
    fn make(&mut self, opcode: u32, (dir, group): (u32, u32), put: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let dir = self.fids.get(dir)?;
        let (node, caller) = (dir.node, (dir.user, group));
        let (made, _) = self.ask_entry(opcode, node, caller, put)?;
        let qid = self.qid(made);
        self.fs.let_go(made);
        qid?.put(&mut self.reply);
        Ok(())
    }

    pub(super) fn readlink(&mut self, fields: &mut Fields) -> Result<()> {
        let node = self.fids.get(fields.u32()?)?.node;
        let target = self.ask(op::READLINK, node, (0, 0), |_| ())?.to_vec();
        put_bytes(&mut self.reply, &target);
        Ok(())
    }

    pub(super) fn link(&mut self, fields: &mut Fields) -> Result<()> {
        let (dir, file, name) = (fields.u32()?, fields.u32()?, fields.name()?);
        let (dir, oldnodeid) = (self.fids.get(dir)?.node, self.fids.get(file)?.node);
        let (linked, _) = self.ask_entry(op::LINK, dir, (0, 0), |body| {
            LinkIn { oldnodeid }.put(body);
            body.extend_from_slice(name.to_bytes_with_nul());
        })?;
        self.fs.let_go(linked);
        Ok(())
    }

    /// RENAME, from guests that do not know RENAMEAT: it identifies the file, but not the directory and name to change.
    pub(super) fn rename(&mut self, fields: &mut Fields) -> Result<()> {
        let (file, dir, name) = (fields.u32()?, fields.u32()?, fields.name()?);
        let (file, to) = (self.fids.get(file)?.node, self.fids.get(dir)?.node);
        let (from, old) = self.fs.place(file)?;
        self.rename_names((from, &old), (to, &name))
    }

    pub(super) fn renameat(&mut self, fields: &mut Fields) -> Result<()> {
        let (from, old) = (fields.u32()?, fields.name()?);
        let (to, new) = (fields.u32()?, fields.name()?);
        let (from, to) = (self.fids.get(from)?.node, self.fids.get(to)?.node);
        self.rename_names((from, &old), (to, &new))
    }

    fn rename_names(&mut self, from: (u64, &CStr), to: (u64, &CStr)) -> Result<()> {
        let put = |body: &mut Vec<u8>| {
            Rename2In { newdir: to.0, flags: 0, padding: 0 }.put(body);
            body.extend_from_slice(from.1.to_bytes_with_nul());
            body.extend_from_slice(to.1.to_bytes_with_nul());
        };
        self.ask(op::RENAME2, from.0, (0, 0), put).map(drop)
    }

    pub(super) fn unlinkat(&mut self, fields: &mut Fields) -> Result<()> {
        let (dir, name, flags) = (fields.u32()?, fields.name()?, fields.u32()?);
        let dir = self.fids.get(dir)?.node;
        match flags as i32 {
            0 => self.unlink(op::UNLINK, dir, &name),
            libc::AT_REMOVEDIR => self.unlink(op::RMDIR, dir, &name),
            _ => Err(Errno(libc::EINVAL)),
        }
    }

    fn unlink(&mut self, opcode: u32, dir: u64, name: &CStr) -> Result<()> {
        let put = |body: &mut Vec<u8>| body.extend_from_slice(name.to_bytes_with_nul());
        self.ask(opcode, dir, (0, 0), put).map(drop)
    }

    /// REMOVE, from guests that do not know UNLINKAT. The fid is removed even if the file cannot be.
    pub(super) fn remove(&mut self, fields: &mut Fields) -> Result<()> {
        let fid = fields.u32()?;
        let node = self.fids.get(fid)?.node;
        let removed = self.remove_node(node);
        self.close(fid)?;
        removed
    }

    fn remove_node(&mut self, node: u64) -> Result<()> {
        let (dir, name) = self.fs.place(node)?;
        let is_dir = self.fs.identify(node)?.1 == libc::S_IFDIR;
        self.unlink(if is_dir { op::RMDIR } else { op::UNLINK }, dir, &name)
    }
}
