use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::share::ROOT_ID;
use crate::share::inode::Inode;
use crate::share::nodes::{NodeKind, NodePolicy, NodeRule};
use crate::share::sys;
use crate::share::testing::{exchange, open_path, scratch};
use crate::share::{ShareTree, Terms};
use crate::virtio::fs::wire::*;

mod descriptors;
mod fewer;
mod fifos;
mod files;
mod locks;
mod names;
mod owners;
mod requests;
mod saved;
mod shares;
mod watch;

fn is_root() -> bool {
    sys::effective_ids().0 == 0
}

/// Sends requests like a guest's kernel, and malformed bytes.
struct Guest {
    server: Box<dyn FileServer>,
    tree: ShareTree,
    caller: (u32, u32),
    dir: TempDir,
}

/// A reply: the error number, and the bytes after the header.
type Reply = std::result::Result<Vec<u8>, i32>;

impl Guest {
    /// Returns a guest of a share in which /c1/rootfs is bound to a new directory.
    fn new() -> Guest {
        let (tree, dir) = scratch(Terms::default());
        let mut guest = Guest { server: server(&tree), tree, caller: (0, 0), dir };
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

    /// Sends raw bytes in two pieces, with space for `room` bytes of reply. `None` if the queue must refuse the
    /// request.
    fn send(&mut self, bytes: &[u8], room: usize) -> Option<Vec<u8>> {
        exchange(bytes, room, [40, 16], |request, reply| self.server.handle(request, reply))
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

    /// Looks up a path from the root of the share. Returns the last inode's number.
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

    /// Returns all names of a directory with their inode numbers (and the lookups that READDIRPLUS counted).
    fn list(&mut self, dir: u64, opcode: u32, size: u32) -> Vec<(String, u64, u64)> {
        let open = self.call(op::OPENDIR, dir, &body(|b| OpenIn::default().put(b))).unwrap();
        let fh = OpenOut::parse(&open).unwrap().fh;
        let (mut names, mut offset, mut ended) = (Vec::new(), 0, false);
        while !ended {
            let input = ReadIn { fh, offset, size, ..Default::default() };
            let reply = self.call(opcode, dir, &body(|b| input.put(b))).unwrap();
            assert!(reply.len() <= size as usize);
            let (mut rest, end) = reply.split_at(reply.len() - Dirent::SIZE);
            let end = Dirent::parse(end).unwrap();
            assert_eq!((end.ino, end.namelen), (fh, 0));
            ended |= end.kind & READDIR_ENDS != 0;
            if rest.is_empty() {
                break;
            }
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
        self.setxattr_with(nodeid, name, value, 0)
    }

    fn setxattr_with(&mut self, nodeid: u64, name: &str, value: &[u8], setxattr_flags: u32) -> Reply {
        let body = body(|b| {
            SetxattrIn { size: value.len() as u32, flags: 0 }.put(b);
            SetxattrInExt { setxattr_flags, padding: 0 }.put(b);
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
        (LkIn::SIZE, 48),
        (LkOut::SIZE, 24),
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
    // The users in ACLs are those of the host, which an ordinary user cannot act for.
    let acls = if is_root() { 0 } else { init::POSIX_ACL };
    assert_eq!(u64::from(out.flags) | u64::from(out.flags2) << 32, FEATURES & !acls);
    let old = body(|b| InitIn { major: 7, minor: 20, ..Default::default() }.put(b));
    assert_eq!(guest.call(op::INIT, 0, &old), Err(libc::EPROTO));
    let newer = body(|b| InitIn { major: 8, ..Default::default() }.put(b));
    assert_eq!(InitOut::parse(&guest.call(op::INIT, 0, &newer).unwrap()).unwrap().major, 7);
    // A guest without FUSE_SUBMOUNTS must not see that flag.
    let plain =
        body(|b| InitIn { major: 7, minor: 31, flags: init::BIG_WRITES as u32, ..Default::default() }.put(b));
    let out = InitOut::parse(&guest.call(op::INIT, 0, &plain).unwrap()).unwrap();
    assert_eq!((out.minor, u64::from(out.flags)), (31, init::BIG_WRITES));
    let c1 = guest.walk("c1");
    assert_eq!(guest.lookup(c1, "rootfs").unwrap().1.flags, 0);
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
