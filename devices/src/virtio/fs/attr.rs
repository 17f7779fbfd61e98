//! GETATTR, SETATTR and STATFS, and the encoding of attributes.

use super::server::{FuseServer, Request};
use super::wire::{
    ATTR_EMPTY, ATTR_FIFO, ATTR_NO_ACL, ATTR_OWNED, ATTR_SUBMOUNT, Attr, AttrOut, EntryOut, SetattrIn,
    StatfsOut, set,
};
use crate::share::attributes::{Attributes, Change, Entry, NewTime, Time, Validity};
use crate::share::errno::{Errno, Result};
use crate::share::watch::LASTING;

/// Seconds for which the guest may cache names (also missing ones) and attributes of which it is not told when the host
/// changes them. The guest sees such a change after at most this time.
pub const VALID: u64 = 1;

/// Returns for how many seconds something is valid. `lasting`: the guest is told when it changes.
pub(super) fn valid(lasting: bool) -> u64 {
    if lasting { LASTING } else { VALID }
}

impl FuseServer {
    pub(super) fn put_attr(&mut self, attributes: &Attributes) {
        AttrOut { attr_valid: valid(attributes.lasting), ..Default::default() }.put(&mut self.reply);
        attr(attributes).put(&mut self.reply);
    }

    /// Replies with a node whose lookup has been counted.
    pub(super) fn put_entry(&mut self, entry: &Entry) {
        put_entry(&mut self.reply, entry, self.submounts);
    }

    pub(super) fn getattr(&mut self, request: &Request) -> Result<()> {
        let attributes = self.share.getattr(request.nodeid)?;
        self.put_attr(&attributes);
        Ok(())
    }

    pub(super) fn setattr(&mut self, request: &Request) -> Result<()> {
        let input = SetattrIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let attributes = self.share.setattr(request.nodeid, &change(&input))?;
        self.put_attr(&attributes);
        Ok(())
    }

    pub(super) fn statfs(&mut self, request: &Request) -> Result<()> {
        let usage = self.share.statfs(request.nodeid)?;
        let out = StatfsOut {
            blocks: usage.blocks,
            bfree: usage.bfree,
            bavail: usage.bavail,
            files: usage.files,
            ffree: usage.ffree,
            bsize: usage.bsize,
            namelen: usage.namelen,
            frsize: usage.frsize,
        };
        out.put(&mut self.reply);
        self.reply.extend_from_slice(&[0; 28]);
        Ok(())
    }
}

/// Appends an entry. `submounts`: the guest supports FUSE_SUBMOUNTS.
pub(super) fn put_entry(reply: &mut Vec<u8>, entry: &Entry, submounts: bool) {
    let mut attr = attr(&entry.attributes);
    if submounts && entry.submount {
        attr.flags |= ATTR_SUBMOUNT;
    }
    put_node(reply, entry.node, &attr, (seconds(entry.name), valid(entry.attributes.lasting)));
}

/// Appends an entry for a missing name.
pub(super) fn put_missing(reply: &mut Vec<u8>, name: Validity) {
    put_node(reply, 0, &Attr::default(), (seconds(name), 0));
}

fn seconds(name: Validity) -> u64 {
    match name {
        Validity::Once => 0,
        Validity::Brief => VALID,
        Validity::Lasting => LASTING,
    }
}

fn put_node(reply: &mut Vec<u8>, nodeid: u64, attr: &Attr, (entry_valid, attr_valid): (u64, u64)) {
    EntryOut { nodeid, entry_valid, attr_valid, ..Default::default() }.put(reply);
    attr.put(reply);
}

pub(super) fn attr(attributes: &Attributes) -> Attr {
    Attr {
        ino: attributes.ino,
        size: attributes.size,
        blocks: attributes.blocks,
        atime: attributes.atime.seconds,
        mtime: attributes.mtime.seconds,
        ctime: attributes.ctime.seconds,
        atimensec: attributes.atime.nanoseconds,
        mtimensec: attributes.mtime.nanoseconds,
        ctimensec: attributes.ctime.nanoseconds,
        mode: attributes.mode,
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: attributes.rdev,
        blksize: attributes.blksize,
        flags: if attributes.owned { ATTR_OWNED } else { 0 }
            | if attributes.shared { ATTR_FIFO } else { 0 }
            | if attributes.no_acl { ATTR_NO_ACL } else { 0 }
            | if attributes.empty { ATTR_EMPTY } else { 0 },
    }
}

fn change(input: &SetattrIn) -> Change {
    let has = |flag| input.valid & flag != 0;
    let time = |now, seconds, nanoseconds| match has(now) {
        true => NewTime::Now,
        false => NewTime::At(Time { seconds, nanoseconds }),
    };
    Change {
        mode: has(set::MODE).then_some(input.mode),
        uid: has(set::UID).then_some(input.uid),
        gid: has(set::GID).then_some(input.gid),
        size: has(set::SIZE).then_some(input.size),
        handle: has(set::FH).then_some(input.fh),
        kill_setid: has(set::KILL_SUIDGID),
        atime: has(set::ATIME).then(|| time(set::ATIME_NOW, input.atime, input.atimensec)),
        mtime: has(set::MTIME).then(|| time(set::MTIME_NOW, input.mtime, input.mtimensec)),
    }
}
