//! File attributes as the guest sees them, and their changes.

use std::os::fd::{AsFd, AsRawFd};

use super::errno::{Errno, Result};
use super::inode::Inode;
use super::magic_link::MagicLink;
use super::operations::{Node, OpenFile, Operations};
use super::owners::Owners;
use super::sys::{self, Stat};
use super::tree::Child;

/// A point in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Seconds since the epoch; negative ones as two's complement.
    pub seconds: u64,
    /// Nanoseconds. A value that a guest sends may be invalid.
    pub nanoseconds: u32,
}

/// Attributes of a file, with owners as the guest sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Inode number that programs in the guest see.
    pub ino: u64,
    /// Size in bytes.
    pub size: u64,
    /// Number of blocks of 512 bytes.
    pub blocks: u64,
    /// Time of the last access.
    pub atime: Time,
    /// Time of the last change of the data.
    pub mtime: Time,
    /// Time of the last change of data or attributes.
    pub ctime: Time,
    /// Type and permissions.
    pub mode: u32,
    /// Number of hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of a device node.
    pub rdev: u32,
    /// Preferred size of reads and writes.
    pub blksize: u32,
    /// A regular file to which nobody else writes while the guest has it open for writing, or a directory with such files
    /// ([`super::Terms::owned`]).
    pub owned: bool,
    /// A FIFO or socket that processes of other kernels may use.
    pub shared: bool,
    /// The guest is told when the attributes change.
    pub lasting: bool,
    /// The file certainly has no access ACL.
    pub no_acl: bool,
    /// A new regular file, or a new directory that is certainly empty and of whose changes the guest is told.
    pub empty: bool,
}

/// A node that was found or created. Its lookup has been counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number of the node.
    pub node: u64,
    /// The node's attributes.
    pub attributes: Attributes,
    /// The node is a directory of another file system of the host than its parent: a mount point below a bind, or a
    /// bind in the virtual tree. If the guest gives it a separate device number, no two files have the same device and
    /// inode number.
    pub submount: bool,
    /// How long the guest may believe that the name leads there.
    pub name: Validity,
}

/// How long the guest's kernel may cache a name, also a missing one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Not at all: the guest has locked a file in the directory, so it agrees with others on what happens there. What one
    /// did under a lock must be seen under the next one, as the journal that SQLite creates and removes.
    Once,
    /// For a moment, since the guest is not told of changes.
    Brief,
    /// Until the guest is told that the name leads elsewhere.
    Lasting,
}

/// A new access or modification time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewTime {
    /// The host's current time.
    Now,
    /// This time.
    At(Time),
}

/// New attributes of a file. `None` leaves an attribute unchanged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change {
    /// Permissions.
    pub mode: Option<u32>,
    /// Owner. `u32::MAX` leaves it unchanged.
    pub uid: Option<u32>,
    /// Group. `u32::MAX` leaves it unchanged.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Number of an open file through which the size is set, if it is valid.
    pub handle: Option<u64>,
    /// Setting the size clears set-user-ID and set-group-ID.
    pub kill_setid: bool,
    /// Access time.
    pub atime: Option<NewTime>,
    /// Modification time.
    pub mtime: Option<NewTime>,
}

/// Size and usage of a file system, in blocks of `frsize` bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Number of blocks.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for unprivileged users.
    pub bavail: u64,
    /// Number of inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred size of reads and writes.
    pub bsize: u32,
    /// Limit of a name's length in bytes.
    pub namelen: u32,
    /// Size of a block in bytes.
    pub frsize: u32,
}

impl Attributes {
    /// The attributes of a virtual directory: not writable, all times are the epoch.
    pub(super) fn of_virtual(id: u64) -> Attributes {
        Attributes {
            ino: Child::Dir(id).ino(),
            mode: libc::S_IFDIR | 0o555,
            nlink: 2,
            blksize: 4096,
            ..Attributes::default()
        }
    }
}

impl Entry {
    /// A virtual directory, whose lookups are not counted.
    pub(super) fn of_virtual(id: u64) -> Entry {
        Entry { node: id, attributes: Attributes::of_virtual(id), submount: false, name: Validity::Brief }
    }
}

impl Operations {
    /// Returns the attributes of a host file as the guest sees them.
    pub(super) fn attributes_of(&self, inode: &Inode, stat: &Stat) -> Attributes {
        let (uid, gid) = self.owners.to_guest(stat.st_uid, stat.st_gid);
        self.note_reply(inode, stat);
        // A bound single file belongs to the virtual file system, so its inode number must come from there.
        let single = inode.is_bind_root() && !inode.is_dir();
        let time = |sec: i64, nsec: i64| Time { seconds: sec as u64, nanoseconds: nsec as u32 };
        Attributes {
            ino: if single { inode.bind.id } else { stat.st_ino },
            size: stat.st_size as u64,
            blocks: stat.st_blocks as u64,
            atime: time(stat.st_atime, stat.st_atime_nsec),
            mtime: time(stat.st_mtime, stat.st_mtime_nsec),
            ctime: time(stat.st_ctime, stat.st_ctime_nsec),
            mode: stat.st_mode,
            nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            uid,
            gid,
            rdev: stat.st_rdev as u32,
            blksize: stat.st_blksize as u32,
            // Below a mount point of the host the file may be somebody else's.
            owned: inode.bind.owned
                && matches!(inode.kind, libc::S_IFREG | libc::S_IFDIR)
                && stat.st_dev == inode.bind.key.0,
            shared: inode.is_shared_fifo(stat.st_dev) || self.sockets.shares(inode, stat.st_dev),
            lasting: self.attributes_last(inode, stat) && self.may_stay_unopened(inode),
            no_acl: uid != self.caller().uid && self.lacks_acl(inode, stat),
            empty: false,
        }
    }

