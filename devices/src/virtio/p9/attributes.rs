//! Attributes of files and of file systems: GETATTR, SETATTR and STATFS.

use super::fids::Open;
use super::numbers::Numbers;
use super::server::P9Server;
use super::wire::{self, Fields};
use crate::share::errno::{Errno, Result};
use crate::virtio::fs::operations::Key;
use crate::virtio::fs::wire::{Attr, AttrOut, GetattrIn, SetattrIn, StatfsOut, op, set};

impl P9Server {
    /// Returns the guest's number for a directory entry with inode number `number`. It assumes the directory's device,
    /// which is wrong only for mount points.
    pub(super) fn number_below(&mut self, dir: Key, number: u64) -> Result<u64> {
        match dir {
            Key::Virtual(_) => Ok(Numbers::of_virtual(number)),
            Key::Host((device, _)) => self.numbers.of_host((device, number)),
        }
    }

    pub(super) fn getattr(&mut self, fields: &mut Fields) -> Result<()> {
        let (fid, _) = (fields.u32()?, fields.u64()?);
        let node = self.fids.get(fid)?.node;
        let reply = self.ask(op::GETATTR, node, (0, 0), |body| GetattrIn::default().put(body))?;
        let attr = reply.get(AttrOut::SIZE..).and_then(Attr::parse).ok_or(Errno(libc::EIO))?;
        let qid = self.qid(node)?;
        self.reply.extend_from_slice(&wire::STATS_BASIC.to_le_bytes());
        qid.put(&mut self.reply);
        for word in [attr.mode, attr.uid, attr.gid] {
            self.reply.extend_from_slice(&word.to_le_bytes());
        }
        let numbers = [
            attr.nlink.into(),
            attr.rdev.into(),
            attr.size,
            attr.blksize.into(),
            attr.blocks,
            attr.atime,
            attr.atimensec.into(),
            attr.mtime,
            attr.mtimensec.into(),
            attr.ctime,
            attr.ctimensec.into(),
            // No birth time (seconds and nanoseconds), generation and data version.
            0,
            0,
            0,
            0,
        ];
        for number in numbers {
            self.reply.extend_from_slice(&u64::to_le_bytes(number));
        }
        Ok(())
    }

    pub(super) fn setattr(&mut self, fields: &mut Fields) -> Result<()> {
        let (fid, theirs) = (fields.u32()?, fields.u32()?);
        let (mode, uid, gid) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let size = fields.u64()?;
        let (atime, atimensec) = (fields.u64()?, nanoseconds(fields.u64()?));
        let (mtime, mtimensec) = (fields.u64()?, nanoseconds(fields.u64()?));
        let known = self.fids.get(fid)?;
        let mut valid = set::KILL_SUIDGID;
        for (from, to) in [
            (wire::set::MODE, set::MODE),
            (wire::set::UID, set::UID),
            (wire::set::GID, set::GID),
            (wire::set::SIZE, set::SIZE),
            (wire::set::ATIME, set::ATIME),
            (wire::set::MTIME, set::MTIME),
        ] {
            valid |= if theirs & from != 0 { to } else { 0 };
        }
        valid |= if theirs & wire::set::ATIME_SET == 0 { set::ATIME_NOW } else { 0 };
        valid |= if theirs & wire::set::MTIME_SET == 0 { set::MTIME_NOW } else { 0 };
        let mut input = SetattrIn {
            valid,
            size,
            atime,
            mtime,
            atimensec,
            mtimensec,
            mode,
            uid,
            gid,
            ..SetattrIn::default()
        };
        // ftruncate(2) on a file that is open for writing must not need permission to open the file again.
        if let Open::File { fh, flags } = known.open
            && flags & libc::O_ACCMODE as u32 != 0
        {
            input.valid |= set::FH;
            input.fh = fh;
        }
        let node = known.node;
        self.ask(op::SETATTR, node, (0, 0), |body| input.put(body)).map(drop)
    }

    pub(super) fn statfs(&mut self, fields: &mut Fields) -> Result<()> {
        let node = self.fids.get(fields.u32()?)?.node;
        let out = StatfsOut::parse(self.ask(op::STATFS, node, (0, 0), |_| ())?).ok_or(Errno(libc::EIO))?;
        self.reply.extend_from_slice(&wire::STATFS_TYPE.to_le_bytes());
        self.reply.extend_from_slice(&out.bsize.to_le_bytes());
        // The last number is the file system's ID, which is not used.
        for number in [out.blocks, out.bfree, out.bavail, out.files, out.ffree, 0] {
            self.reply.extend_from_slice(&number.to_le_bytes());
        }
        self.reply.extend_from_slice(&out.namelen.to_le_bytes());
        Ok(())
    }
}

/// Converts a number of nanoseconds. One that is too large stays invalid.
fn nanoseconds(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
