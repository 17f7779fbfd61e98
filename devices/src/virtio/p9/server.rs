//! The 9P2000.L server: reads one message and writes one reply.
//!
//! The guest is hostile and may send any bytes. A message without a complete header is an error for the queue; every
//! other message gets a reply, which may be an error number. Malformed messages are also counted. Limits: [`MSIZE_MAX`]
//! for a message, [`MAX_BODY`] for the part that is copied, [`super::wire::MAX_WALK`] for names, those of
//! [`super::fids`], and those of [`crate::share`]. Only single components are accepted as names, so `..` is refused,
//! which Linux never sends.

use std::io;

use super::fids::Fids;
use super::numbers::Numbers;
use super::wire::{DATA_HEADER, Fields, HEADER, MALFORMED, Qid, WRITE_HEADER, kind, put_bytes};
use crate::faults::GuestFaults;
use crate::pieces::Pieces;
use crate::share::ShareTree;
use crate::share::errno::{Errno, Result};
use crate::share::file::MAX_WRITE;
use crate::share::operations::{Key, Operations};
use crate::virtio::fs::FileServer;

/// Limit of a message in bytes: the limit of data in a READ or WRITE, plus headers.
pub const MSIZE_MAX: u32 = MAX_WRITE + 4096;
/// Smallest negotiable limit of a message. Linux refuses a server with a smaller one.
const MSIZE_MIN: u32 = 4096;
/// Limit of a message without its data, in bytes. A SYMLINK or WALK has less than 5 KiB.
const MAX_BODY: usize = 16 << 10;
/// The only supported protocol version.
const VERSION: &[u8] = b"9P2000.L";

/// Returns a server of `tree` that speaks 9P2000.L.
pub fn server(tree: &ShareTree) -> Box<dyn FileServer> {
    Box::new(P9Server::new(tree))
}

/// A server of one share tree, for one thread.
pub(super) struct P9Server {
    pub share: Operations,
    pub fids: Fids,
    pub numbers: Numbers,
    /// The negotiated limit of a message, in bytes.
    pub msize: u32,
    /// The reply under construction, header included.
    pub reply: Vec<u8>,
    pub faults: GuestFaults,
    body: Vec<u8>,
}

impl FileServer for P9Server {
    fn handle(&mut self, mut request: Pieces, mut reply: Pieces) -> io::Result<usize> {
        let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text);
        let mut header = [0; HEADER];
        if request.read(&mut header) < HEADER || reply.len() < DATA_HEADER {
            return Err(invalid("too little space for a message's header"));
        }
        let mut fields = Fields(&header);
        let (size, what) = (fields.u32()?, fields.u8()?);
        self.reply.clear();
        self.reply.resize(HEADER, 0);
        let answer = match self.serve(what, size as usize, &mut request, &mut reply) {
            Ok(_) if self.reply.len() > reply.len() => Err(Errno(libc::ERANGE)),
            answer => answer,
        };
        let data = answer.unwrap_or_else(|Errno(error)| {
            if Errno(error) == MALFORMED {
                self.faults.note("fs0", format_args!("message {what} of {size} bytes is malformed"));
            }
            self.reply.truncate(HEADER);
            self.reply.extend_from_slice(&(error as u32).to_le_bytes());
            0
        });
        let len = self.reply.len() + data;
        self.reply[..4].copy_from_slice(&(len as u32).to_le_bytes());
        self.reply[4] = if answer.is_ok() { what + 1 } else { kind::RLERROR };
        self.reply[5..HEADER].copy_from_slice(&header[5..]);
        reply.write(&self.reply);
        Ok(len)
    }
}

impl P9Server {
    pub(super) fn new(tree: &ShareTree) -> P9Server {
        P9Server {
            share: Operations::new(tree),
            fids: Fids::default(),
            numbers: Numbers::default(),
            msize: MSIZE_MIN,
            reply: Vec::new(),
            faults: GuestFaults::default(),
            body: Vec::new(),
        }
    }

