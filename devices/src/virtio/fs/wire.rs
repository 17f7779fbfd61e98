//! The FUSE messages and their encoding (Linux `include/uapi/linux/fuse.h`, protocol 7.38).
//!
//! All numbers are little-endian: virtio-fs (VIRTIO 1.2, 5.11.6.1) uses the guest's byte order, and the guest is
//! x86_64. All structures are complete, because the tests also write requests and read replies.
#![allow(dead_code)]

/// Major version of the protocol.
pub const MAJOR: u32 = 7;
/// Newest supported minor version.
pub const MINOR: u32 = 38;
/// Oldest supported minor version. Older ones have shorter replies.
pub const MINOR_OLDEST: u32 = 27;

macro_rules! messages {
    ($($(#[$meta:meta])* $name:ident { $($field:ident: $kind:ident),* $(,)? })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $(pub $field: $kind),*
        }

        impl $name {
            /// Length of the encoding in bytes.
            pub const SIZE: usize = 0 $(+ size_of::<$kind>())*;

            /// Parses the message at the front of `bytes`, and ignores what follows it.
            pub fn parse(bytes: &[u8]) -> Option<$name> {
                let mut rest = bytes;
                Some($name {
                    $($field: {
                        let (head, tail) = rest.split_first_chunk()?;
                        rest = tail;
                        $kind::from_le_bytes(*head)
                    }),*
                }).filter(|_| rest.len() + Self::SIZE == bytes.len())
            }

            /// Appends the message to `out`.
            pub fn put(&self, out: &mut Vec<u8>) {
                $(out.extend_from_slice(&self.$field.to_le_bytes());)*
            }
        }
    )*};
}

