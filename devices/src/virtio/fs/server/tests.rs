use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::VolatileSlice;

use super::*;
use crate::virtio::fs::share::ShareTree;
use crate::virtio::fs::wire::*;

pub fn open_path(path: &Path) -> OwnedFd {
    fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).unwrap().into()
}

fn is_root() -> bool {
    sys::effective_ids().0 == 0
}

/// Sends requests as a guest's kernel does, and bytes as it never would.
struct Guest {
    server: Box<dyn FileServer>,
    tree: ShareTree,
    caller: (u32, u32),
    dir: TempDir,
}

/// A reply: the error number, and what follows the header.
type Reply = std::result::Result<Vec<u8>, i32>;

impl Guest {
    /// A guest of a share at /c1/rootfs that is bound to a fresh directory.
    fn new() -> Guest {
        let dir = tempfile::tempdir().unwrap();
        // A guest served by this thread before may have left its umask.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let tree = ShareTree::new().unwrap();
        tree.bind("/c1/rootfs", open_path(dir.path()), false).unwrap();
        let mut guest = Guest { server: tree.server(), tree, caller: (0, 0), dir };
        guest.init();
        guest
    }

    fn init(&mut self) -> InitOut {
        let mut body = body(|b| {
            InitIn { major: 7, minor: 37, max_readahead: 131072, flags: u32::MAX }.put(b);
            InitInExt { flags2: u32::MAX }.put(b);
        });
        body.resize(64, 0);
        InitOut::parse(&self.call(op::INIT, 0, &body).unwrap()).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Sends raw bytes in two pieces, with room for `room` bytes of reply; `None` if the queue is to refuse it.
    fn send(&mut self, bytes: &[u8], room: usize) -> Option<Vec<u8>> {
        let mut request = bytes.to_vec();
        let (head, tail) = request.split_at_mut(bytes.len().min(40));
        let mut reply = vec![0xaa; room];
        let (first, second) = reply.split_at_mut(room.min(16));
        let request = Pieces::new(vec![VolatileSlice::from(head), VolatileSlice::from(tail)]);
        let output = Pieces::new(vec![VolatileSlice::from(first), VolatileSlice::from(second)]);
        let len = self.server.handle(request, output).ok()?;
        assert!(len <= room);
        reply.truncate(len);
        Some(reply)
    }

    fn call(&mut self, opcode: u32, nodeid: u64, body: &[u8]) -> Reply {
        let (uid, gid) = self.caller;
        let len = (InHeader::SIZE + body.len()) as u32;
        let mut bytes = Vec::new();
        InHeader { len, opcode, unique: 7, nodeid, uid, gid, pid: 1, padding: 0 }.put(&mut bytes);
        bytes.extend_from_slice(body);
        let reply = self.send(&bytes, 1 << 20).unwrap();
        let header = OutHeader::parse(&reply).unwrap();
        assert_eq!((header.len as usize, header.unique), (reply.len(), 7));
        if header.error == 0 { Ok(reply[OutHeader::SIZE..].to_vec()) } else { Err(-header.error) }
    }

    fn lookup(&mut self, dir: u64, name: &str) -> std::result::Result<(EntryOut, Attr), i32> {
        let reply = self.call(op::LOOKUP, dir, &string(name))?;
        match entry(&reply) {
            (entry, _) if entry.nodeid == 0 => Err(libc::ENOENT),
            found => Ok(found),
        }
    }

    /// Walks from the root of all; returns the last inode's number.
    fn walk(&mut self, path: &str) -> u64 {
        path.split('/').filter(|n| !n.is_empty()).fold(ROOT_ID, |dir, name| {
            self.lookup(dir, name).unwrap_or_else(|e| panic!("{path}: {name}: {e}")).0.nodeid
        })
    }

    fn rootfs(&mut self) -> u64 {
        self.walk("c1/rootfs")
    }

    fn attr(&mut self, nodeid: u64) -> Attr {
        let body = body(|b| GetattrIn::default().put(b));
        Attr::parse(&self.call(op::GETATTR, nodeid, &body).unwrap()[AttrOut::SIZE..]).unwrap()
    }

    fn setattr(&mut self, nodeid: u64, input: SetattrIn) -> std::result::Result<Attr, i32> {
        let reply = self.call(op::SETATTR, nodeid, &body(|b| input.put(b)))?;
        Ok(Attr::parse(&reply[AttrOut::SIZE..]).unwrap())
    }

    fn open(&mut self, nodeid: u64, flags: i32) -> std::result::Result<OpenOut, i32> {
        let body = body(|b| OpenIn { flags: flags as u32, open_flags: 0 }.put(b));
        self.call(op::OPEN, nodeid, &body).map(|reply| OpenOut::parse(&reply).unwrap())
    }

    fn create(&mut self, dir: u64, name: &str, input: CreateIn) -> std::result::Result<(u64, u64), i32> {
        let body = body(|b| {
            input.put(b);
            b.extend_from_slice(&string(name));
        });
        let reply = self.call(op::CREATE, dir, &body)?;
        let open = OpenOut::parse(&reply[EntryOut::SIZE + Attr::SIZE..]).unwrap();
        Ok((entry(&reply).0.nodeid, open.fh))
    }

    fn make(&mut self, dir: u64, name: &str) -> (u64, u64) {
        let input = CreateIn { flags: libc::O_RDWR as u32, mode: 0o100644, umask: 0o022, open_flags: 0 };
        self.create(dir, name, input).unwrap()
    }

    fn read(&mut self, nodeid: u64, fh: u64, offset: u64, size: u32) -> Reply {
        self.call(op::READ, nodeid, &body(|b| ReadIn { fh, offset, size, ..Default::default() }.put(b)))
    }

    fn write(&mut self, nodeid: u64, input: WriteIn, data: &[u8]) -> std::result::Result<u32, i32> {
        let body = body(|b| {
            WriteIn { size: data.len() as u32, ..input }.put(b);
            b.extend_from_slice(data);
        });
        self.call(op::WRITE, nodeid, &body).map(|reply| WriteOut::parse(&reply).unwrap().size)
    }

    fn release(&mut self, nodeid: u64, fh: u64) -> Reply {
        self.call(op::RELEASE, nodeid, &body(|b| ReleaseIn { fh, ..Default::default() }.put(b)))
    }

    fn forget(&mut self, nodeid: u64, nlookup: u64) {
        let mut bytes = Vec::new();
        let len = (InHeader::SIZE + ForgetIn::SIZE) as u32;
        InHeader { len, opcode: op::FORGET, nodeid, ..Default::default() }.put(&mut bytes);
        ForgetIn { nlookup }.put(&mut bytes);
        assert_eq!(self.send(&bytes, 0), Some(vec![]));
    }

    fn rename(&mut self, from: (u64, &str), to: (u64, &str), flags: u32) -> Reply {
        let body = body(|b| {
            Rename2In { newdir: to.0, flags, padding: 0 }.put(b);
            b.extend_from_slice(&string(from.1));
            b.extend_from_slice(&string(to.1));
        });
        self.call(op::RENAME2, from.0, &body)
    }

    /// All names of a directory with their inode numbers (and the lookups that READDIRPLUS counted).
    fn list(&mut self, dir: u64, opcode: u32, size: u32) -> Vec<(String, u64, u64)> {
        let open = self.call(op::OPENDIR, dir, &body(|b| OpenIn::default().put(b))).unwrap();
        let fh = OpenOut::parse(&open).unwrap().fh;
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let input = ReadIn { fh, offset, size, ..Default::default() };
            let reply = self.call(opcode, dir, &body(|b| input.put(b))).unwrap();
            assert!(reply.len() <= size as usize);
            if reply.is_empty() {
                break;
            }
            let mut rest = &reply[..];
            while !rest.is_empty() {
                let mut nodeid = 0;
                if opcode == op::READDIRPLUS {
                    nodeid = entry(rest).0.nodeid;
                    rest = &rest[EntryOut::SIZE + Attr::SIZE..];
                }
                let dirent = Dirent::parse(rest).unwrap();
                let name = &rest[Dirent::SIZE..][..dirent.namelen as usize];
                names.push((String::from_utf8(name.to_vec()).unwrap(), dirent.ino, nodeid));
                offset = dirent.off;
                rest = &rest[Dirent::SIZE + name.len().next_multiple_of(8)..];
            }
        }
        self.call(op::RELEASEDIR, dir, &body(|b| ReleaseIn { fh, ..Default::default() }.put(b))).unwrap();
        names.sort();
        names
    }

