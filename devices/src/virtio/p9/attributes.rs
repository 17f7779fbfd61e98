//! Attributes of files and of file systems: GETATTR, SETATTR and STATFS.

use super::fids::Open;
use super::server::P9Server;
use super::wire::{self, Fields};
use crate::share::attributes::{Change, NewTime, Time};
use crate::share::errno::Result;

impl P9Server {
    pub(super) fn getattr(&mut self, fields: &mut Fields) -> Result<()> {
        let (fid, _) = (fields.u32()?, fields.u64()?);
        let node = self.fids.get(fid)?.node;
        let attr = self.share.getattr(node)?;
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
            attr.atime.seconds,
            attr.atime.nanoseconds.into(),
            attr.mtime.seconds,
            attr.mtime.nanoseconds.into(),
            attr.ctime.seconds,
            attr.ctime.nanoseconds.into(),
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
        let has = |flag| theirs & flag != 0;
        let time = |given, seconds, nanoseconds| match has(given) {
            true => NewTime::At(Time { seconds, nanoseconds }),
            false => NewTime::Now,
        };
        let change = Change {
            mode: has(wire::set::MODE).then_some(mode),
            uid: has(wire::set::UID).then_some(uid),
            gid: has(wire::set::GID).then_some(gid),
            size: has(wire::set::SIZE).then_some(size),
            // ftruncate(2) on a file that is open for writing must not need permission to open the file again.
            handle: match known.open {
                Open::File { fh, flags } if flags & libc::O_ACCMODE as u32 != 0 => Some(fh),
                _ => None,
            },
            // 9P does not say whether the truncating process may keep set-user-ID.
            kill_setid: true,
            atime: has(wire::set::ATIME).then(|| time(wire::set::ATIME_SET, atime, atimensec)),
            mtime: has(wire::set::MTIME).then(|| time(wire::set::MTIME_SET, mtime, mtimensec)),
        };
        self.share.setattr(known.node, &change).map(drop)
    }

    pub(super) fn statfs(&mut self, fields: &mut Fields) -> Result<()> {
        let node = self.fids.get(fields.u32()?)?.node;
        let usage = self.share.statfs(node)?;
        self.reply.extend_from_slice(&wire::STATFS_TYPE.to_le_bytes());
        self.reply.extend_from_slice(&usage.bsize.to_le_bytes());
        // The last number is the file system's ID, which is not used.
        for number in [usage.blocks, usage.bfree, usage.bavail, usage.files, usage.ffree, 0] {
            self.reply.extend_from_slice(&number.to_le_bytes());
        }
        self.reply.extend_from_slice(&usage.namelen.to_le_bytes());
        Ok(())
    }
}

/// Converts a number of nanoseconds. One that is too large stays invalid.
fn nanoseconds(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
