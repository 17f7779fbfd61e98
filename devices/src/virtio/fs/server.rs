//! The FUSE server: one request in, one reply out.
//!
//! The guest is hostile: it sends any bytes. A request that is too short for its header is refused to the queue; any
//! other gets a reply, if only an error number. What bounds it: [`MAX_BODY`] for what is copied out of a request,
//! [`MAX_WRITE`] for data, [`super::xattr::MAX_VALUE`], [`super::dir::MAX_BUFFERS`] for directories that are being
//! read, and the table's limits for inodes and open files. Names are single components ([`super::share::is_plain`]), looked up with O_NOFOLLOW in a directory that
//! an O_PATH descriptor pins: no path is ever resolved, so none leaves its share.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use super::FileServer;
use super::attr::Owners;
use super::credentials::Credentials;
use super::dir::Buffers;
use super::errno::{Errno, Result};
use super::inode::Inode;
use super::magic_link::MagicLink;
use super::message::Pieces;
use super::share::{Shared, Tree, is_plain};
use super::sys;
use super::table::Handle;
use super::wire::{self, InHeader, InitIn, InitInExt, InitOut, OutHeader, init, op};

/// The most data of one READ or WRITE: 256 pages, the kernel's own maximum.
pub const MAX_WRITE: u32 = 1 << 20;
/// The longest request without its data: an extended attribute of 64 KiB and its name.
pub const MAX_BODY: usize = (64 << 10) + 4096;
/// Requests that the guest may have under way for readahead and the like.
const MAX_BACKGROUND: u16 = 64;

/// What the server can do, of what the guest can (FUSE_INIT).
///
/// Not among them: WRITEBACK_CACHE (the guest would go by its own idea of size and times, and the host's changes to an
/// open file would be lost); POSIX_LOCKS and FLOCK_LOCKS (the guest's kernel keeps the locks: only it has users);
/// POSIX_ACL (each inode that somebody other than its owner walks would cost a GETXATTR; ACLs are stored all the same).
const FEATURES: u64 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::DONT_MASK
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::SUBMOUNTS
    | init::HANDLE_KILLPRIV_V2
    | init::INIT_EXT;

/// One request without its data.
pub struct Request<'a> {
    /// The inode it is about.
    pub nodeid: u64,
    /// The guest's user and group that caused it.
    pub caller: (u32, u32),
    /// What follows the header.
    pub body: &'a [u8],
}

/// What an inode number stands for.
pub enum Node {
    /// A virtual directory.
    Virtual(u64),
    /// A file of the host.
    Host(Arc<Inode>),
}

/// What becomes of a request once its body is read.
enum Answer {
    /// The reply's body is in the reply buffer.
    Reply,
    /// So many bytes of data are in guest memory already, behind the header.
    Data(usize),
    /// The protocol has no reply to this.
    Nothing,
}

/// A server of one share tree, for one thread.
pub struct ShareServer {
    pub(super) shared: Arc<Shared>,
    pub(super) owners: Owners,
    /// The guest makes a file system of its own of a directory that is marked so. One that does not, and is told all
    /// the same, drops the directory at each revalidation.
    pub(super) submounts: bool,
    /// Made by the first request: they belong to the thread that serves.
    credentials: Option<Credentials>,
    /// The directories that are being read.
    pub(super) buffers: Buffers,
    body: Vec<u8>,
    /// The reply under construction, header included.
    pub(super) reply: Vec<u8>,
}

impl FileServer for ShareServer {
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

        self.begin_reply();
        let mut body = std::mem::take(&mut self.body);
        let answer = self.serve(&header, &mut request, &mut body, &mut reply);
        self.body = body;
        let (error, len) = match answer {
            Ok(Answer::Nothing) => return Ok(0),
            Ok(Answer::Data(len)) => (0, OutHeader::SIZE + len),
            Ok(Answer::Reply) if self.reply.len() <= reply.len() => (0, self.reply.len()),
            // The guest left too little room for what it asked.
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
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no room for a reply's header"));
        }
        Ok(len)
    }
}

impl ShareServer {
    pub(super) fn new(shared: Arc<Shared>) -> ShareServer {
        ShareServer {
            shared,
            owners: Owners::of_process(),
            submounts: false,
            credentials: None,
            buffers: Buffers::default(),
            body: Vec::new(),
            reply: Vec::new(),
        }
    }