messages! {
    /// Header of every request.
    InHeader { len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, padding: u32 }
    /// Header of every reply; `error` is 0 or a negative errno.
    OutHeader { len: u32, error: i32, unique: u64 }
    /// File attributes.
    Attr {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32,
        ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    /// Front of the reply to every request that finds or creates an inode; an [`Attr`] follows.
    EntryOut {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32,
        attr_valid_nsec: u32,
    }
    /// Front of the reply to GETATTR and SETATTR; an [`Attr`] follows.
    AttrOut { attr_valid: u64, attr_valid_nsec: u32, dummy: u32 }
    /// INIT. Version 7.36 added [`InitInExt`].
    InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32 }
    /// Follows [`InitIn`] if its flags have INIT_EXT; eleven unused words follow.
    InitInExt { flags2: u32 }
    /// Reply to INIT; 7 unused words follow.
    InitOut {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32,
    }
    ForgetIn { nlookup: u64 }
    ForgetOne { nodeid: u64, nlookup: u64 }
    BatchForgetIn { count: u32, dummy: u32 }
    GetattrIn { getattr_flags: u32, dummy: u32, fh: u64 }
    SetattrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32 }
    MkdirIn { mode: u32, umask: u32 }
    RenameIn { newdir: u64 }
    Rename2In { newdir: u64, flags: u32, padding: u32 }
    LinkIn { oldnodeid: u64 }
    OpenIn { flags: u32, open_flags: u32 }
    CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    OpenOut { fh: u64, open_flags: u32, padding: u32 }
    ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    ReadIn { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    WriteIn { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    WriteOut { size: u32, padding: u32 }
    /// POLL. `events` and `revents` are those of poll(2).
    PollIn { fh: u64, kh: u64, flags: u32, events: u32 }
    PollOut { revents: u32, padding: u32 }
    /// SOCKET, not of Linux. `what` is one of [`socket`].
    SocketIn { what: u32, value: u32 }
    /// Reply to SOCKET that connects.
    SocketOut { ticket: u32, uid: u32, gid: u32, padding: u32 }
    FsyncIn { fh: u64, fsync_flags: u32, padding: u32 }
    /// GETLK and SETLK. `end` is the last byte; `kind` is that of fcntl(2).
    LkIn { fh: u64, owner: u64, start: u64, end: u64, kind: u32, pid: u32, lk_flags: u32, padding: u32 }
    /// Reply to GETLK.
    LkOut { start: u64, end: u64, kind: u32, pid: u32 }
    /// SETXATTR. With SETXATTR_EXT a [`SetxattrInExt`] follows.
    SetxattrIn { size: u32, flags: u32 }
    SetxattrInExt { setxattr_flags: u32, padding: u32 }
    GetxattrIn { size: u32, padding: u32 }
    GetxattrOut { size: u32, padding: u32 }
    FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    /// IOCTL; `in_size` bytes follow.
    IoctlIn { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32 }
    /// Front of the reply to IOCTL; data follows.
    IoctlOut { result: i32, flags: u32, in_iovs: u32, out_iovs: u32 }
    LseekIn { fh: u64, offset: u64, whence: u32, padding: u32 }
    LseekOut { offset: u64 }
    CopyFileRangeIn {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
    /// Reply to STATFS; a padding word and 6 spare words follow.
    StatfsOut {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
    }
    /// Notification that something was changed by others; the name and NUL follow.
    NotifyChangedOut { dir: u64, child: u64, mask: u32, cookie: u32, namelen: u32, what: u32 }
    /// One READDIR entry; the name follows, padded to 8 bytes. READDIRPLUS puts an [`EntryOut`] and [`Attr`] before it.
    Dirent { ino: u64, off: u64, namelen: u32, kind: u32 }
}

/// Request codes, with the kernel's names.
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const BMAP: u32 = 37;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const POLL: u32 = 40;
    pub const NOTIFY_REPLY: u32 = 41;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SETUPMAPPING: u32 = 48;
    pub const REMOVEMAPPING: u32 = 49;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
    /// Not of Linux but of resources/kernel/patches/fuse-sockets.patch: see [`super::socket`].
    pub const SOCKET: u32 = 2048;
}

/// What a guest's kernel asks about the socket of a file (`SocketIn::what`), with the meaning of `SocketIn::value`.
pub mod socket {
    /// Connect to the socket, with one of this type.
    pub const CONNECT: u32 = 1;
    /// Give up the connection with this ticket.
    pub const CANCEL: u32 = 2;
    /// Listen on the socket that MKNOD has bound, with this backlog. `MknodIn::rdev` had its type.
    pub const LISTEN: u32 = 3;
    /// Close the socket that MKNOD has bound.
    pub const CLOSE: u32 = 4;
}

/// Code of a notification, not of Linux but of resources/kernel/patches/fuse-watch.patch: see [`NotifyChangedOut`].
pub const NOTIFY_CHANGED: i32 = 64;
/// `NotifyChangedOut::what`: the name leads to another file, or to none.
pub const CHANGED_NAME: u32 = 1 << 0;
/// `NotifyChangedOut::what`: the attributes.
pub const CHANGED_ATTR: u32 = 1 << 1;
/// `NotifyChangedOut::what`: the data and the attributes.
pub const CHANGED_DATA: u32 = 1 << 2;

/// INIT flags.
pub mod init {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const SUBMOUNTS: u64 = 1 << 27;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    /// Not of Linux but of resources/kernel/patches/virtiofs-write-attr.patch: the reply to a WRITE with
    /// [`WRITE_CACHE`](super::WRITE_CACHE) ends with an [`AttrOut`](super::AttrOut) and an [`Attr`](super::Attr), whose mode
    /// is 0 if there are none.
    pub const WRITE_ATTR: u64 = 1 << 58;
    /// Not of Linux but of resources/kernel/patches/virtiofs-without-opendir.patch: READDIR and READDIRPLUS with the file
    /// handle 0 open the directory. Each reply ends with a [`Dirent`](super::Dirent) without a name: `ino` is the file
    /// handle, 0 if there is none, `off` that of the last entry, and `kind` has [`READDIR_ENDS`](super::READDIR_ENDS) and
    /// [`READDIR_LASTS`](super::READDIR_LASTS).
    pub const READDIR_OPENS: u64 = 1 << 59;
    /// Not of Linux but of resources/kernel/patches/virtiofs-unopened.patch: the file handle 0 names a regular file that
    /// the guest has not opened, for READ and requests that change nothing.
    pub const UNOPENED: u64 = 1 << 60;
    /// Not of Linux but of resources/kernel/patches/virtiofs-quiet.patch: RELEASE and RELEASEDIR come without space for a
    /// reply, in the queue of FORGET, which the server looks at after each request of the other queue.
    pub const QUIET_RELEASE: u64 = 1 << 61;
    /// Not of Linux but of resources/kernel/patches/fuse-watch.patch: the server sends NOTIFY_CHANGED when something
    /// changes that is valid for long.
    pub const WATCHED: u64 = 1 << 62;
    /// Not of Linux but of resources/kernel/patches/fuse-locks.patch: the guest's kernel keeps all locks and asks for
    /// each of them as well. SETLK never waits. Its reply is empty if it unlocks, otherwise an [`AttrOut`](super::AttrOut)
    /// and an [`Attr`](super::Attr), where `AttrOut::dummy` is 1 if cached pages may be out of date.
    pub const SHARED_LOCKS: u64 = 1 << 63;
}

/// Flags of the attributes that SETATTR changes (`FATTR_*`).
pub mod set {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// `Attr::flags`: the directory is the root of a separate file system.
pub const ATTR_SUBMOUNT: u32 = 1 << 0;
/// `Attr::flags`, not of Linux but of resources/kernel/patches/fuse-owned.patch: only this guest writes to the file while
/// the guest has it open for writing, or the directory belongs to the same root.
pub const ATTR_OWNED: u32 = 1 << 31;
/// `Attr::flags`, not of Linux but of resources/kernel/patches/fuse-no-acl.patch: the file has no access ACL.
pub const ATTR_NO_ACL: u32 = 1 << 30;
/// `Attr::flags` of a reply to MKDIR, not of Linux but of resources/kernel/patches/virtiofs-whole.patch: the directory is
/// empty, and the guest is told what others change in it. Of a reply to CREATE: the file is new.
pub const ATTR_EMPTY: u32 = 1 << 29;
/// `Attr::flags`, not of Linux but of resources/kernel/patches/fuse-fifo.patch: the guest opens the FIFO here, and asks
/// again with [`op::POLL`], [`op::READ`] and [`op::WRITE`] while a process waits. Also of a socket: see [`op::SOCKET`].
pub const ATTR_FIFO: u32 = 1 << 28;
/// `OpenOut::open_flags`: reads and writes bypass the guest's page cache.
pub const FOPEN_DIRECT_IO: u32 = 1 << 0;
/// `OpenOut::open_flags`: the guest's cached pages of this file are still valid.
pub const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// `OpenOut::open_flags`: the guest may cache the directory's entries.
pub const FOPEN_CACHE_DIR: u32 = 1 << 3;
/// `OpenIn::open_flags`: clear set-user-ID and set-group-ID if the open truncates.
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// `WriteIn::write_flags`: writeback from the guest's page cache, with a handle that was guessed.
pub const WRITE_CACHE: u32 = 1 << 0;
/// `WriteIn::write_flags`: clear set-user-ID and set-group-ID.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `SetxattrInExt::setxattr_flags`: the ACL clears set-group-ID.
pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
/// `LkIn::lk_flags`: a lock of flock(2).
pub const LK_FLOCK: u32 = 1 << 0;
/// `LkIn::lk_flags`, not of Linux but of resources/kernel/patches/fuse-mapping.patch: the open file is mapped shared and
/// writable until it is released.
pub const LK_MAPPING: u32 = 1 << 1;
/// `Dirent::kind` at the end of a listing: there are no more entries.
pub const READDIR_ENDS: u32 = 1 << 0;
/// `Dirent::kind` at the end of a listing: the guest is told of changes.
pub const READDIR_LASTS: u32 = 1 << 1;
/// `FsyncIn::fsync_flags`: data only.
pub const FSYNC_FDATASYNC: u32 = 1 << 0;
