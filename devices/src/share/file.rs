//! Open files. The host's kernel copies their data directly between guest memory and its page cache.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::attributes::{Attributes, Entry};
use super::errno::{Errno, Result};
use super::handle::Handle;
use super::inode::Inode;
use super::magic_link::MagicLink;
use super::names::Name;
use super::operations::{NewFile, Node, OpenFile, Operations};
use super::sys::{self, Stat};
use crate::pieces::Pieces;

/// Limit of data in one read or write, in bytes: 256 pages, the limit of a guest's kernel.
pub const MAX_WRITE: u32 = 1 << 20;
/// Limit of bytes for one copy between files; the guest sends another request for the rest.
const MAX_COPY: u64 = 64 << 20;
/// The flags of the guest's open(2) that are applied on the host. Each write contains O_APPEND and O_SYNC again, and
/// they apply to that write only; O_DIRECT concerns the guest's page cache.
const OPEN_FLAGS: i32 = libc::O_ACCMODE | libc::O_TRUNC | libc::O_NOATIME;

/// Types of file systems whose files have contents beyond their size (Linux, include/uapi/linux/magic.h): proc, cgroup,
/// cgroup2, debugfs, tracefs, securityfs, configfs, selinuxfs, smackfs.
const GENERATED: [i64; 9] = [
    0x9fa0,
    0x0027_e0eb,
    0x6367_7270,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0x6265_6570,
    0xf97c_ff8c,
    0x4341_5d53,
];

/// How a file is opened.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// Flags of open(2).
    pub flags: i32,
    /// Truncating clears set-user-ID and set-group-ID.
    pub kill_setid: bool,
}

/// A file that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Number of the open file.
    pub handle: u64,
    /// What the guest's page cache may do with the file.
    pub cache: Cache,
}

/// What the guest's page cache may do with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// The file is unchanged since the guest last opened it, so cached pages are still valid.
    Keep,
    /// Cached pages may be out of date.
    Drop,
    /// Each read asks the host, whatever the file's size is.
    Bypass,
}

/// A write to an open file.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    /// Offset in bytes.
    pub offset: u64,
    /// Number of bytes.
    pub size: u32,
    /// The writer's flags of open(2).
    pub flags: i32,
    /// The guest writes back its page cache: the offset is fixed, and any open file of the node may be named.
    pub from_cache: bool,
    /// Clear set-user-ID and set-group-ID.
    pub kill_setid: bool,
}

/// Part of a file whose blocks are allocated or freed.
#[derive(Clone, Copy, Debug)]
pub struct Allocation {
    /// Mode of fallocate(2).
    pub mode: i32,
    /// Offset in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// A place in an open file.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    /// The file.
    pub file: OpenFile,
    /// Offset in bytes.
    pub offset: u64,
}

impl Operations {
    /// Opens a file that is not a directory.
    pub fn open(&mut self, node: u64, how: How) -> Result<Opened> {
        let inode = self.host_node(node, libc::EISDIR)?;
        if inode.is_dir() {
            return Err(Errno(libc::EISDIR));
        }
        if inode.is_shared_fifo(inode.key.0) {
            return self.open_fifo(&inode, how.flags);
        }
        let file = self.open_as_asked(&inode, how)?;
        self.store(&inode, file)
    }

    /// Opens a file with the flags of the guest's open(2).
    fn open_as_asked(&mut self, inode: &Inode, how: How) -> Result<File> {
        let truncate = how.flags & libc::O_TRUNC != 0;
        if how.flags & libc::O_ACCMODE != libc::O_RDONLY || truncate {
            inode.writable()?;
        }
        if truncate {
            self.credentials().keep_setid(!how.kill_setid);
        }
        let flags = how.flags & OPEN_FLAGS;
        let acting = self.act_as(self.caller());
        let file = match self.open_inode(inode, flags) {
            // Only the owner may use O_NOATIME, and the owner may be a different user on the host.
            Err(Errno(libc::EPERM)) if flags & libc::O_NOATIME != 0 => {
                self.open_inode(inode, flags & !libc::O_NOATIME)
            }
            result => result,
        }?;
        drop(acting);
        if truncate {
            self.note_own_data(inode, file.as_fd());
        }
        Ok(file)
    }