    /// Reads the body and has the request done.
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
        let request = Request { nodeid: header.nodeid, caller: (header.uid, header.gid), body };
        match header.opcode {
            op::READ => return self.read(&request, output.tail(OutHeader::SIZE)).map(Answer::Data),
            op::WRITE => self.write(&request, input)?,
            op::FORGET | op::BATCH_FORGET => {
                self.forget(header.opcode, &request);
                return Ok(Answer::Nothing);
            }
            // Nothing that the server does waits for long; the request it names has been answered or will be.
            op::INTERRUPT | op::NOTIFY_REPLY => return Ok(Answer::Nothing),
            opcode => self.dispatch(opcode, &request)?,
        }
        Ok(Answer::Reply)
    }

    /// Every request that has a reply without data.
    pub(super) fn dispatch(&mut self, opcode: u32, request: &Request) -> Result<()> {
        match opcode {
            op::INIT => self.init(request),
            op::DESTROY => self.destroy(),
            op::LOOKUP => self.lookup(request),
            op::GETATTR => self.getattr(request),
            op::SETATTR => self.setattr(request),
            op::READLINK => self.readlink(request),
            op::SYMLINK => self.symlink(request),
            op::MKNOD => self.mknod(request),
            op::MKDIR => self.mkdir(request),
            op::UNLINK => self.unlink(request, 0),
            op::RMDIR => self.unlink(request, libc::AT_REMOVEDIR),
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
            // ENOSYS is an answer that the kernel remembers. FLUSH: every write has reached the host by then. ACCESS: the
            // guest's kernel checks permissions. GETLK, SETLK, SETLKW: locks are the guest's own. BMAP, IOCTL, POLL and
            // DAX's mappings: there is no such thing.
            _ => Err(Errno(libc::ENOSYS)),
        }
    }

    fn init(&mut self, request: &Request) -> Result<()> {
        let input = InitIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        if input.major != wire::MAJOR || input.minor < wire::MINOR_OLDEST {
            // A newer major version asks again once it knows ours.
            if input.major <= wire::MAJOR {
                return Err(Errno(libc::EPROTO));
            }
            InitOut { major: wire::MAJOR, minor: wire::MINOR, ..Default::default() }.put(&mut self.reply);
            self.reply.extend_from_slice(&[0; 28]);
            return Ok(());
        }
        self.destroy()?;
        let ext = InitInExt::parse(&request.body[InitIn::SIZE..]).unwrap_or_default();
        let mut theirs = u64::from(input.flags);
        if theirs & init::INIT_EXT != 0 {
            theirs |= u64::from(ext.flags2) << 32;
        }
        let ours = FEATURES & theirs;
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

    fn destroy(&mut self) -> Result<()> {
        self.shared.table.lock().unwrap().clear();
        Ok(())
    }

    /// What an inode number stands for.
    pub(super) fn node(&self, nodeid: u64) -> Result<Node> {
        match Tree::is_virtual(nodeid) {
            true => Ok(Node::Virtual(nodeid)),
            false => self.shared.table.lock().unwrap().inode(nodeid).map(Node::Host),
        }
    }

    /// The host file behind an inode number; a virtual directory refuses with `refusal`.
    pub(super) fn host_node(&self, nodeid: u64, refusal: i32) -> Result<Arc<Inode>> {
        match self.node(nodeid)? {
            Node::Host(inode) => Ok(inode),
            Node::Virtual(_) => Err(Errno(refusal)),
        }
    }

    /// The directory in which a request makes, moves or removes a name.
    pub(super) fn writable_dir(&self, nodeid: u64) -> Result<Arc<Inode>> {
        let inode = self.growable_dir(nodeid)?;
        inode.writable()?;
        Ok(inode)
    }

    /// The directory in which a request makes what may be a mount point.
    pub(super) fn growable_dir(&self, nodeid: u64) -> Result<Arc<Inode>> {
        let inode = self.host_node(nodeid, libc::EROFS)?;
        if !inode.is_dir() {
            return Err(Errno(libc::ENOTDIR));
        }
        inode.growable()?;
        Ok(inode)
    }

    pub(super) fn handle(&self, fh: u64, inode: u64) -> Result<Arc<Handle>> {
        self.shared.table.lock().unwrap().handle(fh, inode)
    }

    /// As whom this thread acts.
    pub(super) fn credentials(&mut self) -> &mut Credentials {
        let proc_self_fd = self.shared.proc_self_fd.as_fd();
        self.credentials.get_or_insert_with(|| Credentials::take_over(proc_self_fd))
    }

    /// Opens an inode for use. Only files and directories: a device would act, a FIFO would block. The inode's kind is
    /// that of the file behind its descriptor, which [`Inode::fd`] has made sure of.
    pub(super) fn open_inode(&self, inode: &Inode, flags: i32) -> Result<File> {
        match inode.kind {
            libc::S_IFREG | libc::S_IFDIR => {
                let flags = flags & !libc::O_NOFOLLOW;
                let pin = inode.fd()?;
                let link = MagicLink::new("", pin.as_fd().as_raw_fd());
                let file = File::from(sys::openat(self.shared.proc_self_fd.as_fd(), &link, flags, 0)?);
                // Should a file that was found by its name be another one after all, nothing is done with it.
                if pin.is_found_anew() {
                    inode.check_kind(&sys::fstat(file.as_fd())?)?;
                }
                Ok(file)
            }
            libc::S_IFLNK => Err(Errno(libc::ELOOP)),
            _ => Err(Errno(libc::ENXIO)),
        }
    }
}

/// Takes a NUL-terminated string from the front of `bytes`.
pub(super) fn take_string<'a>(bytes: &mut &'a [u8]) -> Result<&'a CStr> {
    let string = CStr::from_bytes_until_nul(bytes).map_err(|_| Errno(libc::EINVAL))?;
    *bytes = &bytes[string.count_bytes() + 1..];
    Ok(string)
}

/// Takes a name of one component from the front of `bytes`.
pub(super) fn take_name<'a>(bytes: &mut &'a [u8]) -> Result<&'a CStr> {
    let name = take_string(bytes)?;
    match name.count_bytes() {
        len if len > super::share::MAX_NAME => Err(Errno(libc::ENAMETOOLONG)),
        _ if is_plain(name.to_bytes()) => Ok(name),
        _ => Err(Errno(libc::EINVAL)),
    }
}

#[cfg(test)]
mod tests;