    fn getxattr(&mut self, nodeid: u64, name: &str, size: u32) -> Reply {
        let body = body(|b| {
            GetxattrIn { size, padding: 0 }.put(b);
            b.extend_from_slice(&string(name));
        });
        self.call(op::GETXATTR, nodeid, &body)
    }

    fn setxattr(&mut self, nodeid: u64, name: &str, value: &[u8]) -> Reply {
        let body = body(|b| {
            SetxattrIn { size: value.len() as u32, flags: 0 }.put(b);
            b.extend_from_slice(&string(name));
            b.extend_from_slice(value);
        });
        self.call(op::SETXATTR, nodeid, &body)
    }
}

fn body(put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut body = Vec::new();
    put(&mut body);
    body
}

fn string(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn entry(reply: &[u8]) -> (EntryOut, Attr) {
    (EntryOut::parse(reply).unwrap(), Attr::parse(&reply[EntryOut::SIZE..]).unwrap())
}

fn two_names(first: &str, second: &str) -> Vec<u8> {
    [string(first), string(second)].concat()
}

// Sizes are those of linux/fuse.h.
#[test]
fn messages_are_as_long_as_the_kernels() {
    let sizes = [
        (InHeader::SIZE, 40),
        (OutHeader::SIZE, 16),
        (Attr::SIZE, 88),
        (EntryOut::SIZE, 40),
        (AttrOut::SIZE, 16),
        (InitOut::SIZE, 36),
        (SetattrIn::SIZE, 88),
        (ReadIn::SIZE, 40),
        (WriteIn::SIZE, 40),
        (StatfsOut::SIZE + 28, 80),
        (CopyFileRangeIn::SIZE, 56),
        (Dirent::SIZE, 24),
    ];
    for (index, (ours, theirs)) in sizes.iter().enumerate() {
        assert_eq!(ours, theirs, "message {index}");
    }
}

#[test]
fn init_agrees_on_features() {
    let mut guest = Guest::new();
    let out = guest.init();
    assert_eq!((out.major, out.minor, out.max_write, out.max_pages), (7, 37, 1 << 20, 256));
    assert_eq!(u64::from(out.flags), FEATURES);
    assert_eq!(out.flags2, 0);
    let old = body(|b| InitIn { major: 7, minor: 20, ..Default::default() }.put(b));
    assert_eq!(guest.call(op::INIT, 0, &old), Err(libc::EPROTO));
    let newer = body(|b| InitIn { major: 8, ..Default::default() }.put(b));
    assert_eq!(InitOut::parse(&guest.call(op::INIT, 0, &newer).unwrap()).unwrap().major, 7);
    // A guest without submounts is not told of any.
    let plain =
        body(|b| InitIn { major: 7, minor: 31, flags: init::BIG_WRITES as u32, ..Default::default() }.put(b));
    let out = InitOut::parse(&guest.call(op::INIT, 0, &plain).unwrap()).unwrap();
    assert_eq!((out.minor, u64::from(out.flags)), (31, init::BIG_WRITES));
    let c1 = guest.walk("c1");
    assert_eq!(guest.lookup(c1, "rootfs").unwrap().1.flags, 0);
}

#[test]
fn the_virtual_root_is_read_only_and_lists_its_shares() {
    let mut guest = Guest::new();
    fs::write(guest.path("single"), "x").unwrap();
    let single = open_path(&guest.path("single"));
    guest.tree.bind("/c1/mounts/0", single, true).unwrap();
    let root = guest.attr(ROOT_ID);
    assert_eq!((root.mode, root.ino), (libc::S_IFDIR | 0o555, 1));
    let c1 = guest.walk("c1");
    for opcode in [op::READDIR, op::READDIRPLUS] {
        for size in [256, 4096] {
            let names: Vec<_> = guest.list(c1, opcode, size).into_iter().map(|e| e.0).collect();
            assert_eq!(names, [".", "..", "mounts", "rootfs"], "{opcode} {size}");
        }
    }
    let (rootfs, attr) = guest.lookup(c1, "rootfs").unwrap();
    assert_eq!(attr.flags, ATTR_SUBMOUNT);
    assert_eq!(attr.ino, fs::metadata(guest.dir.path()).unwrap().ino());
    let mkdir = body(|b| {
        MkdirIn { mode: 0o755, umask: 0 }.put(b);
        b.extend_from_slice(&string("new"));
    });
    assert_eq!(guest.call(op::MKDIR, c1, &mkdir), Err(libc::EROFS));
    assert_eq!(guest.call(op::RMDIR, c1, &string("rootfs")), Err(libc::EROFS));
    assert_eq!(guest.rename((c1, "rootfs"), (rootfs.nodeid, "x"), 0), Err(libc::EROFS));
    assert_eq!(guest.setattr(c1, SetattrIn::default()), Err(libc::EROFS));
    assert_eq!(guest.open(c1, 0), Err(libc::EISDIR));
    assert_eq!(guest.call(op::STATFS, ROOT_ID, &[]).unwrap().len(), 80);
}

#[test]
fn a_single_file_is_shared_alone() {
    let mut guest = Guest::new();
    fs::write(guest.path("hosts"), "127.0.0.1").unwrap();
    let file = open_path(&guest.path("hosts"));
    guest.tree.bind("/c1/mounts/0", file, false).unwrap();
    let mounts = guest.walk("c1/mounts");
    let (found, attr) = guest.lookup(mounts, "0").unwrap();
    assert_eq!((attr.mode & libc::S_IFMT, attr.flags, attr.size), (libc::S_IFREG, 0, 9));
    let listed = guest.list(mounts, op::READDIR, 4096);
    assert_eq!(listed.iter().find(|e| e.0 == "0").unwrap().1, attr.ino);
    let fh = guest.open(found.nodeid, libc::O_RDWR).unwrap().fh;
    assert_eq!(guest.read(found.nodeid, fh, 0, 100).unwrap(), b"127.0.0.1");
    assert_eq!(guest.write(found.nodeid, WriteIn { fh, ..Default::default() }, b"10"), Ok(2));
    assert_eq!(fs::read(guest.path("hosts")).unwrap(), b"107.0.0.1");
    // Its neighbours are not reachable through it.
    assert_eq!(guest.lookup(found.nodeid, "hosts"), Err(libc::ENOTDIR));
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let long = "x".repeat(256);
    for name in ["", ".", "..", "a/b", "/", "../etc", "/etc/passwd"] {
        for opcode in [op::LOOKUP, op::UNLINK, op::RMDIR] {
            assert_eq!(guest.call(opcode, rootfs, &string(name)), Err(libc::EINVAL), "{opcode} {name:?}");
        }
        let after = |len: usize| [vec![0; len], string(name)].concat();
        assert_eq!(guest.call(op::MKDIR, rootfs, &after(8)), Err(libc::EINVAL));
        assert_eq!(guest.call(op::MKNOD, rootfs, &after(16)), Err(libc::EINVAL));
        assert_eq!(guest.call(op::CREATE, rootfs, &after(16)), Err(libc::EINVAL));
        assert_eq!(guest.call(op::SYMLINK, rootfs, &two_names(name, "x")), Err(libc::EINVAL));
        assert_eq!(guest.rename((rootfs, name), (rootfs, "x"), 0), Err(libc::EINVAL));
        assert_eq!(guest.rename((rootfs, "x"), (rootfs, name), 0), Err(libc::EINVAL));
        let link = [&rootfs.to_le_bytes()[..], &string(name)].concat();
        assert_eq!(guest.call(op::LINK, rootfs, &link), Err(libc::EINVAL));
    }
    assert_eq!(guest.call(op::LOOKUP, rootfs, b"no end"), Err(libc::EINVAL));
    assert_eq!(guest.call(op::LOOKUP, rootfs, &string(&long)), Err(libc::ENAMETOOLONG));
}

#[test]
fn symbolic_links_are_data_for_the_host() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let reply = guest.call(op::SYMLINK, rootfs, &two_names("passwd", "/etc/passwd")).unwrap();
    let (found, attr) = entry(&reply);
    assert_eq!(attr.mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(guest.call(op::READLINK, found.nodeid, &[]).unwrap(), b"/etc/passwd");
    assert_eq!(guest.open(found.nodeid, 0), Err(libc::ELOOP));
    assert_eq!(guest.lookup(found.nodeid, "x"), Err(libc::ENOTDIR));
    // A directory behind a link is not entered, even if the host puts the link there.
    symlink("/etc", guest.path("etc")).unwrap();
    let etc = guest.lookup(rootfs, "etc").unwrap().0.nodeid;
    assert_eq!(guest.lookup(etc, "passwd"), Err(libc::ENOTDIR));
    assert_eq!(guest.call(op::OPENDIR, etc, &[0; 8]), Err(libc::ENOTDIR));
    let long = "x".repeat(4096);
    assert_eq!(guest.call(op::SYMLINK, rootfs, &two_names("l", &long)), Err(libc::ENAMETOOLONG));
    // Times and owner are the link's own.
    let times = SetattrIn { valid: set::MTIME, mtime: 5, ..Default::default() };
    assert_eq!(guest.setattr(found.nodeid, times).unwrap().mtime, 5);
    assert_eq!(fs::symlink_metadata(guest.path("passwd")).unwrap().mtime(), 5);
}

#[test]
fn a_file_is_made_written_and_read() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, fh) = guest.make(rootfs, "a");
    assert_eq!(guest.write(node, WriteIn { fh, offset: 3, ..Default::default() }, b"hello"), Ok(5));
    assert_eq!(fs::read(guest.path("a")).unwrap(), b"\0\0\0hello");
    assert_eq!(guest.read(node, fh, 2, 4).unwrap(), b"\0hel");
    assert_eq!(guest.read(node, fh, 8, 4).unwrap(), b"");
    assert_eq!(guest.attr(node).size, 8);
    let meta = fs::metadata(guest.path("a")).unwrap();
    assert_eq!(meta.mode(), 0o100644);
    assert_eq!(guest.release(node, fh), Ok(vec![]));
    assert_eq!(guest.read(node, fh, 0, 1), Err(libc::EBADF));
    assert_eq!(guest.release(node, fh), Err(libc::EBADF));
    // O_EXCL and O_TRUNC.
    let again = CreateIn { flags: (libc::O_RDWR | libc::O_EXCL) as u32, mode: 0o644, ..Default::default() };
    assert_eq!(guest.create(rootfs, "a", again), Err(libc::EEXIST));
    let again = CreateIn { flags: (libc::O_RDWR | libc::O_TRUNC) as u32, mode: 0o644, ..Default::default() };
    assert_eq!(guest.create(rootfs, "a", again).unwrap().0, node);
    assert_eq!(guest.attr(node).size, 0);
}