    /// Reads the body of a message and executes the message. Returns the number of bytes of data already in guest
    /// memory.
    fn serve(&mut self, what: u8, size: usize, input: &mut Pieces, output: &mut Pieces) -> Result<usize> {
        // Older guests do not include the data in the size of a WRITE.
        let fits = size >= HEADER && size - HEADER <= input.len() && size <= MSIZE_MAX as usize;
        let len = match what {
            kind::WRITE => WRITE_HEADER - HEADER,
            _ => size.saturating_sub(HEADER),
        };
        if !fits || len > input.len() {
            return Err(MALFORMED);
        }
        if len > MAX_BODY {
            return Err(Errno(libc::E2BIG));
        }
        let mut body = std::mem::take(&mut self.body);
        body.resize(len, 0);
        input.read(&mut body);
        let mut fields = Fields(&body);
        let answer = match what {
            kind::READ => self.read(&mut fields, output),
            kind::WRITE => self.write(&mut fields, input).map(|()| 0),
            _ => self.dispatch(what, &mut fields).map(|()| 0),
        };
        self.body = body;
        answer
    }

    /// Executes a message without data.
    fn dispatch(&mut self, what: u8, fields: &mut Fields) -> Result<()> {
        match what {
            kind::VERSION => self.version(fields),
            kind::ATTACH => self.attach(fields),
            kind::WALK => self.walk(fields),
            kind::CLUNK => self.clunk(fields),
            kind::LOPEN => self.lopen(fields),
            kind::LCREATE => self.lcreate(fields),
            kind::READDIR => self.readdir(fields),
            kind::FSYNC => self.fsync(fields),
            kind::LOCK => self.lock(fields),
            kind::GETLOCK => self.getlock(fields),
            kind::GETATTR => self.getattr(fields),
            kind::SETATTR => self.setattr(fields),
            kind::STATFS => self.statfs(fields),
            kind::XATTRWALK => self.xattrwalk(fields),
            kind::XATTRCREATE => self.xattrcreate(fields),
            kind::MKDIR => self.mkdir(fields),
            kind::MKNOD => self.mknod(fields),
            kind::SYMLINK => self.symlink(fields),
            kind::READLINK => self.readlink(fields),
            kind::LINK => self.link(fields),
            kind::RENAME => self.rename(fields),
            kind::RENAMEAT => self.renameat(fields),
            kind::UNLINKAT => self.unlinkat(fields),
            kind::REMOVE => self.remove(fields),
            // No request of the server waits long, so the message to flush has already been answered.
            kind::FLUSH => fields.u16().map(drop),
            // Only the guest can use the queue, so there is nothing to authenticate.
            kind::AUTH => Err(Errno(libc::EOPNOTSUPP)),
            _ => Err(Errno(libc::EOPNOTSUPP)),
        }
    }

    /// Starts a new session and drops the state of the previous one.
    fn version(&mut self, fields: &mut Fields) -> Result<()> {
        let (msize, version) = (fields.u32()?, fields.bytes()?);
        if msize < MSIZE_MIN {
            return Err(Errno(libc::EMSGSIZE));
        }
        self.fids.clear();
        self.share.clear();
        self.msize = msize.min(MSIZE_MAX);
        self.reply.extend_from_slice(&self.msize.to_le_bytes());
        put_bytes(&mut self.reply, if version == VERSION { VERSION } else { b"unknown" });
        Ok(())
    }

    /// Returns the qid of a node.
    pub(super) fn qid(&mut self, node: u64) -> Result<Qid> {
        let (key, mode) = self.share.identify(node)?;
        let path = match key {
            Key::Virtual(number) => Numbers::of_virtual(number),
            Key::Host(key) => self.numbers.of_host(key)?,
        };
        Ok(Qid { kind: Qid::kind_of(mode), path })
    }
}

#[cfg(test)]
mod tests;
