//! The FUSE server: reads one request and writes one reply.
//!
//! The guest is hostile and may send any bytes. A request that is shorter than its header says is an error for the
//! queue; every other request gets a reply, which may be an error number. Limits: [`MAX_BODY`] for the part of a
//! request that is copied, [`MAX_WRITE`] for data, [`crate::share::xattr::MAX_VALUE`], and those of [`crate::share`].
//! The server only parses requests and encodes replies; [`Operations`] execute them.

use std::ffi::CStr;
use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use super::FileServer;
use super::wire::{self, InHeader, InitIn, InitInExt, InitOut, NotifyChangedOut, OutHeader, init, op};
use crate::pieces::Pieces;
use crate::share::ShareTree;
use crate::share::errno::{Errno, Result};
use crate::share::file::MAX_WRITE;
use crate::share::names::Name;
use crate::share::operations::{Caller, NewFile, OpenFile, Operations};
use crate::share::watch::{Concerns, Notice};
use crate::{Decoder, Encoder, StateError};

/// Limit of a request without its data, in bytes: an extended attribute of 64 KiB and its name.
pub const MAX_BODY: usize = (64 << 10) + 4096;
/// Limit of outstanding background requests of the guest, such as readahead.
const MAX_BACKGROUND: u16 = 64;

/// The features that the server supports (FUSE_INIT).
///
/// It does not support WRITEBACK_CACHE (the guest would use its own idea of size and times, and lose the host's changes
/// to an open file); POSIX_LOCKS and FLOCK_LOCKS (they would cost a request for each close, and a request that waits for
/// each waiting process: SHARED_LOCKS takes their place, and a kernel without it keeps its locks to itself).
const FEATURES: u64 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::DONT_MASK
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::POSIX_ACL
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::SUBMOUNTS
    | init::HANDLE_KILLPRIV_V2
    | init::SETXATTR_EXT
    | init::INIT_EXT
    | init::WRITE_ATTR
    | init::READDIR_OPENS
    | init::UNOPENED
    | init::QUIET_RELEASE
    | init::WATCHED
    | init::SHARED_LOCKS;

/// One request without its data.
pub struct Request<'a> {
    /// Number of the inode.
    pub nodeid: u64,
    /// The calling process in the guest.
    pub caller: Caller,
    /// The bytes after the header.
    pub body: &'a [u8],
}

impl Request<'_> {
    /// The open file with number `fh` of the request's inode.
    pub fn file(&self, fh: u64) -> OpenFile {
        OpenFile { node: self.nodeid, handle: fh }
    }

    /// Owner and mode of a file that the request creates.
    pub fn new_file(&self, mode: u32, umask: u32) -> NewFile {
        NewFile { caller: self.caller, mode, umask }
    }
}

/// The kind of reply to a request.
enum Answer {
    /// The body of the reply is in the reply buffer.
    Reply,
    /// This number of bytes of data is already in guest memory, after the space for the header.
    Data(usize),
    /// The request has no reply.
    Nothing,
}

/// A server of one share tree, for one thread.
pub struct FuseServer {
    pub(super) share: Operations,
    /// The guest supports FUSE_SUBMOUNTS: it makes a separate file system of each directory with that flag. A guest
    /// that does not support it, but sees the flag, would drop the directory at each revalidation.
    pub(super) submounts: bool,
    /// SETXATTR has flags (FUSE_SETXATTR_EXT).
    pub(super) setxattr_ext: bool,
    /// READDIR opens a directory, and its reply has a trailer (FUSE_READDIR_OPENS).
    pub(super) readdir_opens: bool,
    /// The reply to a WRITE from the guest's page cache has attributes (FUSE_WRITE_ATTR).
    pub(super) write_attr: bool,
    body: Vec<u8>,
    /// The reply under construction, header included.
    pub(super) reply: Vec<u8>,
}

/// Returns a FUSE server of `tree`, for one thread.
pub fn server(tree: &ShareTree) -> Box<dyn FileServer> {
    Box::new(FuseServer::new(tree))
}