#[test]
fn appending_goes_to_the_end_that_the_host_knows() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, fh) = guest.make(rootfs, "log");
    fs::write(guest.path("log"), "host").unwrap();
    let append = WriteIn { fh, offset: 0, flags: libc::O_APPEND as u32, ..Default::default() };
    assert_eq!(guest.write(node, append, b"+guest"), Ok(6));
    assert_eq!(fs::read(guest.path("log")).unwrap(), b"host+guest");
    // A page that is written back belongs where it is.
    let page = WriteIn { write_flags: WRITE_CACHE, ..append };
    assert_eq!(guest.write(node, page, b"HO"), Ok(2));
    assert_eq!(fs::read(guest.path("log")).unwrap(), b"HOst+guest");
}

#[test]
fn an_unlinked_file_lives_on_while_it_is_open() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, fh) = guest.make(rootfs, "a");
    guest.write(node, WriteIn { fh, ..Default::default() }, b"data").unwrap();
    guest.call(op::UNLINK, rootfs, &string("a")).unwrap();
    assert!(!guest.path("a").exists());
    let attr = guest.attr(node);
    assert_eq!((attr.nlink, attr.size), (0, 4));
    // By handle and by inode: ftruncate, fchmod, fchown, futimens.
    let shrink = SetattrIn { valid: set::SIZE | set::FH, fh, size: 2, ..Default::default() };
    assert_eq!(guest.setattr(node, shrink).unwrap().size, 2);
    let grow = SetattrIn { valid: set::SIZE | set::MODE, size: 9, mode: 0o600, ..Default::default() };
    let attr = guest.setattr(node, grow).unwrap();
    assert_eq!((attr.size, attr.mode), (9, 0o100600));
    assert_eq!(guest.read(node, fh, 0, 9).unwrap(), b"da\0\0\0\0\0\0\0");
    let again = guest.open(node, libc::O_RDWR).unwrap().fh;
    assert_eq!(guest.read(node, again, 0, 2).unwrap(), b"da");
}

