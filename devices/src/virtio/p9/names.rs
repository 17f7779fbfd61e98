//! Directory entries: walk, creation, rename, link and removal.

use std::ffi::{CStr, CString};

use super::fids::Open;
use super::server::P9Server;
use super::wire::{Fields, MALFORMED, MAX_WALK, NO_FID, Qid};
use crate::share::ROOT_ID;
use crate::share::attributes::Entry;
use crate::share::entry::Rename;
use crate::share::errno::{Errno, Result};
use crate::share::names::Name;
use crate::share::operations::{Caller, NewFile};

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
                self.share.let_go(before);
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
        self.share.hold(start)?;
        let (mut node, mut qids) = (start, Vec::new());
        for name in names {
            let next = self.look_up(node, name);
            self.share.let_go(node);
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
        let node = self.share.lookup(dir, Name::new(name)?)?.node;
        let qid = self.qid(node).inspect_err(|_| self.share.let_go(node))?;
        Ok((node, qid))
    }

    pub(super) fn mkdir(&mut self, fields: &mut Fields) -> Result<()> {
        let (dir, name, mode) = (fields.u32()?, fields.name()?, fields.u32()?);
        let (node, caller) = self.creator(dir, fields.u32()?)?;
        let made = self.share.mkdir(node, Name::new(&name)?, &new_file(caller, mode))?;
        self.put_made(&made)
    }

    pub(super) fn mknod(&mut self, fields: &mut Fields) -> Result<()> {
        let (dir, name, mode) = (fields.u32()?, fields.name()?, fields.u32()?);
        let (major, minor, group) = (fields.u32()?, fields.u32()?, fields.u32()?);
        if major >= 1 << 12 || minor >= 1 << 20 {
            return Err(Errno(libc::EINVAL));
        }
        let rdev = minor & 0xff | major << 8 | (minor & !0xff) << 12;
        let (node, caller) = self.creator(dir, group)?;
        let made = self.share.mknod(node, Name::new(&name)?, &new_file(caller, mode), rdev)?;
        self.put_made(&made)
    }

    pub(super) fn symlink(&mut self, fields: &mut Fields) -> Result<()> {
        let (dir, name) = (fields.u32()?, fields.name()?);
        let (target, group) = (fields.string()?, fields.u32()?);
        let (node, caller) = self.creator(dir, group)?;
        let made = self.share.symlink(node, Name::new(&name)?, &target, caller)?;
        self.put_made(&made)
    }

    /// Returns the node of a directory's fid, and the fid's user with a group, to which a new file belongs.
    fn creator(&self, dir: u32, group: u32) -> Result<(u64, Caller)> {
        let dir = self.fids.get(dir)?;
        Ok((dir.node, Caller { uid: dir.user, gid: group }))
    }

    /// Replies with the qid of a new entry, and takes its lookup back.
    fn put_made(&mut self, made: &Entry) -> Result<()> {
        let qid = self.qid(made.node);
        self.share.let_go(made.node);
        qid?.put(&mut self.reply);
        Ok(())
    }

    pub(super) fn readlink(&mut self, fields: &mut Fields) -> Result<()> {
        let node = self.fids.get(fields.u32()?)?.node;
        let start = self.reply.len();
        self.reply.extend_from_slice(&[0; 2]);
        self.share.readlink(node, &mut self.reply)?;
        let len = (self.reply.len() - start - 2) as u16;
        self.reply[start..start + 2].copy_from_slice(&len.to_le_bytes());
        Ok(())
    }

    pub(super) fn link(&mut self, fields: &mut Fields) -> Result<()> {
        let (dir, file, name) = (fields.u32()?, fields.u32()?, fields.name()?);
        let (dir, file) = (self.fids.get(dir)?.node, self.fids.get(file)?.node);
        let linked = self.share.link(file, dir, Name::new(&name)?)?;
        self.share.let_go(linked.node);
        Ok(())
    }

    /// RENAME, from guests that do not know RENAMEAT: it identifies the file, but not the directory and name to change.
    pub(super) fn rename(&mut self, fields: &mut Fields) -> Result<()> {
        let (file, dir, name) = (fields.u32()?, fields.u32()?, fields.name()?);
        let (file, to) = (self.fids.get(file)?.node, self.fids.get(dir)?.node);
        let (from, old) = self.share.location(file)?;
        self.rename_names((from, &old), (to, &name))
    }

    pub(super) fn renameat(&mut self, fields: &mut Fields) -> Result<()> {
        let (from, old) = (fields.u32()?, fields.name()?);
        let (to, new) = (fields.u32()?, fields.name()?);
        let (from, to) = (self.fids.get(from)?.node, self.fids.get(to)?.node);
        self.rename_names((from, &old), (to, &new))
    }

    fn rename_names(&mut self, from: (u64, &CStr), to: (u64, &CStr)) -> Result<()> {
        let (old, new) = (Name::new(from.1)?, Name::new(to.1)?);
        self.share.rename(&Rename { from: from.0, old, to: to.0, new, flags: 0, caller: Caller::ROOT })
    }

    pub(super) fn unlinkat(&mut self, fields: &mut Fields) -> Result<()> {
        let (dir, name, flags) = (fields.u32()?, fields.name()?, fields.u32()?);
        let dir = self.fids.get(dir)?.node;
        match flags as i32 {
            0 => self.share.unlink(dir, Name::new(&name)?),
            libc::AT_REMOVEDIR => self.share.rmdir(dir, Name::new(&name)?),
            _ => Err(Errno(libc::EINVAL)),
        }
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
        let (dir, name) = self.share.location(node)?;
        let is_dir = self.share.identify(node)?.1 == libc::S_IFDIR;
        let name = Name::new(&name)?;
        if is_dir { self.share.rmdir(dir, name) } else { self.share.unlink(dir, name) }
    }
}

/// The guest's kernel has applied the umask.
fn new_file(caller: Caller, mode: u32) -> NewFile {
    NewFile { caller, mode, umask: 0 }
}