impl FileServer for FuseServer {
    fn handle(&mut self, mut request: Pieces, mut reply: Pieces) -> io::Result<usize> {
        let total = request.len();
        let mut bytes = [0; InHeader::SIZE];
        request.read(&mut bytes);
        let header = InHeader::parse(&bytes)
            .filter(|header| header.len as usize >= InHeader::SIZE && header.len as usize <= total)
            .ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, "request is shorter than its header says")
            })?;
        request.truncate(header.len as usize - InHeader::SIZE);

        self.reply.clear();
        self.reply.resize(OutHeader::SIZE, 0);
        let mut body = std::mem::take(&mut self.body);
        let answer = self.serve(&header, &mut request, &mut body, &mut reply);
        self.body = body;
        let (error, len) = match answer {
            Ok(Answer::Nothing) => return Ok(0),
            Ok(Answer::Data(len)) => (0, OutHeader::SIZE + len),
            Ok(Answer::Reply) if self.reply.len() <= reply.len() => (0, self.reply.len()),
            // The guest has provided too little space for the reply.
            Ok(Answer::Reply) => (libc::ERANGE, OutHeader::SIZE),
            Err(Errno(error)) => (error, OutHeader::SIZE),
        };
        if error != 0 || matches!(answer, Ok(Answer::Data(_))) {
            self.reply.truncate(OutHeader::SIZE);
        }
        self.reply[..4].copy_from_slice(&(len as u32).to_le_bytes());
        self.reply[4..8].copy_from_slice(&(-error).to_le_bytes());
        self.reply[8..16].copy_from_slice(&header.unique.to_le_bytes());
        if reply.write(&self.reply) < self.reply.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "too little space for the header of the reply",
            ));
        }
        Ok(len)
    }

    fn events(&self) -> Option<RawFd> {
        self.share.events()
    }

    fn serves_in_order(&self) -> bool {
        self.share.has_lingering_names()
    }

    fn due(&self) -> Option<Instant> {
        self.share.due()
    }

    fn collect(&mut self) -> Option<Duration> {
        self.share.collect()
    }

    fn has_notices(&self) -> bool {
        self.share.has_notices()
    }

    fn notice(&mut self) -> Option<Vec<u8>> {
        self.share.next_notice().map(|notice| encode(&notice))
    }

    fn save(&mut self) -> std::result::Result<Vec<u8>, StateError> {
        let mut state = Encoder::default();
        state.u8(self.submounts.into()).u8(self.setxattr_ext.into());
        state.u8(self.readdir_opens.into()).u8(self.write_attr.into());
        self.share.save(&mut state)?;
        Ok(state.finish())
    }

    fn restore(&mut self, state: &[u8]) -> std::result::Result<(), StateError> {
        let mut state = Decoder::new(state);
        (self.submounts, self.setxattr_ext) = (state.u8()? != 0, state.u8()? != 0);
        (self.readdir_opens, self.write_attr) = (state.u8()? != 0, state.u8()? != 0);
        self.share.restore(&mut state)?;
        state.end()
    }
}

/// Encodes a notification with its header.
fn encode(notice: &Notice) -> Vec<u8> {
    let mut message = Vec::new();
    let Concerns { name, attributes, data } = notice.concerns;
    let bits = [(name, wire::CHANGED_NAME), (attributes, wire::CHANGED_ATTR), (data, wire::CHANGED_DATA)];
    let what = bits.iter().filter(|(is, _)| *is).fold(0, |what, (_, bit)| what | bit);
    let len = (OutHeader::SIZE + NotifyChangedOut::SIZE + notice.name.len() + 1) as u32;
    OutHeader { len, error: wire::NOTIFY_CHANGED, unique: 0 }.put(&mut message);
    NotifyChangedOut {
        dir: notice.dir,
        child: notice.child,
        mask: notice.event,
        cookie: notice.cookie,
        namelen: notice.name.len() as u32,
        what,
    }
    .put(&mut message);
    message.extend_from_slice(&notice.name);
    message.push(0);
    message
}

impl FuseServer {
    fn new(tree: &ShareTree) -> FuseServer {
        FuseServer {
            share: Operations::new(tree),
            submounts: false,
            setxattr_ext: false,
            readdir_opens: false,
            write_attr: false,
            body: Vec::new(),
            reply: Vec::new(),
        }
    }

    /// Reads the body of a request and executes the request.
    fn serve(
        &mut self,
        header: &InHeader,
        input: &mut Pieces,
        body: &mut Vec<u8>,
        output: &mut Pieces,
    ) -> Result<Answer> {
        let len = match header.opcode {
            op::WRITE => wire::WriteIn::SIZE.min(input.len()),
            _ if input.len() > MAX_BODY => return Err(Errno(libc::E2BIG)),
            _ => input.len(),
        };
        body.resize(len, 0);
        input.read(body);
        let request =
            Request { nodeid: header.nodeid, caller: Caller { uid: header.uid, gid: header.gid }, body };
        self.share.set_caller(request.caller);
        log::trace!("file server: request {} of node {}", header.opcode, header.nodeid);
        match header.opcode {
            op::READ => return self.read(&request, output.tail(OutHeader::SIZE)).map(Answer::Data),
            op::WRITE => self.write(&request, input)?,
            op::FORGET | op::BATCH_FORGET => {
                self.forget(header.opcode, &request);
                return Ok(Answer::Nothing);
            }
            op::RELEASE | op::RELEASEDIR if output.is_empty() => {
                // Nobody hears of an error.
                let _ = self.release(&request);
                return Ok(Answer::Nothing);
            }
            // No request of the server waits long, so the interrupted one has been answered or soon will be.
            op::INTERRUPT | op::NOTIFY_REPLY => return Ok(Answer::Nothing),
            opcode => self.dispatch(opcode, &request)?,
        }
        Ok(Answer::Reply)
    }