#[test]
fn renames_replace_exchange_and_refuse() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    for name in ["a", "b", "c"] {
        fs::write(guest.path(name), name).unwrap();
    }
    guest.rename((rootfs, "a"), (rootfs, "b"), 0).unwrap();
    assert_eq!(fs::read(guest.path("b")).unwrap(), b"a");
    assert_eq!(guest.rename((rootfs, "b"), (rootfs, "c"), libc::RENAME_NOREPLACE), Err(libc::EEXIST));
    guest.rename((rootfs, "b"), (rootfs, "c"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(fs::read(guest.path("c")).unwrap(), b"a");
    let plain = body(|b| {
        RenameIn { newdir: rootfs }.put(b);
        b.extend_from_slice(&two_names("c", "d"));
    });
    guest.call(op::RENAME, rootfs, &plain).unwrap();
    assert!(guest.path("d").exists());
    let other = tempfile::tempdir().unwrap();
    guest.tree.bind("/c1/mounts/0", open_path(other.path()), false).unwrap();
    let mount = guest.walk("c1/mounts/0");
    assert_eq!(guest.rename((rootfs, "d"), (mount, "d"), 0), Err(libc::EXDEV));
    let node = guest.walk("c1/rootfs/d");
    let link = [&node.to_le_bytes()[..], &string("d")].concat();
    assert_eq!(guest.call(op::LINK, mount, &link), Err(libc::EXDEV));
}

#[test]
fn hard_links_are_one_inode() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, _) = guest.make(rootfs, "a");
    let link = [&node.to_le_bytes()[..], &string("b")].concat();
    let (found, attr) = entry(&guest.call(op::LINK, rootfs, &link).unwrap());
    assert_eq!((found.nodeid, attr.nlink), (node, 2));
    assert_eq!(guest.lookup(rootfs, "b").unwrap().0.nodeid, node);
    // CREATE, LINK and LOOKUP: three lookups.
    guest.forget(node, 2);
    guest.attr(node);
    guest.forget(node, 1);
    assert_eq!(guest.call(op::GETATTR, node, &[0; 16]), Err(libc::ESTALE));
    // A link to a symbolic link is one, too.
    let reply = guest.call(op::SYMLINK, rootfs, &two_names("s", "nowhere")).unwrap();
    let link = [&entry(&reply).0.nodeid.to_le_bytes()[..], &string("s2")].concat();
    guest.call(op::LINK, rootfs, &link).unwrap();
    assert_eq!(fs::read_link(guest.path("s2")).unwrap(), Path::new("nowhere"));
}

#[test]
fn sparse_files_keep_their_holes() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, fh) = guest.make(rootfs, "sparse");
    guest.write(node, WriteIn { fh, offset: 1 << 20, ..Default::default() }, b"end").unwrap();
    let mut seek = |offset, whence| {
        let input = LseekIn { fh, offset, whence, padding: 0 };
        let reply = guest.call(op::LSEEK, node, &body(|b| input.put(b)))?;
        Ok(LseekOut::parse(&reply).unwrap().offset)
    };
    assert_eq!(seek(0, libc::SEEK_HOLE as u32), Ok(0));
    assert_eq!(seek(0, libc::SEEK_DATA as u32), Ok(1 << 20));
    assert_eq!(seek(2 << 20, libc::SEEK_DATA as u32), Err(libc::ENXIO));
    assert_eq!(seek(0, libc::SEEK_SET as u32), Err(libc::EINVAL));
    let mut allocate = |mode: i32, offset, length| {
        let input = FallocateIn { fh, offset, length, mode: mode as u32, padding: 0 };
        guest.call(op::FALLOCATE, node, &body(|b| input.put(b)))
    };
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    assert_eq!(allocate(0, 0, 4096), Ok(vec![]));
    assert_eq!(allocate(punch, 1 << 20, 4096), Ok(vec![]));
    assert_eq!(allocate(0, u64::MAX, 1), Err(libc::EINVAL));
    assert_eq!(guest.attr(node).size, (1 << 20) + 3);
    assert_eq!(guest.read(node, fh, 1 << 20, 3).unwrap(), [0; 3]);
}

#[test]
fn copy_file_range_copies_on_the_host() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (from, fh_in) = guest.make(rootfs, "from");
    let (to, fh_out) = guest.make(rootfs, "to");
    guest.write(from, WriteIn { fh: fh_in, ..Default::default() }, b"0123456789").unwrap();
    let input =
        CopyFileRangeIn { fh_in, off_in: 2, nodeid_out: to, fh_out, off_out: 1, len: u64::MAX, flags: 0 };
    let reply = guest.call(op::COPY_FILE_RANGE, from, &body(|b| input.put(b))).unwrap();
    assert_eq!(WriteOut::parse(&reply).unwrap().size, 8);
    assert_eq!(fs::read(guest.path("to")).unwrap(), b"\x0023456789");
}

#[test]
fn extended_attributes_that_are_the_guests_pass() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, _) = guest.make(rootfs, "a");
    if guest.setxattr(node, "user.test", b"value") == Err(libc::EOPNOTSUPP) {
        // The test's directory is on a file system without them.
        return;
    }
    let size = guest.getxattr(node, "user.test", 0).unwrap();
    assert_eq!(GetxattrOut::parse(&size).unwrap().size, 5);
    assert_eq!(guest.getxattr(node, "user.test", 5).unwrap(), b"value");
    assert_eq!(guest.getxattr(node, "user.test", 4), Err(libc::ERANGE));
    assert_eq!(guest.getxattr(node, "user.none", 4), Err(libc::ENODATA));
    let list = |size| body(|b| GetxattrIn { size, padding: 0 }.put(b));
    assert_eq!(guest.call(op::LISTXATTR, node, &list(100)).unwrap(), b"user.test\0");
    let size = guest.call(op::LISTXATTR, node, &list(0)).unwrap();
    assert_eq!(GetxattrOut::parse(&size).unwrap().size, 10);
    assert_eq!(guest.call(op::LISTXATTR, node, &list(3)), Err(libc::ERANGE));
    for name in ["trusted.overlay.redirect", "security.selinux", "security.ima", "system.nfs4_acl"] {
        assert_eq!(guest.setxattr(node, name, b"x"), Err(libc::EOPNOTSUPP), "{name}");
        assert_eq!(guest.getxattr(node, name, 9), Err(libc::ENODATA), "{name}");
    }
    assert_eq!(guest.setxattr(node, "user.big", &[0; MAX_BODY]), Err(libc::E2BIG));
    guest.call(op::REMOVEXATTR, node, &string("user.test")).unwrap();
    assert_eq!(guest.call(op::REMOVEXATTR, node, &string("user.test")), Err(libc::ENODATA));
    // The attributes of a link are its own, not its target's.
    let link = entry(&guest.call(op::SYMLINK, rootfs, &two_names("l", "a")).unwrap()).0.nodeid;
    assert_eq!(guest.setxattr(link, "user.test", b"x"), Err(libc::EPERM));
}

