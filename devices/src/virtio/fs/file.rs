//! Open files. The host's kernel copies their data directly between guest memory and its page cache.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::server::{MAX_WRITE, Node, Request, ShareServer, take_name};
use super::wire::{
    CopyFileRangeIn, CreateIn, FOPEN_KEEP_CACHE, FSYNC_FDATASYNC, FallocateIn, FsyncIn, LseekIn, LseekOut,
    OPEN_KILL_SUIDGID, OpenIn, OpenOut, ReadIn, ReleaseIn, WRITE_CACHE, WRITE_KILL_SUIDGID, WriteIn,
    WriteOut,
};
use crate::pieces::Pieces;
use crate::share::errno::{Errno, Result};
use crate::share::inode::Inode;
use crate::share::sys;
use crate::share::table::Handle;

/// Limit of bytes for one COPY_FILE_RANGE; the guest sends another request for the rest.
const MAX_COPY: u64 = 64 << 20;
/// The flags of the guest's open(2) that are applied on the host. Each write contains O_APPEND and O_SYNC again, and they
/// apply to that write only; O_DIRECT concerns the guest's page cache.
const OPEN_FLAGS: i32 = libc::O_ACCMODE | libc::O_TRUNC | libc::O_NOATIME;

impl ShareServer {
    pub(super) fn open(&mut self, request: &Request) -> Result<()> {
        let input = OpenIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let inode = self.host_node(request.nodeid, libc::EISDIR)?;
        if inode.is_dir() {
            return Err(Errno(libc::EISDIR));
        }
        let file = self.open_as_asked(&inode, input.flags as i32, input.open_flags)?;
        self.put_open(&inode, file)
    }

    /// Opens a file with the flags of the guest's open(2).
    fn open_as_asked(&mut self, inode: &Inode, flags: i32, open_flags: u32) -> Result<File> {
        let truncate = flags & libc::O_TRUNC != 0;
        if flags & libc::O_ACCMODE != libc::O_RDONLY || truncate {
            inode.writable()?;
        }
        if truncate {
            self.credentials().keep_setid(open_flags & OPEN_KILL_SUIDGID == 0);
        }
        let flags = flags & OPEN_FLAGS;
        match self.open_inode(inode, flags) {
            // Only the owner may use O_NOATIME, and the owner may be a different user on the host.
            Err(Errno(libc::EPERM)) if flags & libc::O_NOATIME != 0 => {
                self.open_inode(inode, flags & !libc::O_NOATIME)
            }
            result => result,
        }
    }