    /// Executes a request whose reply has no data.
    fn dispatch(&mut self, opcode: u32, request: &Request) -> Result<()> {
        match opcode {
            op::INIT => self.init(request),
            op::DESTROY => {
                self.share.clear();
                Ok(())
            }
            op::LOOKUP => self.lookup(request),
            op::GETATTR => self.getattr(request),
            op::SETATTR => self.setattr(request),
            op::READLINK => self.readlink(request),
            op::SYMLINK => self.symlink(request),
            op::MKNOD => self.mknod(request),
            op::MKDIR => self.mkdir(request),
            op::UNLINK => self.unlink(request),
            op::RMDIR => self.rmdir(request),
            op::RENAME => self.rename(request),
            op::RENAME2 => self.rename2(request),
            op::LINK => self.link(request),
            op::OPEN => self.open(request),
            op::CREATE => self.create(request),
            op::TMPFILE => self.tmpfile(request),
            op::RELEASE | op::RELEASEDIR => self.release(request),
            op::FSYNC | op::FSYNCDIR => self.fsync(request),
            op::FALLOCATE => self.fallocate(request),
            op::LSEEK => self.lseek(request),
            op::COPY_FILE_RANGE => self.copy_file_range(request),
            op::OPENDIR => self.opendir(request),
            op::READDIR => self.readdir(request, false),
            op::READDIRPLUS => self.readdir(request, true),
            op::STATFS => self.statfs(request),
            op::SYNCFS => self.syncfs(request),
            op::SETXATTR => self.setxattr(request),
            op::GETXATTR => self.getxattr(request),
            op::LISTXATTR => self.listxattr(request),
            op::REMOVEXATTR => self.removexattr(request),
            op::GETLK => self.getlk(request),
            op::SETLK => self.setlk(request),
            op::IOCTL => self.ioctl(request),
            op::POLL => self.poll(request),
            op::SOCKET => self.socket(request),
            // After ENOSYS the guest's kernel does not send the request again. FLUSH: every write has already reached
            // the host. ACCESS: the guest's kernel checks permissions. SETLKW: the server never waits. BMAP and DAX
            // mappings: not supported.
            _ => Err(Errno(libc::ENOSYS)),
        }
    }

    fn init(&mut self, request: &Request) -> Result<()> {
        let input = InitIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        if input.major != wire::MAJOR || input.minor < wire::MINOR_OLDEST {
            // A guest with a newer major version sends INIT again with the version of this reply.
            if input.major <= wire::MAJOR {
                return Err(Errno(libc::EPROTO));
            }
            InitOut { major: wire::MAJOR, minor: wire::MINOR, ..Default::default() }.put(&mut self.reply);
            self.reply.extend_from_slice(&[0; 28]);
            return Ok(());
        }
        self.share.clear();
        let ext = InitInExt::parse(&request.body[InitIn::SIZE..]).unwrap_or_default();
        let mut theirs = u64::from(input.flags);
        if theirs & init::INIT_EXT != 0 {
            theirs |= u64::from(ext.flags2) << 32;
        }
        let mut ours = FEATURES & theirs;
        if !self.share.has_acls() {
            ours &= !init::POSIX_ACL;
        }
        if !self.share.set_watching(ours & init::WATCHED != 0) {
            ours &= !init::WATCHED;
        }
        self.share.set_asks_for_sockets(ours & init::SHARED_LOCKS != 0);
        self.share.set_tells_acls(ours & init::POSIX_ACL != 0);
        self.share.set_reads_unopened(ours & init::UNOPENED != 0);
        self.readdir_opens = ours & init::READDIR_OPENS != 0;
        self.write_attr = ours & init::WRITE_ATTR != 0;
        self.setxattr_ext = ours & init::SETXATTR_EXT != 0;
        self.submounts = ours & init::SUBMOUNTS != 0;
        let out = InitOut {
            major: wire::MAJOR,
            minor: wire::MINOR.min(input.minor),
            max_readahead: input.max_readahead,
            flags: ours as u32,
            max_background: MAX_BACKGROUND,
            congestion_threshold: MAX_BACKGROUND / 4 * 3,
            max_write: MAX_WRITE,
            time_gran: 1,
            max_pages: (MAX_WRITE / 4096) as u16,
            map_alignment: 0,
            flags2: (ours >> 32) as u32,
        };
        out.put(&mut self.reply);
        self.reply.extend_from_slice(&[0; 28]);
        Ok(())
    }
}

/// Takes a NUL-terminated string from the front of `bytes`.
pub(super) fn take_string<'a>(bytes: &mut &'a [u8]) -> Result<&'a CStr> {
    let string = CStr::from_bytes_until_nul(bytes).map_err(|_| Errno(libc::EINVAL))?;
    *bytes = &bytes[string.count_bytes() + 1..];
    Ok(string)
}

/// Takes a name of one component from the front of `bytes`.
pub(super) fn take_name<'a>(bytes: &mut &'a [u8]) -> Result<Name<'a>> {
    Name::new(take_string(bytes)?)
}

#[cfg(test)]
mod tests;