#[test]
fn large_directories_are_listed_whole() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    for index in 0..1500 {
        fs::write(guest.path(&format!("a file with a long name {index}")), "").unwrap();
    }
    for (opcode, size) in [(op::READDIR, 4096), (op::READDIRPLUS, 4096), (op::READDIRPLUS, 300_000)] {
        let names = guest.list(rootfs, opcode, size);
        assert_eq!(names.len(), 1502, "{opcode} {size}");
        assert!(names.windows(2).all(|pair| pair[0].0 != pair[1].0));
        assert!(names.iter().all(|e| (opcode == op::READDIR || e.0.starts_with('.')) == (e.2 == 0)));
    }
    let listed = guest.list(rootfs, op::READDIRPLUS, 4096);
    // The rootfs and the files, each once.
    assert_eq!(guest.tree.counts().0, 1501);
    for (_, _, nodeid) in listed {
        guest.forget(nodeid, 3);
    }
    assert_eq!(guest.tree.counts().0, 1);
}

#[test]
fn a_directory_can_be_read_again_and_from_the_middle() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    for name in ["a", "b", "c"] {
        fs::write(guest.path(name), "").unwrap();
    }
    let open = guest.call(op::OPENDIR, rootfs, &[0; 8]).unwrap();
    let fh = OpenOut::parse(&open).unwrap().fh;
    let mut read = |offset, size| {
        let input = ReadIn { fh, offset, size, ..Default::default() };
        guest.call(op::READDIR, rootfs, &body(|b| input.put(b))).unwrap()
    };
    let all = read(0, 4096);
    assert_eq!(read(0, 4096), all);
    let first = Dirent::parse(&all).unwrap();
    let second = &all[Dirent::SIZE + (first.namelen as usize).next_multiple_of(8)..];
    assert_eq!(read(first.off, 4096), second);
    assert_eq!(read(first.off, 32), second[..32]);
    assert_eq!(read(0, 10), b"");
    let input = ReadIn { fh, offset: u64::MAX, size: 4096, ..Default::default() };
    assert_eq!(guest.call(op::READDIR, rootfs, &body(|b| input.put(b))), Err(libc::EINVAL));
}

/// Shares the directory at /ro too; returns that, a file and a directory in it.
fn share_read_only(guest: &mut Guest) -> (u64, u64, u64) {
    fs::write(guest.path("a"), "a").unwrap();
    fs::create_dir(guest.path("d")).unwrap();
    guest.tree.bind("/ro", open_path(&guest.path("")), true).unwrap();
    (guest.walk("ro"), guest.walk("ro/a"), guest.walk("ro/d"))
}

/// Neither what is there nor a name of it can be changed, and what is new is refused but for directories and empty files.
fn assert_no_change(guest: &mut Guest, ro: u64, file: u64, dir: u64) {
    let refused = Err(libc::EROFS);
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
        assert_eq!(guest.open(file, flags), Err(libc::EROFS));
    }
    let named = |len: usize| [vec![0; len], string("new")].concat();
    assert_eq!(guest.call(op::MKNOD, ro, &named(16)), refused);
    assert_eq!(guest.call(op::CREATE, ro, &named(16)), refused);
    assert_eq!(guest.call(op::TMPFILE, ro, &named(16)), refused);
    assert_eq!(guest.call(op::SYMLINK, ro, &two_names("l", "a")), refused);
    assert_eq!(guest.call(op::UNLINK, ro, &string("a")), refused);
    assert_eq!(guest.call(op::RMDIR, ro, &string("d")), refused);
    assert_eq!(guest.rename((ro, "a"), (ro, "b"), 0), refused);
    assert_eq!(guest.rename((dir, "a"), (ro, "b"), 0), refused);
    let link = [&file.to_le_bytes()[..], &string("b")].concat();
    assert_eq!(guest.call(op::LINK, ro, &link), refused);
    let mode = SetattrIn { valid: set::MODE, mode: 0o777, ..Default::default() };
    assert_eq!(guest.setattr(file, mode), Err(libc::EROFS));
    assert_eq!(guest.setxattr(file, "user.a", b"x"), refused);
    assert_eq!(guest.call(op::REMOVEXATTR, file, &string("user.a")), refused);
    let fh = guest.open(file, libc::O_RDONLY).unwrap().fh;
    assert_eq!(guest.read(file, fh, 0, 9).unwrap(), b"a");
    assert_eq!(guest.write(file, WriteIn { fh, ..Default::default() }, b"x"), Err(libc::EBADF));
}

#[test]
fn a_read_only_share_takes_mount_points_as_long_as_it_is_let() {
    let mut guest = Guest::new();
    let (ro, file, dir) = share_read_only(&mut guest);
    let mkdir = |name: &str| [vec![0; 8], string(name)].concat();
    let mknod = |name: &str| {
        body(|b| {
            MknodIn { mode: libc::S_IFREG | 0o644, ..Default::default() }.put(b);
            b.extend_from_slice(&string(name));
        })
    };
    assert_eq!(guest.call(op::MKNOD, ro, &mknod("f")), Err(libc::EROFS));

    guest.tree.allow_mount_points("/ro", true).unwrap();
    let made = entry(&guest.call(op::MKNOD, ro, &mknod("f")).unwrap()).0.nodeid;
    assert_eq!(guest.open(made, libc::O_WRONLY).unwrap_err(), libc::EROFS);
    guest.call(op::MKDIR, ro, &mkdir("new")).unwrap();
    assert_eq!(guest.call(op::MKNOD, ro, &mknod("a")), Err(libc::EEXIST));
    assert_no_change(&mut guest, ro, file, dir);

    guest.tree.allow_mount_points("/ro", false).unwrap();
    assert_eq!(guest.call(op::MKNOD, ro, &mknod("g")), Err(libc::EROFS));
    assert_eq!(guest.call(op::MKDIR, ro, &mkdir("later")), Err(libc::EROFS));
    assert!(guest.tree.allow_mount_points("/ro/d", true).is_err());
    assert!(guest.tree.allow_mount_points("/c1", true).is_err());
}

#[test]
fn a_read_only_share_refuses_every_change() {
    let mut guest = Guest::new();
    let (ro, file, dir) = share_read_only(&mut guest);
    assert_eq!(guest.call(op::MKDIR, ro, &[vec![0; 8], string("new")].concat()), Err(libc::EROFS));
    assert_no_change(&mut guest, ro, file, dir);
    // The same directory through the other share is another file system, and writable.
    let rootfs = guest.rootfs();
    assert_ne!(guest.lookup(rootfs, "a").unwrap().0.nodeid, file);
    guest.make(rootfs, "b");
}

