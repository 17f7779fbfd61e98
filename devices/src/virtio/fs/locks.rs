//! GETLK and SETLK, as the guest's kernel sends them with FUSE_SHARED_LOCKS.

use super::attr::{VALID, attr};
use super::server::{FuseServer, Request};
use super::wire::{AttrOut, LK_FLOCK, LK_MAPPING, LkIn, LkOut};
use crate::share::errno::{Errno, Result};
use crate::share::locks::{LockKind, Lockable, Span};

impl FuseServer {
    pub(super) fn getlk(&mut self, request: &Request) -> Result<()> {
        let input = LkIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let kind = kind(input.kind)?.ok_or(Errno(libc::EINVAL))?;
        if input.lk_flags != 0 {
            return Err(Errno(libc::EINVAL));
        }
        let conflict = self.share.conflict(&lockable(request, &input), kind)?;
        // A process of another machine has no number in the guest.
        let out = match conflict {
            Some((span, kind)) => {
                LkOut { start: span.start, end: span.end, kind: number(Some(kind)), pid: 0 }
            }
            None => LkOut { kind: number(None), ..Default::default() },
        };
        out.put(&mut self.reply);
        Ok(())
    }

    pub(super) fn setlk(&mut self, request: &Request) -> Result<()> {
        let input = LkIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let kind = kind(input.kind)?;
        self.set(request, &input, kind)?;
        if kind.is_some() {
            // The guest has no lock for which it gets an error.
            let seen = self.share.after_lock(request.nodeid);
            let (attributes, changed) =
                seen.or_else(|errno| self.set(request, &input, None).and(Err(errno)))?;
            AttrOut { attr_valid: VALID, dummy: u32::from(changed), ..Default::default() }
                .put(&mut self.reply);
            attr(&attributes).put(&mut self.reply);
        }
        Ok(())
    }

    fn set(&mut self, request: &Request, input: &LkIn, kind: Option<LockKind>) -> Result<()> {
        match (input.lk_flags, kind) {
            (LK_MAPPING, Some(LockKind::Write)) => self.share.map_shared(request.file(input.fh)),
            // The mapping ends with the open file.
            (LK_MAPPING, None) => Ok(()),
            (LK_FLOCK, kind) => self.share.lock_file(request.file(input.fh), kind),
            (0, Some(kind)) => self.share.lock_range(&lockable(request, input), kind),
            (0, None) => self.share.unlock_range(&lockable(request, input)),
            _ => Err(Errno(libc::EINVAL)),
        }
    }
}

fn lockable(request: &Request, input: &LkIn) -> Lockable {
    let span = Span { start: input.start, end: input.end };
    Lockable { file: request.file(input.fh), owner: input.owner, span }
}

/// The kind of a lock from its number in Linux's ABI. `None` unlocks.
fn kind(number: u32) -> Result<Option<LockKind>> {
    match number as i32 {
        libc::F_RDLCK => Ok(Some(LockKind::Read)),
        libc::F_WRLCK => Ok(Some(LockKind::Write)),
        libc::F_UNLCK => Ok(None),
        _ => Err(Errno(libc::EINVAL)),
    }
}

fn number(kind: Option<LockKind>) -> u32 {
    let number = match kind {
        Some(LockKind::Read) => libc::F_RDLCK,
        Some(LockKind::Write) => libc::F_WRLCK,
        None => libc::F_UNLCK,
    };
    number as u32
}
