//! Reading directories: OPENDIR, READDIR and READDIRPLUS.

use super::attr::put_entry;
use super::server::{FuseServer, Request};
use super::wire::{
    Attr, Dirent, EntryOut, FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, OpenOut, OutHeader, READDIR_ENDS,
    READDIR_LASTS, ReadIn,
};
use crate::share::attributes::Validity;
use crate::share::dir::Listed;
use crate::share::errno::{Errno, Result};

/// Limit of a reply to READDIR, in bytes. Linux 6.1 requests a page at a time.
const MAX_REPLY: usize = 64 << 10;

impl FuseServer {
    pub(super) fn opendir(&mut self, request: &Request) -> Result<()> {
        let fh = self.share.opendir(request.nodeid)?;
        // The guest is told when the directory changes.
        let lasting = self.share.names_of(request.nodeid) == Validity::Lasting;
        let open_flags = if lasting { FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE } else { 0 };
        OpenOut { fh, open_flags, padding: 0 }.put(&mut self.reply);
        Ok(())
    }

    /// READDIR. With `plus` it is READDIRPLUS, which also looks each entry up.
    pub(super) fn readdir(&mut self, request: &Request, plus: bool) -> Result<()> {
        let input = ReadIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let trailer = if self.readdir_opens { Dirent::SIZE } else { 0 };
        let end = (OutHeader::SIZE + (input.size as usize).min(MAX_REPLY)).saturating_sub(trailer);
        let (reply, submounts) = (&mut self.reply, self.submounts);
        let progress = self.share.readdir(request.file(input.fh), input.offset, |entry| {
            // The lookup of an entry is counted only if the guest gets the entry.
            if reply.len() + entry_len(entry.name, plus) > end {
                return Ok(false);
            }
            if plus {
                match entry.look_up() {
                    Some(found) => put_entry(reply, &found, submounts),
                    None => put_nothing(reply),
                }
            }
            put_dirent(reply, entry);
            Ok(true)
        })?;
        if self.readdir_opens {
            let lasts = self.share.names_of(request.nodeid) == Validity::Lasting;
            let kind = if progress.ended { READDIR_ENDS } else { 0 } | if lasts { READDIR_LASTS } else { 0 };
            Dirent { ino: progress.handle, off: progress.offset, namelen: 0, kind }.put(&mut self.reply);
        }
        Ok(())
    }
}

/// Appends the attributes of an entry without a counted lookup.
fn put_nothing(reply: &mut Vec<u8>) {
    EntryOut::default().put(reply);
    Attr::default().put(reply);
}

fn put_dirent(reply: &mut Vec<u8>, entry: &Listed) {
    let (name, kind) = (entry.name, u32::from(entry.kind));
    Dirent { ino: entry.ino, off: entry.offset, namelen: name.len() as u32, kind }.put(reply);
    reply.extend_from_slice(name);
    let padding = name.len().next_multiple_of(8) - name.len();
    reply.extend_from_slice(&[0; 8][..padding]);
}

/// Length of an entry in the reply, in bytes.
fn entry_len(name: &[u8], plus: bool) -> usize {
    let entry = if plus { EntryOut::SIZE + Attr::SIZE } else { 0 };
    entry + Dirent::SIZE + name.len().next_multiple_of(8)
}