#[test]
fn special_files_are_never_opened_on_the_host() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    for (name, kind) in [("fifo", libc::S_IFIFO), ("socket", libc::S_IFSOCK)] {
        let mknod = body(|b| {
            MknodIn { mode: kind | 0o666, umask: 0o022, ..Default::default() }.put(b);
            b.extend_from_slice(&string(name));
        });
        let (found, attr) = entry(&guest.call(op::MKNOD, rootfs, &mknod).unwrap());
        assert_eq!(attr.mode, kind | 0o644);
        assert_eq!(guest.open(found.nodeid, libc::O_RDWR), Err(libc::ENXIO));
        let size = SetattrIn { valid: set::SIZE, ..Default::default() };
        assert_eq!(guest.setattr(found.nodeid, size), Err(libc::ENXIO));
    }
    if is_root() {
        let mknod = body(|b| {
            MknodIn { mode: libc::S_IFCHR | 0o600, rdev: 0x103, ..Default::default() }.put(b);
            b.extend_from_slice(&string("null"));
        });
        if let Ok(reply) = guest.call(op::MKNOD, rootfs, &mknod) {
            let (found, attr) = entry(&reply);
            assert_eq!(attr.rdev, 0x103);
            assert!(fs::metadata(guest.path("null")).unwrap().file_type().is_char_device());
            assert_eq!(guest.open(found.nodeid, libc::O_RDWR), Err(libc::ENXIO));
        }
    }
}

#[test]
fn what_a_caller_makes_belongs_to_the_caller() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    guest.caller = (1234, 2345);
    let (file, _) = guest.make(rootfs, "file");
    let mkdir = body(|b| {
        MkdirIn { mode: 0o777, umask: 0o027 }.put(b);
        b.extend_from_slice(&string("dir"));
    });
    let dir = entry(&guest.call(op::MKDIR, rootfs, &mkdir).unwrap()).1;
    guest.call(op::SYMLINK, rootfs, &two_names("link", "x")).unwrap();
    assert_eq!(dir.mode, libc::S_IFDIR | 0o750);
    let expected = if is_root() { (1234, 2345) } else { sys::effective_ids() };
    for name in ["file", "dir", "link"] {
        let meta = fs::symlink_metadata(guest.path(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), expected, "{name}");
    }
    let seen = guest.attr(file);
    assert_eq!((seen.uid, seen.gid), if is_root() { (1234, 2345) } else { (0, 0) });
    // The next one is root's again.
    guest.caller = (0, 0);
    guest.make(rootfs, "root");
    assert_eq!(fs::metadata(guest.path("root")).unwrap().uid(), sys::effective_ids().0);
}

#[test]
fn owners_change_as_far_as_the_server_may() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, _) = guest.make(rootfs, "a");
    let root = SetattrIn { valid: set::UID | set::GID, uid: 0, gid: 0, ..Default::default() };
    assert_eq!(guest.setattr(node, root).unwrap().uid, 0);
    let other = SetattrIn { valid: set::UID, uid: 42, ..Default::default() };
    match is_root() {
        true => assert_eq!(guest.setattr(node, other).unwrap().uid, 42),
        false => assert_eq!(guest.setattr(node, other), Err(libc::EPERM)),
    }
}

#[test]
fn a_set_group_id_directory_gives_its_group() {
    if !is_root() {
        return;
    }
    let mut guest = Guest::new();
    fs::create_dir(guest.path("d")).unwrap();
    std::os::unix::fs::chown(guest.path("d"), Some(0), Some(777)).unwrap();
    fs::set_permissions(guest.path("d"), fs::Permissions::from_mode(0o2775)).unwrap();
    let dir = guest.walk("c1/rootfs/d");
    guest.caller = (1000, 1000);
    guest.make(dir, "a");
    let meta = fs::metadata(guest.path("d/a")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (1000, 777));
}

#[test]
fn writing_kills_set_user_id_if_the_guest_says_so() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, fh) = guest.make(rootfs, "a");
    let mut mode_after = |write_flags| {
        let set = SetattrIn { valid: set::MODE, mode: 0o4755, ..Default::default() };
        assert_eq!(guest.setattr(node, set).unwrap().mode, 0o104755);
        guest.write(node, WriteIn { fh, write_flags, ..Default::default() }, b"x").unwrap();
        guest.attr(node).mode
    };
    assert_eq!(mode_after(WRITE_KILL_SUIDGID), 0o100755);
    if is_root() {
        assert_eq!(mode_after(0), 0o104755);
    }
    assert_eq!(mode_after(WRITE_KILL_SUIDGID), 0o100755);
}

#[test]
fn pages_stay_cached_while_the_host_leaves_the_file_alone() {
    let mut guest = Guest::new();
    let path = guest.path("lib.so");
    fs::write(&path, "old").unwrap();
    let node = guest.walk("c1/rootfs/lib.so");
    // It has just changed: another change might leave no trace.
    assert_eq!(guest.open(node, 0).unwrap().open_flags, 0);
    assert_eq!(guest.open(node, 0).unwrap().open_flags, 0);
    let inode = guest_inode(&guest, node);
    let stat = sys::fstat(inode.fd().unwrap().as_fd()).unwrap();
    let later = stat.st_ctime + 10;
    assert!(!inode.same_as_seen(&stat, later));
    assert!(inode.same_as_seen(&stat, later));
    // Another ctime, as any change makes it.
    let mut changed = stat;
    changed.st_ctime_nsec = (stat.st_ctime_nsec + 1) % 1_000_000_000;
    assert!(!inode.same_as_seen(&changed, later));
    assert!(inode.same_as_seen(&changed, later));
}

fn guest_inode(guest: &Guest, nodeid: u64) -> Arc<Inode> {
    guest.tree.inode(nodeid)
}

#[test]
fn unbinding_closes_everything_at_once() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, fh) = guest.make(rootfs, "a");
    assert_eq!(guest.tree.counts(), (2, 1));
    guest.tree.unbind("/c1/rootfs").unwrap();
    assert_eq!(guest.tree.counts(), (0, 0));
    assert_eq!(guest.call(op::GETATTR, node, &[0; 16]), Err(libc::ESTALE));
    assert_eq!(guest.lookup(rootfs, "a"), Err(libc::ESTALE));
    assert_eq!(guest.read(node, fh, 0, 1), Err(libc::EBADF));
    assert_eq!(guest.lookup(ROOT_ID, "c1"), Err(libc::ENOENT));
    // What comes there later is something else.
    guest.tree.bind("/c1/rootfs", open_path(&guest.path("")), false).unwrap();
    assert_ne!(guest.rootfs(), rootfs);
}

#[test]
fn a_new_session_starts_with_nothing() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    guest.make(rootfs, "a");
    guest.init();
    assert_eq!(guest.tree.counts(), (0, 0));
    guest.rootfs();
    guest.call(op::DESTROY, 0, &[]).unwrap();
    assert_eq!(guest.tree.counts(), (0, 0));
}