    /// Returns the entry of an inode whose lookup in `dir` has been counted.
    pub(super) fn entry(&self, inode: &Inode, stat: &Stat, dir: Option<&Inode>) -> Entry {
        Entry {
            node: inode.id,
            attributes: self.attributes_of(inode, stat),
            submount: inode.is_dir() && dir.map(|dir| dir.key.0) != Some(stat.st_dev),
            name: dir.map_or(Validity::Brief, |dir| self.names_in(dir)),
        }
    }

    /// Returns the attributes of a node.
    pub fn getattr(&self, node: u64) -> Result<Attributes> {
        match self.node(node)? {
            Node::Virtual(id) => {
                self.shared.tree.lock().unwrap().names(id)?;
                Ok(Attributes::of_virtual(id))
            }
            Node::Host(inode) => Ok(self.attributes_of(&inode, &sys::fstat(inode.fd()?.as_fd())?)),
        }
    }

    /// Changes attributes of a node. Returns all attributes after that.
    pub fn setattr(&mut self, node: u64, change: &Change) -> Result<Attributes> {
        let inode = self.host_node(node, libc::EROFS)?;
        inode.writable()?;
        let fd = inode.fd()?;
        if let Some(mode) = change.mode {
            // The guest's kernel has already cleared set-group-ID if the caller may not set it.
            self.credentials().keep_setid(true);
            let link = MagicLink::new("", fd.as_fd().as_raw_fd());
            let proc_self_fd = self.shared.proc_self_fd.as_fd();
            self.or_as_caller(|| sys::chmod_magic(proc_self_fd, &link, mode & 0o7777))?;
        }
        if change.uid.is_some() || change.gid.is_some() {
            self.set_owner(&inode, change)?;
        }
        if let Some(size) = change.size {
            self.set_size(&inode, size, change)?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            let times = [timespec(change.atime)?, timespec(change.mtime)?];
            self.or_as_caller(|| sys::utimens(fd.as_fd(), &times))?;
        }
        let stat = sys::fstat(fd.as_fd())?;
        // The change is the guest's own.
        inode.tell(&stat);
        Ok(self.attributes_of(&inode, &stat))
    }

    fn set_owner(&self, inode: &Inode, change: &Change) -> Result<()> {
        let (uid, gid) = (change.uid.unwrap_or(u32::MAX), change.gid.unwrap_or(u32::MAX));
        match self.owners {
            Owners::Host => {
                let fd = inode.fd()?;
                self.or_as_caller(|| sys::chown(fd.as_fd(), uid, gid))
            }
            Owners::Single(our_uid, our_gid) => {
                let map = |id, ours| match id {
                    u32::MAX => Ok(u32::MAX),
                    0 => Ok(ours),
                    _ => Err(Errno(libc::EPERM)),
                };
                sys::chown(inode.fd()?.as_fd(), map(uid, our_uid)?, map(gid, our_gid)?)
            }
        }
    }

    fn set_size(&mut self, inode: &Inode, size: u64, change: &Change) -> Result<()> {
        let len = i64::try_from(size).map_err(|_| Errno(libc::EFBIG))?;
        self.credentials().keep_setid(!change.kill_setid);
        let _acting = self.act_as(self.caller());
        if let Some(handle) = change.handle
            && let Ok(handle) = self.handle(OpenFile { node: inode.id, handle })
        {
            return sys::ftruncate(handle.file.as_fd(), len);
        }
        let file = self.open_inode(inode, libc::O_WRONLY)?;
        sys::ftruncate(file.as_fd(), len)
    }

    /// Returns size and usage of a node's file system.
    pub fn statfs(&self, node: u64) -> Result<Usage> {
        match self.node(node)? {
            Node::Virtual(_) => Ok(Usage { bsize: 4096, frsize: 4096, namelen: 255, ..Usage::default() }),
            Node::Host(inode) => {
                let st = sys::statvfs(inode.fd()?.as_fd())?;
                Ok(Usage {
                    blocks: st.f_blocks,
                    bfree: st.f_bfree,
                    bavail: st.f_bavail,
                    files: st.f_files,
                    ffree: st.f_ffree,
                    bsize: st.f_bsize as u32,
                    namelen: st.f_namemax as u32,
                    frsize: st.f_frsize as u32,
                })
            }
        }
    }
}

fn timespec(time: Option<NewTime>) -> Result<libc::timespec> {
    let (tv_sec, tv_nsec) = match time {
        None => (0, libc::UTIME_OMIT),
        Some(NewTime::Now) => (0, libc::UTIME_NOW),
        Some(NewTime::At(time)) if time.nanoseconds > 999_999_999 => return Err(Errno(libc::EINVAL)),
        Some(NewTime::At(time)) => (time.seconds as i64, i64::from(time.nanoseconds)),
    };
    Ok(libc::timespec { tv_sec, tv_nsec })
}