    /// Stores an open file. Replies with its number, and with whether the guest's cached pages are still valid.
    fn put_open(&mut self, inode: &Arc<Inode>, file: File) -> Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        let stat = sys::fstat(file.as_fd())?;
        inode.check_kind(&stat)?;
        let same = inode.same_as_seen(&stat, now);
        let handle = Handle::new(inode, file, None);
        let fh = self.shared.table.lock().unwrap().open(handle)?;
        let open_flags = if same { FOPEN_KEEP_CACHE } else { 0 };
        OpenOut { fh, open_flags, padding: 0 }.put(&mut self.reply);
        Ok(())
    }

    pub(super) fn create(&mut self, request: &Request) -> Result<()> {
        let input = CreateIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let name = take_name(&mut &request.body[CreateIn::SIZE..])?;
        let dir = self.writable_dir(request.nodeid)?;
        let flags = input.flags as i32;
        let access = flags & libc::O_ACCMODE;
        let (creating, mode) = self.credentials().create_as(request.caller, input.umask, input.mode & 0o7777);
        let make = access | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
        let made = sys::openat(dir.fd()?.as_fd(), name, make, mode);
        drop(creating);
        let (inode, stat, file) = match made {
            Ok(fd) => {
                let (inode, stat) = self.intern_open(&dir, fd.as_fd())?;
                inode.found_at(&dir, name);
                (inode, stat, File::from(fd))
            }
            Err(Errno(libc::EEXIST)) if flags & libc::O_EXCL == 0 => {
                let (inode, stat) = self.lookup_host(&dir, name)?;
                let file = self.open_existing(&inode, flags, input.open_flags);
                let file = file.inspect_err(|_| self.shared.table.lock().unwrap().forget(inode.id, 1))?;
                (inode, stat, file)
            }
            Err(errno) => return Err(errno),
        };
        self.put_entry(&inode, &stat, Some(dir.key.0));
        self.put_open(&inode, file).inspect_err(|_| self.shared.table.lock().unwrap().forget(inode.id, 1))
    }

    /// Opens a file that already exists at the name that the guest wanted to create.
    fn open_existing(&mut self, inode: &Inode, flags: i32, open_flags: u32) -> Result<File> {
        if inode.is_dir() {
            return Err(Errno(libc::EISDIR));
        }
        self.open_as_asked(inode, flags, open_flags)
    }

    pub(super) fn tmpfile(&mut self, request: &Request) -> Result<()> {
        let input = CreateIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let dir = self.writable_dir(request.nodeid)?;
        let flags = input.flags as i32 & (libc::O_ACCMODE | libc::O_EXCL) | libc::O_TMPFILE;
        let (creating, mode) = self.credentials().create_as(request.caller, input.umask, input.mode & 0o7777);
        let fd = sys::openat(dir.fd()?.as_fd(), c".", flags, mode)?;
        drop(creating);
        let (inode, stat) = self.intern_open(&dir, fd.as_fd())?;
        self.put_entry(&inode, &stat, Some(dir.key.0));
        self.put_open(&inode, File::from(fd))
            .inspect_err(|_| self.shared.table.lock().unwrap().forget(inode.id, 1))
    }

    pub(super) fn release(&mut self, request: &Request) -> Result<()> {
        let input = ReleaseIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        match self.node(request.nodeid) {
            Ok(Node::Virtual(_)) => Ok(()),
            _ => {
                let handle = self.shared.table.lock().unwrap().close(input.fh, request.nodeid)?;
                // Dropping the last reference closes the file, here without the table's lock.
                drop(handle);
                Ok(())
            }
        }
    }

    /// READ: the host's kernel writes into guest memory.
    pub(super) fn read(&mut self, request: &Request, mut data: Pieces) -> Result<usize> {
        let input = ReadIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let handle = self.handle(input.fh, request.nodeid)?;
        let offset = offset(input.offset)?;
        data.truncate(input.size.min(MAX_WRITE) as usize);
        if data.is_empty() {
            return Ok(0);
        }
        sys::preadv(&handle.file, data.slices(), offset)
    }

    /// WRITE: the host's kernel reads from guest memory.
    pub(super) fn write(&mut self, request: &Request, data: &mut Pieces) -> Result<()> {
        let input = WriteIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let handle = self.handle(input.fh, request.nodeid)?;
        let offset = offset(input.offset)?;
        if input.size > MAX_WRITE || input.size as usize > data.len() {
            return Err(Errno(libc::EINVAL));
        }
        data.truncate(input.size as usize);
        self.credentials().keep_setid(input.write_flags & WRITE_KILL_SUIDGID == 0);
        let mut flags = 0;
        let open_flags = input.flags as i32;
        if open_flags & libc::O_SYNC == libc::O_SYNC {
            flags |= libc::RWF_SYNC;
        } else if open_flags & libc::O_DSYNC != 0 {
            flags |= libc::RWF_DSYNC;
        }
        // Writeback from the guest's page cache has a fixed offset and may use any handle. All other writes with O_APPEND
        // append at the end of the file on the host.
        if open_flags & libc::O_APPEND != 0 && input.write_flags & WRITE_CACHE == 0 {
            flags |= libc::RWF_APPEND;
        }
        let written =
            if data.is_empty() { 0 } else { sys::pwritev(&handle.file, data.slices(), offset, flags)? };
        WriteOut { size: written as u32, padding: 0 }.put(&mut self.reply);
        Ok(())
    }

    pub(super) fn fsync(&mut self, request: &Request) -> Result<()> {
        let input = FsyncIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        if let Node::Virtual(_) = self.node(request.nodeid)? {
            return Ok(());
        }
        let handle = self.handle(input.fh, request.nodeid)?;
        sys::fsync(handle.file.as_fd(), input.fsync_flags & FSYNC_FDATASYNC != 0)
    }

    pub(super) fn fallocate(&mut self, request: &Request) -> Result<()> {
        let input = FallocateIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let handle = self.handle(input.fh, request.nodeid)?;
        let (offset, len) = (offset(input.offset)?, offset(input.length)?);
        sys::fallocate(handle.file.as_fd(), input.mode as i32, offset, len)
    }

    pub(super) fn lseek(&mut self, request: &Request) -> Result<()> {
        let input = LseekIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let handle = self.handle(input.fh, request.nodeid)?;
        // The guest's kernel handles all other values of whence. The offset of a directory belongs to its cursor.
        let whence = input.whence as i32;
        if !matches!(whence, libc::SEEK_DATA | libc::SEEK_HOLE) || handle.cursor.is_some() {
            return Err(Errno(libc::EINVAL));
        }
        let offset = sys::lseek(handle.file.as_fd(), offset(input.offset)?, whence)?;
        LseekOut { offset }.put(&mut self.reply);
        Ok(())
    }

    pub(super) fn copy_file_range(&mut self, request: &Request) -> Result<()> {
        let input = CopyFileRangeIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        if input.flags != 0 {
            return Err(Errno(libc::EINVAL));
        }
        let from = self.handle(input.fh_in, request.nodeid)?;
        let to = self.handle(input.fh_out, input.nodeid_out)?;
        let (off_in, off_out) = (offset(input.off_in)?, offset(input.off_out)?);
        let len = input.len.min(MAX_COPY) as usize;
        let size = sys::copy_file_range((from.file.as_fd(), off_in), (to.file.as_fd(), off_out), len)?;
        WriteOut { size: size as u32, padding: 0 }.put(&mut self.reply);
        Ok(())
    }

    pub(super) fn syncfs(&mut self, request: &Request) -> Result<()> {
        if !self.shared.host_sync.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.node(request.nodeid)? {
            Node::Host(inode) => sys::syncfs(self.open_inode(&inode, libc::O_RDONLY)?.as_fd()),
            // Bound single files belong to the virtual file system. The guest sends separate requests for directories.
            Node::Virtual(_) => {
                for bind in self.shared.binds().iter().filter(|bind| !bind.is_dir && !bind.read_only) {
                    let link = crate::share::magic_link::MagicLink::new(
                        "",
                        std::os::fd::AsRawFd::as_raw_fd(&bind.fd()),
                    );
                    let file = sys::openat(self.shared.proc_self_fd.as_fd(), &link, libc::O_RDONLY, 0)?;
                    sys::fsync(file.as_fd(), false)?;
                }
                Ok(())
            }
        }
    }
}

/// Converts the guest's unsigned offset or length to the host's signed type.
fn offset(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| Errno(libc::EINVAL))
}