#[test]
fn temporary_files_get_a_name_by_linking() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let input = body(|b| {
        CreateIn { flags: libc::O_RDWR as u32, mode: 0o100600, ..Default::default() }.put(b);
        b.extend_from_slice(&string("#1"));
    });
    let Ok(reply) = guest.call(op::TMPFILE, rootfs, &input) else { return };
    let node = entry(&reply).0.nodeid;
    let fh = OpenOut::parse(&reply[EntryOut::SIZE + Attr::SIZE..]).unwrap().fh;
    guest.write(node, WriteIn { fh, ..Default::default() }, b"tmp").unwrap();
    assert_eq!(fs::read_dir(guest.dir.path()).unwrap().count(), 0);
    let link = [&node.to_le_bytes()[..], &string("named")].concat();
    guest.call(op::LINK, rootfs, &link).unwrap();
    assert_eq!(fs::read(guest.path("named")).unwrap(), b"tmp");
}

#[test]
fn syncing_reaches_the_host_only_if_wanted() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, fh) = guest.make(rootfs, "a");
    for fsync_flags in [0, FSYNC_FDATASYNC] {
        let input = body(|b| FsyncIn { fh, fsync_flags, padding: 0 }.put(b));
        assert_eq!(guest.call(op::FSYNC, node, &input), Ok(vec![]));
    }
    guest.tree.set_host_sync(false);
    for node in [ROOT_ID, rootfs] {
        assert_eq!(guest.call(op::SYNCFS, node, &[0; 8]), Ok(vec![]));
    }
    guest.tree.set_host_sync(true);
    assert_eq!(guest.call(op::SYNCFS, ROOT_ID, &[0; 8]), Ok(vec![]));
}

#[test]
fn what_is_not_served_is_answered_all_the_same() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    for opcode in [op::FLUSH, op::ACCESS, op::GETLK, op::SETLK, op::SETLKW, op::BMAP, op::IOCTL, op::POLL] {
        assert_eq!(guest.call(opcode, rootfs, &[0; 64]), Err(libc::ENOSYS));
    }
    for opcode in [0, 7, 19, 52, 4096, u32::MAX] {
        assert_eq!(guest.call(opcode, rootfs, &[0; 64]), Err(libc::ENOSYS));
    }
}

#[test]
fn short_and_lying_requests_are_refused() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, fh) = guest.make(rootfs, "a");
    for len in [0, 1, 39] {
        assert_eq!(guest.send(&vec![1; len], 100), None);
    }
    for len in [0, 39, 41, u32::MAX] {
        let header = body(|b| InHeader { len, opcode: op::LOOKUP, ..Default::default() }.put(b));
        assert_eq!(guest.send(&header, 100), None, "{len}");
    }
    // No room for even an error.
    let header = body(|b| InHeader { len: 40, opcode: op::STATFS, nodeid: 1, ..Default::default() }.put(b));
    assert_eq!(guest.send(&header, 15), None);
    // Room for an error, but not for the reply.
    let reply = guest.send(&header, 40).unwrap();
    assert_eq!(OutHeader::parse(&reply).unwrap().error, -libc::ERANGE);
    // Bodies too short for their opcode.
    for opcode in 1..=51 {
        if !matches!(opcode, op::FORGET | op::BATCH_FORGET | op::INTERRUPT | op::NOTIFY_REPLY) {
            let _ = guest.call(opcode, rootfs, &[]);
            let _ = guest.call(opcode, node, &[0xff; 7]);
        }
    }
    // The calls above hold DESTROY, which takes the handle away.
    let rootfs = guest.rootfs();
    let node = guest.lookup(rootfs, "a").unwrap().0.nodeid;
    assert_eq!(guest.read(node, fh, 0, 1), Err(libc::EBADF));
    let fh = guest.open(node, libc::O_RDWR).unwrap().fh;
    // WRITE that says more than it brings, READ of more than there is room for.
    let lie = body(|b| WriteIn { fh, size: 100, ..Default::default() }.put(b));
    assert_eq!(guest.call(op::WRITE, node, &lie), Err(libc::EINVAL));
    assert_eq!(guest.read(node, fh, u64::MAX, 1), Err(libc::EINVAL));
    assert_eq!(guest.read(node, fh, 0, u32::MAX), Ok(vec![]));
    assert_eq!(guest.call(op::LOOKUP, rootfs, &vec![b'a'; MAX_BODY + 1]), Err(libc::E2BIG));
    // Batches that say more than they bring.
    let batch = body(|b| {
        BatchForgetIn { count: u32::MAX, dummy: 0 }.put(b);
        ForgetOne { nodeid: node, nlookup: u64::MAX }.put(b);
    });
    let header = InHeader { len: 40 + batch.len() as u32, opcode: op::BATCH_FORGET, ..Default::default() };
    let bytes = [body(|b| header.put(b)), batch].concat();
    assert_eq!(guest.send(&bytes, 0), Some(vec![]));
    assert_eq!(guest.call(op::GETATTR, node, &[0; 16]), Err(libc::ESTALE));
}

#[test]
fn numbers_of_others_are_refused() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, fh) = guest.make(rootfs, "a");
    let (other, _) = guest.make(rootfs, "b");
    for nodeid in [0, 999, u64::MAX, 1 << 63, other, ROOT_ID] {
        assert!(guest.read(nodeid, fh, 0, 1).is_err(), "{nodeid}");
        assert!(guest.write(nodeid, WriteIn { fh, ..Default::default() }, b"x").is_err());
    }
    assert_eq!(guest.read(node, fh + 99, 0, 1), Err(libc::EBADF));
    for nodeid in [0, 999, u64::MAX] {
        assert_eq!(guest.call(op::GETATTR, nodeid, &[0; 16]), Err(libc::ESTALE));
        assert_eq!(guest.lookup(nodeid, "a"), Err(libc::ESTALE));
        guest.forget(nodeid, 1);
    }
    guest.forget(ROOT_ID, u64::MAX);
    guest.attr(ROOT_ID);
}

#[test]
fn open_files_have_an_end() {
    let mut guest = Guest::new();
    guest.tree.set_limit(20);
    let rootfs = guest.rootfs();
    let (node, fh) = guest.make(rootfs, "a");
    let results: Vec<_> = (0..20).map(|_| guest.open(node, 0)).collect();
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 17);
    assert_eq!(results.last(), Some(&Err(libc::ENFILE)));
    assert_eq!(guest.lookup(rootfs, "a").unwrap().0.nodeid, node);
    fs::write(guest.path("b"), "").unwrap();
    assert_eq!(guest.lookup(rootfs, "b"), Err(libc::ENFILE));
    guest.release(node, fh).unwrap();
    guest.lookup(rootfs, "b").unwrap();
}

/// A guest with room for 50 descriptors that knows 200 files, each with its name in it.
fn crowded() -> (Guest, u64, Vec<u64>) {
    let mut guest = Guest::new();
    guest.tree.set_limit(50);
    let rootfs = guest.rootfs();
    let nodes = (0..200).map(|n| {
        let name = format!("f{n}");
        fs::write(guest.path(&name), &name).unwrap();
        guest.lookup(rootfs, &name).unwrap().0.nodeid
    });
    let nodes = nodes.collect();
    assert!(guest.tree.descriptors() <= 50);
    (guest, rootfs, nodes)
}