    /// Stores an open file. Returns its number, and what the guest's page cache may do with it.
    fn store(&self, inode: &Arc<Inode>, file: File) -> Result<Opened> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        let stat = sys::fstat(file.as_fd())?;
        inode.check_kind(&stat)?;
        self.note_reply(inode, &stat);
        let cache = match inode.same_as_seen(&stat, now) {
            _ if has_contents_beyond_its_size(&file, &stat) => Cache::Bypass,
            // The guest is told when others change it.
            _ if self.attributes_last(inode, &stat) => Cache::Keep,
            true => Cache::Keep,
            false => Cache::Drop,
        };
        let handle = Handle::new(inode, file, self.caller(), None);
        let handle = self.shared.table.lock().unwrap().open(handle)?;
        Ok(Opened { handle, cache })
    }

    /// Stores an open file whose lookup was counted, and takes the lookup back if that fails.
    fn store_entry(&self, inode: &Arc<Inode>, file: File) -> Result<Opened> {
        self.store(inode, file).inspect_err(|_| self.let_go(inode.id))
    }

    /// Creates a regular file and opens it. Without O_EXCL it opens a file that already exists.
    pub fn create(&mut self, dir: u64, name: Name, new: &NewFile, how: How) -> Result<(Entry, Opened)> {
        let name = name.as_c_str();
        let dir = self.writable_dir(dir)?;
        let access = how.flags & libc::O_ACCMODE;
        let (creating, mode) = self.create_as(new, new.mode & 0o7777);
        self.watch(&dir);
        let make = access | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
        let made = sys::openat(dir.fd()?.as_fd(), name, make, mode);
        drop(creating);
        let is_new = made.is_ok();
        let (inode, stat, file) = match made {
            Ok(fd) => {
                self.note_own(&dir, name, libc::IN_CREATE);
                let (inode, stat) = self.intern_open(&dir, fd.as_fd())?;
                inode.found_at(&dir, name);
                (inode, stat, File::from(fd))
            }
            Err(Errno(libc::EEXIST)) if how.flags & libc::O_EXCL == 0 => {
                let (inode, stat) = self.lookup_host(&dir, name)?;
                let file = self.open_existing(&inode, how).inspect_err(|_| self.let_go(inode.id))?;
                (inode, stat, file)
            }
            Err(errno) => return Err(errno),
        };
        let mut entry = self.entry(&inode, &stat, Some(&dir));
        entry.attributes.empty = is_new;
        Ok((entry, self.store_entry(&inode, file)?))
    }

    /// Opens a file that already exists at the name that the guest wanted to create.
    fn open_existing(&mut self, inode: &Inode, how: How) -> Result<File> {
        if inode.is_dir() {
            return Err(Errno(libc::EISDIR));
        }
        self.open_as_asked(inode, how)
    }

    /// Creates a regular file without a name and opens it with `flags` of open(2).
    pub fn tmpfile(&mut self, dir: u64, new: &NewFile, flags: i32) -> Result<(Entry, Opened)> {
        let dir = self.writable_dir(dir)?;
        let flags = flags & (libc::O_ACCMODE | libc::O_EXCL) | libc::O_TMPFILE;
        let (creating, mode) = self.create_as(new, new.mode & 0o7777);
        let fd = sys::openat(dir.fd()?.as_fd(), c".", flags, mode)?;
        drop(creating);
        let (inode, stat) = self.intern_open(&dir, fd.as_fd())?;
        let entry = self.entry(&inode, &stat, Some(&dir));
        Ok((entry, self.store_entry(&inode, File::from(fd))?))
    }

    /// Closes an open file or directory.
    pub fn release(&self, file: OpenFile) -> Result<()> {
        match self.node(file.node) {
            Ok(Node::Virtual(_)) => Ok(()),
            _ => {
                let handle = self.shared.table.lock().unwrap().close(file.handle, file.node)?;
                // Dropping the last reference closes the file, here without the table's lock.
                drop(handle);
                Ok(())
            }
        }
    }

    /// Reads at most [`MAX_WRITE`] bytes: the host's kernel writes into guest memory. Returns their number.
    pub fn read(&self, file: OpenFile, offset: u64, mut data: Pieces) -> Result<usize> {
        let handle = self.handle(file)?;
        data.truncate(MAX_WRITE as usize);
        if data.is_empty() {
            return Ok(0);
        }
        if handle.inode.is_fifo() {
            return sys::preadv(&handle.file, data.slices(), sys::NO_OFFSET);
        }
        let offset = signed(offset)?;
        sys::preadv(&handle.file, data.slices(), offset)
    }

    /// Writes: the host's kernel reads from guest memory. Returns the number of bytes written.
    pub fn write(&mut self, file: OpenFile, write: &Write, data: &mut Pieces) -> Result<usize> {
        let handle = self.handle(file)?;
        let written = self.write_to(&handle, write, data)?;
        if written > 0 && !handle.inode.is_fifo() {
            self.note_own_data(&handle.inode, handle.file.as_fd());
        }
        Ok(written)
    }

    /// As [`write`](Self::write). Also returns the attributes that the file has after that, if it is a regular one.
    pub fn write_and_look(
        &mut self,
        file: OpenFile,
        write: &Write,
        data: &mut Pieces,
    ) -> Result<(usize, Option<Attributes>)> {
        let handle = self.handle(file)?;
        let written = self.write_to(&handle, write, data)?;
        let looked = match written > 0 && handle.inode.kind == libc::S_IFREG {
            true => self.note_own_data(&handle.inode, handle.file.as_fd()),
            false => None,
        };
        Ok((written, looked.map(|stat| self.attributes_of(&handle.inode, &stat))))
    }

    fn write_to(&mut self, handle: &Handle, write: &Write, data: &mut Pieces) -> Result<usize> {
        let offset = signed(write.offset)?;
        if write.size > MAX_WRITE || write.size as usize > data.len() {
            return Err(Errno(libc::EINVAL));
        }
        data.truncate(write.size as usize);
        if handle.inode.is_fifo() {
            return sys::pwritev(&handle.file, data.slices(), sys::NO_OFFSET, 0);
        }
        self.credentials().keep_setid(!write.kill_setid);
        let mut flags = 0;
        if write.flags & libc::O_SYNC == libc::O_SYNC {
            flags |= libc::RWF_SYNC;
        } else if write.flags & libc::O_DSYNC != 0 {
            flags |= libc::RWF_DSYNC;
        }
        // Writeback from the guest's page cache has a fixed offset and may use any handle. All other writes with
        // O_APPEND append at the end of the file on the host.
        if write.flags & libc::O_APPEND != 0 && !write.from_cache {
            flags |= libc::RWF_APPEND;
        }
        if data.is_empty() {
            return Ok(0);
        }
        // The guest's kernel writes back for nobody in particular.
        let acting = self.act_as(if write.from_cache { handle.opener } else { self.caller() });
        let written = sys::pwritev(&handle.file, data.slices(), offset, flags)?;
        drop(acting);
        Ok(written)
    }

    /// Writes a file's data to disk, and its attributes unless `data_only`.
    pub fn fsync(&self, file: OpenFile, data_only: bool) -> Result<()> {
        if let Node::Virtual(_) = self.node(file.node)? {
            return Ok(());
        }
        sys::fsync(self.handle(file)?.file.as_fd(), data_only)
    }

    /// Allocates or frees blocks.
    pub fn fallocate(&mut self, file: OpenFile, allocation: &Allocation) -> Result<()> {
        let handle = self.handle(file)?;
        let (offset, len) = (signed(allocation.offset)?, signed(allocation.len)?);
        // The guest's kernel has already cleared set-user-ID and set-group-ID if necessary.
        self.credentials().keep_setid(true);
        let acting = self.act_as(self.caller());
        sys::fallocate(handle.file.as_fd(), allocation.mode, offset, len)?;
        drop(acting);
        self.note_own_data(&handle.inode, handle.file.as_fd());
        Ok(())
    }

    /// Returns the offset of the next data or hole. `whence` is SEEK_DATA or SEEK_HOLE.
    pub fn lseek(&self, file: OpenFile, offset: u64, whence: i32) -> Result<u64> {
        let handle = self.handle(file)?;
        // The guest's kernel handles all other values of whence. The offset of a directory belongs to its cursor.
        if !matches!(whence, libc::SEEK_DATA | libc::SEEK_HOLE) || handle.cursor.is_some() {
            return Err(Errno(libc::EINVAL));
        }
        // Before the file's begin there is no data.
        let offset = i64::try_from(offset).map_err(|_| Errno(libc::ENXIO))?;
        sys::lseek(handle.file.as_fd(), offset, whence)
    }

    /// Copies between two files inside the host's kernel. Returns the number of bytes copied.
    pub fn copy_file_range(&mut self, from: Position, to: Position, len: u64) -> Result<usize> {
        let (source, target) = (self.handle(from.file)?, self.handle(to.file)?);
        let (from, to) = (signed(from.offset)?, signed(to.offset)?);
        let len = len.min(MAX_COPY) as usize;
        // As in `fallocate`.
        self.credentials().keep_setid(true);
        let acting = self.act_as(self.caller());
        let copied = sys::copy_file_range((source.file.as_fd(), from), (target.file.as_fd(), to), len)?;
        drop(acting);
        self.note_own_data(&target.inode, target.file.as_fd());
        Ok(copied)
    }

    /// Writes a node's file system to disk, unless [`super::ShareTree::set_host_sync`] is off.
    pub fn syncfs(&self, node: u64) -> Result<()> {
        if !self.shared.host_sync.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.node(node)? {
            Node::Host(inode) => sys::syncfs(self.open_inode(&inode, libc::O_RDONLY)?.as_fd()),
            // Bound single files belong to the virtual file system. The guest sends separate requests for directories.
            Node::Virtual(_) => {
                for bind in self.shared.binds().iter().filter(|bind| !bind.is_dir && !bind.read_only) {
                    let link = MagicLink::new("", bind.fd().as_raw_fd());
                    let file = sys::openat(self.shared.proc_self_fd.as_fd(), &link, libc::O_RDONLY, 0)?;
                    sys::fsync(file.as_fd(), false)?;
                }
                Ok(())
            }
        }
    }
}

/// Converts the guest's unsigned offset or length to the host's signed type.
fn signed(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| Errno(libc::EINVAL))
}

/// Whether the kernel generates the file's contents at each read and reports a size of 0, as in /proc. A page cache reads
/// nothing beyond a file's size.
fn has_contents_beyond_its_size(file: &File, stat: &Stat) -> bool {
    let empty = stat.st_size == 0 && stat.st_blocks == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    // A disk's file system has a device with a major number.
    empty
        && libc::major(stat.st_dev) == 0
        && sys::file_system(file.as_fd()).is_ok_and(|(kind, _)| GENERATED.contains(&kind))
}