#[test]
fn a_guest_may_know_more_files_than_there_are_descriptors() {
    let (mut guest, rootfs, nodes) = crowded();
    for (n, node) in nodes.iter().enumerate() {
        let name = format!("f{n}");
        assert_eq!(guest.attr(*node).size, name.len() as u64);
        let fh = guest.open(*node, libc::O_RDONLY).unwrap().fh;
        assert_eq!(guest.read(*node, fh, 0, 9).unwrap(), name.as_bytes());
        guest.release(*node, fh).unwrap();
        assert_eq!(guest.lookup(rootfs, &name).unwrap().0.nodeid, *node);
    }
    assert!(guest.tree.descriptors() <= 50);
    for node in nodes {
        guest.forget(node, 2);
    }
    assert_eq!((guest.tree.counts().0, guest.tree.descriptors()), (1, 1));
}

#[test]
fn directories_are_found_again_too() {
    let mut guest = Guest::new();
    guest.tree.set_limit(20);
    let rootfs = guest.rootfs();
    let mut dirs = vec![rootfs];
    for n in 0..60 {
        let path = guest.path(&vec!["d"; n + 1].join("/"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "").unwrap();
        dirs.push(guest.lookup(dirs[n], "d").unwrap().0.nodeid);
    }
    assert!(guest.tree.descriptors() <= 20);
    for dir in &dirs[1..] {
        guest.lookup(*dir, "file").unwrap();
        assert_eq!(guest.attr(*dir).mode & libc::S_IFMT, libc::S_IFDIR);
    }
    // Moving one in the middle moves what is below.
    guest.rename((dirs[29], "d"), (rootfs, "moved"), 0).unwrap();
    guest.attr(dirs[60]);
    // The host makes what was below be above: out-of-date places lead round, and nowhere.
    let (a, b) = (guest.path("a"), guest.path("a/b"));
    fs::create_dir_all(&b).unwrap();
    let a_node = guest.lookup(rootfs, "a").unwrap().0.nodeid;
    let b_node = guest.lookup(a_node, "b").unwrap().0.nodeid;
    fs::rename(&b, guest.path("b")).unwrap();
    fs::rename(&a, guest.path("b/a")).unwrap();
    assert_eq!(guest.lookup(b_node, "a").unwrap().0.nodeid, a_node);
    for dir in &dirs {
        guest.call(op::GETATTR, *dir, &[0; 16]).unwrap();
        guest.call(op::LOOKUP, *dir, &string("file")).unwrap();
    }
    let _ = guest.call(op::GETATTR, a_node, &[0; 16]);
    let _ = guest.call(op::GETATTR, b_node, &[0; 16]);
    guest.tree.unbind("/c1/rootfs").unwrap();
    assert_eq!(guest.tree.descriptors(), 0);
}

#[test]
fn what_the_guest_moves_and_removes_is_not_lost_without_a_descriptor() {
    let (mut guest, rootfs, nodes) = crowded();
    guest.call(op::UNLINK, rootfs, &string("f0")).unwrap();
    assert_eq!(guest.attr(nodes[0]).nlink, 0);
    guest.rename((rootfs, "f1"), (rootfs, "f2"), 0).unwrap();
    assert_eq!((guest.attr(nodes[1]).nlink, guest.attr(nodes[2]).nlink), (1, 0));
    let link = [&nodes[3].to_le_bytes()[..], &string("g3")].concat();
    assert_eq!(entry(&guest.call(op::LINK, rootfs, &link).unwrap()).0.nodeid, nodes[3]);
    assert!(guest.tree.descriptors() <= 50);
}

#[test]
fn what_the_host_moves_meanwhile_is_looked_up_again() {
    let (mut guest, rootfs, nodes) = crowded();
    fs::rename(guest.path("f0"), guest.path("moved")).unwrap();
    fs::remove_file(guest.path("f1")).unwrap();
    fs::write(guest.path("f1"), "another").unwrap();
    for node in &nodes[..2] {
        assert_eq!(guest.call(op::GETATTR, *node, &[0; 16]), Err(libc::ESTALE));
        assert_eq!(guest.open(*node, 0), Err(libc::ESTALE));
    }
    assert_eq!(guest.lookup(rootfs, "moved").unwrap().0.nodeid, nodes[0]);
    guest.attr(nodes[0]);
    // The host may have given the removed file's number to the new one.
    let (another, attr) = guest.lookup(rootfs, "f1").unwrap();
    assert_eq!(attr.size, 7);
    assert_ne!(another.nodeid, nodes[1]);
}

#[test]
fn a_full_disk_is_the_guests_to_see() {
    // /dev/full is no regular file; a file size limit of the process would send SIGXFSZ. What is left everywhere is
    // a length that no file system has room for.
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, fh) = guest.make(rootfs, "a");
    let input = FallocateIn { fh, offset: 0, length: 1 << 52, mode: 0, padding: 0 };
    let result = guest.call(op::FALLOCATE, node, &body(|b| input.put(b)));
    assert!(matches!(result, Err(libc::ENOSPC | libc::EFBIG)), "{result:?}");
}

#[test]
fn host_changes_show_in_attributes_and_lookups() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, _) = guest.make(rootfs, "a");
    let file = fs::OpenOptions::new().write(true).open(guest.path("a")).unwrap();
    file.write_at(b"host", 0).unwrap();
    assert_eq!(guest.attr(node).size, 4);
    fs::rename(guest.path("a"), guest.path("b")).unwrap();
    assert_eq!(guest.lookup(rootfs, "a"), Err(libc::ENOENT));
    let (found, attr) = guest.lookup(rootfs, "b").unwrap();
    assert_eq!((found.nodeid, found.entry_valid, found.attr_valid, attr.size), (node, 1, 1, 4));
}

/// Bytes and small numbers mixed: numbers hit handles and lengths that exist.
fn random_body() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        (0u64..9).prop_map(|n| n.to_le_bytes().to_vec()),
        proptest::collection::vec(any::<u8>(), 8),
        Just(b"a\0b\0user.".to_vec()),
    ];
    (proptest::collection::vec(word, 0..24), 0usize..8).prop_map(|(words, cut)| {
        let mut bytes = words.concat();
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    // A scratch directory holds whatever the bytes happen to make.
    #[test]
    fn random_requests_never_panic(
        requests in proptest::collection::vec(
            (0u32..56, 0u64..6, random_body(), 0usize..300), 1..40)
    ) {
        let mut guest = Guest::new();
        guest.tree.set_host_sync(false);
        let rootfs = guest.rootfs();
        let (node, _) = guest.make(rootfs, "a");
        let nodes = [0, 1, rootfs, node, 1 << 63 | 2, u64::MAX];
        for (opcode, nodeid, body, room) in requests {
            let mut bytes = Vec::new();
            let len = (InHeader::SIZE + body.len()) as u32;
            InHeader { len, opcode, nodeid: nodes[nodeid as usize], ..Default::default() }.put(&mut bytes);
            bytes.extend_from_slice(&body);
            guest.send(&bytes, room);
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), room in 0usize..300) {
        Guest::new().send(&bytes, room);
    }
}
