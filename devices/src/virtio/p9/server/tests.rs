use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::share::Terms;
use crate::share::testing::{exchange, open_path, scratch};
use crate::virtio::p9::fids::MAX_XATTR_BYTES;
use crate::virtio::p9::wire::{NO_FID, set};

/// A message's body under construction.
#[derive(Clone, Default)]
struct Body(Vec<u8>);

impl Body {
    fn u8(mut self, number: u8) -> Body {
        self.0.push(number);
        self
    }

    fn u16(mut self, number: u16) -> Body {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    fn u32(mut self, number: u32) -> Body {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    fn u64(mut self, number: u64) -> Body {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    fn text(mut self, text: &str) -> Body {
        put_bytes(&mut self.0, text.as_bytes());
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Body {
        self.0.extend_from_slice(bytes);
        self
    }
}

fn body() -> Body {
    Body::default()
}

type Reply = std::result::Result<Vec<u8>, i32>;

/// Sends messages like a guest's kernel, and malformed bytes.
struct Guest {
    server: P9Server,
    tree: ShareTree,
    dir: TempDir,
}

/// The fid of the share's root.
const ROOT: u32 = 0;
/// The fid of /c1/rootfs.
const TOP: u32 = 1;

impl Guest {
    /// Returns a guest of a share in which /c1/rootfs is bound to a new directory.
    fn new(read_only: bool) -> Guest {
        let (tree, dir) = scratch(Terms { read_only, ..Terms::default() });
        let mut guest = Guest { server: P9Server::new(&tree), tree, dir };
        let version = guest.call(kind::VERSION, body().u32(512_000).text("9P2000.L")).unwrap();
        assert_eq!(version, body().u32(512_000).text("9P2000.L").0);
        guest.attach(ROOT, 0).unwrap();
        guest.walk(ROOT, TOP, &["c1", "rootfs"]).unwrap();
        guest
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Sends raw bytes in two pieces. `None` if the queue must refuse them.
    fn send(&mut self, bytes: &[u8], room: usize) -> Option<Vec<u8>> {
        exchange(bytes, room, [9, 11], |request, reply| self.server.handle(request, reply))
    }

    fn call(&mut self, what: u8, body: Body) -> Reply {
        let size = (HEADER + body.0.len()) as u32;
        let bytes = Body::default().u32(size).u8(what).u16(0x1234).bytes(&body.0).0;
        let reply = self.send(&bytes, 600_000).unwrap();
        let mut fields = Fields(&reply);
        assert_eq!(fields.u32().unwrap() as usize, reply.len());
        let got = fields.u8().unwrap();
        assert_eq!(fields.u16(), Ok(0x1234));
        if got == kind::RLERROR {
            return Err(fields.u32().unwrap() as i32);
        }
        assert_eq!(got, what + 1);
        Ok(fields.0.to_vec())
    }

    fn attach(&mut self, fid: u32, user: u32) -> Reply {
        self.call(kind::ATTACH, body().u32(fid).u32(NO_FID).text("root").text("").u32(user))
    }

    /// Returns the number of names found.
    fn walk(&mut self, fid: u32, new: u32, names: &[&str]) -> std::result::Result<usize, i32> {
        let start = body().u32(fid).u32(new).u16(names.len() as u16);
        let reply = self.call(kind::WALK, names.iter().fold(start, |b, name| b.text(name)))?;
        assert_eq!(reply.len(), 2 + 13 * usize::from(reply[0]));
        Ok(reply[0].into())
    }

    fn open(&mut self, fid: u32, flags: i32) -> Reply {
        self.call(kind::LOPEN, body().u32(fid).u32(flags as u32))
    }

    /// Creates a file in /c1/rootfs and opens it as `fid`.
    fn create(&mut self, fid: u32, name: &str) -> Reply {
        self.walk(TOP, fid, &[]).unwrap();
        self.call(kind::LCREATE, body().u32(fid).text(name).u32(libc::O_RDWR as u32).u32(0o640).u32(0))
    }

    fn write(&mut self, fid: u32, offset: u64, data: &[u8]) -> Reply {
        self.call(kind::WRITE, body().u32(fid).u64(offset).u32(data.len() as u32).bytes(data))
    }

    fn read(&mut self, fid: u32, offset: u64, count: u32) -> Reply {
        let reply = self.call(kind::READ, body().u32(fid).u64(offset).u32(count))?;
        assert_eq!(reply[..4], ((reply.len() - 4) as u32).to_le_bytes());
        Ok(reply[4..].to_vec())
    }

    fn clunk(&mut self, fid: u32) -> Reply {
        self.call(kind::CLUNK, body().u32(fid))
    }

    /// Returns mode, number of links and size.
    fn stat(&mut self, fid: u32) -> (u32, u64, u64) {
        let reply = self.call(kind::GETATTR, body().u32(fid).u64(u64::MAX)).unwrap();
        assert_eq!(reply.len(), 153);
        let mut fields = Fields(&reply[21..]);
        let (mode, _, _) = (fields.u32().unwrap(), fields.u32(), fields.u32());
        let (links, _, size) = (fields.u64().unwrap(), fields.u64(), fields.u64().unwrap());
        (mode, links, size)
    }

    fn setattr(&mut self, fid: u32, valid: u32, mode: u32, size: u64) -> Reply {
        let ids = body().u32(fid).u32(valid).u32(mode).u32(0).u32(0).u64(size);
        self.call(kind::SETATTR, ids.u64(5).u64(6).u64(7).u64(8))
    }

    fn unlink(&mut self, name: &str, flags: u32) -> Reply {
        self.call(kind::UNLINKAT, body().u32(TOP).text(name).u32(flags))
    }

    fn list(&mut self, fid: u32, count: u32) -> Vec<String> {
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let reply = self.call(kind::READDIR, body().u32(fid).u64(offset).u32(count)).unwrap();
            assert!(reply.len() <= 4 + count as usize);
            let mut fields = Fields(&reply[4..]);
            if fields.0.is_empty() {
                names.sort();
                return names;
            }
            while !fields.0.is_empty() {
                fields = Fields(&fields.0[13..]);
                offset = fields.u64().unwrap();
                fields.u8().unwrap();
                names.push(String::from_utf8(fields.bytes().unwrap().to_vec()).unwrap());
            }
        }
    }
}

#[test]
fn a_version_that_is_not_ours_is_unknown_and_a_new_one_ends_the_session() {
    let mut guest = Guest::new(false);
    guest.create(2, "f").unwrap();
    assert_ne!(guest.tree.counts(), (0, 0));
    let reply = guest.call(kind::VERSION, body().u32(u32::MAX).text("9P2000.u")).unwrap();
    assert_eq!(reply, body().u32(MSIZE_MAX).text("unknown").0);
    assert_eq!((guest.tree.counts(), guest.server.fids.len()), ((0, 0), 0));
    assert_eq!(guest.read(2, 0, 1), Err(libc::EBADF));
    assert_eq!(guest.call(kind::VERSION, body().u32(100).text("9P2000.L")), Err(libc::EMSGSIZE));
}

#[test]
fn written_data_is_read_back_and_on_the_host() {
    let mut guest = Guest::new(false);
    guest.create(2, "f").unwrap();
    assert_eq!(guest.write(2, 0, b"hello"), Ok(5u32.to_le_bytes().to_vec()));
    assert_eq!(guest.read(2, 1, 100).unwrap(), b"ello");
    assert_eq!(fs::read(guest.path("f")).unwrap(), b"hello");
    assert_eq!(fs::metadata(guest.path("f")).unwrap().mode() & 0o7777, 0o640);
    guest.clunk(2).unwrap();
    // One lookup of the directory is left; all others were taken back with their fids.
    assert_eq!(guest.tree.counts(), (1, 0));
}

#[test]
fn a_file_without_a_name_lives_on_in_its_fid() {
    let mut guest = Guest::new(false);
    guest.create(2, "f").unwrap();
    guest.write(2, 0, b"before").unwrap();
    guest.unlink("f", 0).unwrap();
    assert_eq!(guest.stat(2), (0o100640, 0, 6));
    guest.setattr(2, set::SIZE, 0, 3).unwrap();
    assert_eq!(guest.read(2, 0, 9).unwrap(), b"bef");
    assert_eq!(guest.walk(TOP, 3, &["f"]), Err(libc::ENOENT));
}

#[test]
fn names_are_made_moved_linked_and_removed() {
    let mut guest = Guest::new(false);
    guest.call(kind::MKDIR, body().u32(TOP).text("d").u32(0o750).u32(0)).unwrap();
    guest.call(kind::SYMLINK, body().u32(TOP).text("l").text("../x").u32(0)).unwrap();
    guest.walk(TOP, 2, &["l"]).unwrap();
    assert_eq!(guest.call(kind::READLINK, body().u32(2)).unwrap(), body().text("../x").0);
    guest.create(3, "f").unwrap();
    guest.call(kind::LINK, body().u32(TOP).u32(3).text("g")).unwrap();
    assert_eq!(guest.stat(3).1, 2);
    guest.walk(TOP, 4, &["d"]).unwrap();
    guest.call(kind::RENAMEAT, body().u32(TOP).text("g").u32(4).text("h")).unwrap();
    assert!(guest.path("d/h").exists());
    // By the fid alone, like older guests.
    guest.walk(4, 5, &["h"]).unwrap();
    guest.call(kind::RENAME, body().u32(5).u32(TOP).text("e")).unwrap();
    guest.walk(TOP, 6, &["e"]).unwrap();
    guest.call(kind::REMOVE, body().u32(6)).unwrap();
    assert!(guest.path("f").exists() && !guest.path("e").exists());
    assert_eq!(guest.clunk(6), Err(libc::EBADF));
    assert_eq!(guest.unlink("d", 0), Err(libc::EISDIR));
    assert_eq!(guest.unlink("d", 1), Err(libc::EINVAL));
    guest.unlink("d", libc::AT_REMOVEDIR as u32).unwrap();
}

#[test]
fn a_directory_is_listed_whole_in_small_answers() {
    let mut guest = Guest::new(false);
    let mut wanted: Vec<String> = (0..300).map(|n| format!("file-{n:03}")).collect();
    wanted.iter().for_each(|name| fs::write(guest.path(name), "").unwrap());
    wanted.splice(0..0, [".".to_owned(), "..".to_owned()]);
    guest.walk(TOP, 2, &[]).unwrap();
    guest.open(2, libc::O_RDONLY).unwrap();
    assert_eq!(guest.list(2, 256), wanted);
    assert_eq!(guest.list(2, u32::MAX), wanted);
    guest.walk(ROOT, 3, &["c1"]).unwrap();
    assert_eq!(guest.open(3, libc::O_RDWR), Err(libc::EISDIR));
    guest.open(3, libc::O_RDONLY).unwrap();
    assert_eq!(guest.list(3, 4096), [".", "..", "rootfs"]);
}

#[test]
fn extended_attributes_are_set_read_listed_and_removed() {
    let mut guest = Guest::new(false);
    guest.create(2, "f").unwrap();
    let set = |guest: &mut Guest, name: &str, value: &[u8], flags: u32| {
        guest.walk(TOP, 3, &["f"]).unwrap();
        let new = body().u32(3).text(name).u64(value.len() as u64).u32(flags);
        let made = guest.call(kind::XATTRCREATE, new).and_then(|_| guest.write(3, 0, value));
        guest.clunk(3).and(made)
    };
    set(&mut guest, "user.a", b"value", 0).unwrap();
    assert_eq!(set(&mut guest, "trusted.a", b"value", 0), Err(libc::EOPNOTSUPP));
    let read = |guest: &mut Guest, name: &str| {
        let len = guest.call(kind::XATTRWALK, body().u32(2).u32(4).text(name))?;
        let value = guest.read(4, 0, 100)?;
        assert_eq!(len, (value.len() as u64).to_le_bytes());
        guest.clunk(4).map(|_| value)
    };
    assert_eq!(read(&mut guest, "user.a").unwrap(), b"value");
    assert_eq!(read(&mut guest, "").unwrap(), b"user.a\0");
    guest.walk(TOP, 3, &["f"]).unwrap();
    let remove = body().u32(3).text("user.a").u64(0).u32(libc::XATTR_REPLACE as u32);
    guest.call(kind::XATTRCREATE, remove).unwrap();
    guest.clunk(3).unwrap();
    assert_eq!(read(&mut guest, "user.a"), Err(libc::ENODATA));
}

#[test]
fn extended_attributes_on_their_way_are_bounded() {
    let mut guest = Guest::new(false);
    guest.create(2, "f").unwrap();
    let value = vec![7; 65536];
    let begin = |guest: &mut Guest, fid: u32, size: u64| {
        guest.walk(TOP, fid, &["f"]).unwrap();
        guest.call(kind::XATTRCREATE, body().u32(fid).text("user.a").u64(size).u32(0))
    };
    assert_eq!(begin(&mut guest, 3, 65537), Err(libc::E2BIG));
    let most = (MAX_XATTR_BYTES / value.len()) as u32;
    for fid in 10..10 + most {
        begin(&mut guest, fid, 65536).unwrap();
    }
    assert_eq!(begin(&mut guest, 4, 1), Err(libc::ENOSPC));
    // Out of order, and more than announced.
    assert_eq!(guest.write(10, 1, b"x"), Err(libc::EINVAL));
    assert_eq!(guest.write(10, 0, &[value.clone(), vec![0]].concat()), Err(libc::EINVAL));
    // Less than announced.
    guest.write(10, 0, b"x").unwrap();
    assert_eq!(guest.clunk(10), Err(libc::EINVAL));
    begin(&mut guest, 5, 1).unwrap();
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let mut guest = Guest::new(false);
    for name in ["", ".", "..", "a/b", "/", "../etc", "/etc/passwd", "a\0b"] {
        assert_eq!(guest.walk(TOP, 9, &[name]), Err(libc::EINVAL), "{name:?}");
        let mkdir = body().u32(TOP).text(name).u32(0o755).u32(0);
        assert_eq!(guest.call(kind::MKDIR, mkdir), Err(libc::EINVAL), "{name:?}");
        let rename = body().u32(TOP).text(name).u32(TOP).text("x");
        assert_eq!(guest.call(kind::RENAMEAT, rename), Err(libc::EINVAL), "{name:?}");
        assert_eq!(guest.unlink(name, 0), Err(libc::EINVAL), "{name:?}");
    }
    assert_eq!(guest.walk(TOP, 9, &[&"x".repeat(256)]), Err(libc::ENAMETOOLONG));
    std::os::unix::fs::symlink("/etc", guest.path("out")).unwrap();
    assert_eq!(guest.walk(TOP, 9, &["out", "passwd"]), Ok(1));
    assert_eq!(guest.clunk(9), Err(libc::EBADF));
}

#[test]
fn fids_that_are_unknown_in_use_or_open_are_refused() {
    let mut guest = Guest::new(false);
    assert_eq!(guest.walk(77, 78, &[]), Err(libc::EBADF));
    assert_eq!(guest.walk(TOP, ROOT, &[]), Err(libc::EBADF));
    assert_eq!(guest.walk(TOP, NO_FID, &[]), Err(libc::EBADF));
    assert_eq!(guest.attach(TOP, 0), Err(libc::EBADF));
    assert_eq!(guest.read(TOP, 0, 1), Err(libc::EBADF));
    guest.create(2, "f").unwrap();
    assert_eq!(guest.open(2, 0), Err(libc::EBADF));
    assert_eq!(guest.walk(2, 2, &[]), Err(libc::EBADF));
    assert_eq!(guest.call(kind::AUTH, body().u32(5).text("").text("").u32(0)), Err(libc::EOPNOTSUPP));
    assert_eq!(guest.call(250, body()), Err(libc::EOPNOTSUPP));
}

#[test]
fn a_read_only_share_refuses_every_change() {
    let mut guest = Guest::new(true);
    fs::write(guest.path("f"), "x").unwrap();
    guest.walk(TOP, 2, &["f"]).unwrap();
    let name = || body().u32(TOP).text("n");
    let changes = [
        (kind::MKDIR, name().u32(0o755).u32(0)),
        (kind::MKNOD, name().u32(libc::S_IFIFO).u32(0).u32(0).u32(0)),
        (kind::SYMLINK, name().text("t").u32(0)),
        (kind::LINK, body().u32(TOP).u32(2).text("n")),
        (kind::RENAMEAT, body().u32(TOP).text("f").u32(TOP).text("n")),
        (kind::RENAME, body().u32(2).u32(TOP).text("n")),
        (kind::UNLINKAT, body().u32(TOP).text("f").u32(0)),
        (kind::LCREATE, body().u32(TOP).text("n").u32(libc::O_RDWR as u32).u32(0o644).u32(0)),
        (kind::XATTRCREATE, body().u32(2).text("user.a").u64(1).u32(0)),
        (kind::LOPEN, body().u32(2).u32(libc::O_WRONLY as u32)),
        (kind::LOPEN, body().u32(2).u32(libc::O_TRUNC as u32)),
        (kind::REMOVE, body().u32(2)),
    ];
    assert_eq!(guest.setattr(2, set::SIZE, 0, 0), Err(libc::EROFS));
    for (what, body) in changes {
        assert_eq!(guest.call(what, body), Err(libc::EROFS), "message {what}");
    }
    assert_eq!(fs::read(guest.path("f")).unwrap(), b"x");
    assert_eq!(fs::read_dir(guest.dir.path()).unwrap().count(), 1);
}

#[test]
fn a_single_file_is_shared_alone() {
    let mut guest = Guest::new(false);
    fs::write(guest.path("hosts"), "127.0.0.1").unwrap();
    guest.tree.bind("/c1/mounts/0", open_path(&guest.path("hosts")), Terms::default()).unwrap();
    guest.walk(ROOT, 2, &["c1", "mounts", "0"]).unwrap();
    assert_eq!(guest.walk(2, 3, &["hosts"]), Err(libc::ENOTDIR));
    guest.open(2, libc::O_RDWR).unwrap();
    assert_eq!(guest.read(2, 0, 100).unwrap(), b"127.0.0.1");
    guest.write(2, 0, b"10").unwrap();
    assert_eq!(fs::read(guest.path("hosts")).unwrap(), b"107.0.0.1");
}

#[test]
fn numbers_above_their_limits_are_refused_or_reduced() {
    let mut guest = Guest::new(false);
    guest.create(2, "f").unwrap();
    guest.write(2, 0, &vec![1; 600_000]).unwrap();
    // Limited to the size of a message.
    assert_eq!(guest.read(2, 0, u32::MAX).unwrap().len(), 512_000 - DATA_HEADER);
    assert_eq!(guest.read(2, u64::MAX, 1), Err(libc::EINVAL));
    let liar = body().u32(2).u64(0).u32(u32::MAX).bytes(b"x");
    assert_eq!(guest.call(kind::WRITE, liar), Err(libc::EPROTO));
    assert_eq!(guest.walk(TOP, 9, &["x"; 17]), Err(libc::EPROTO));
    assert_eq!(guest.call(kind::MKDIR, body().bytes(&[0; 20_000])), Err(libc::E2BIG));
    assert_eq!(guest.server.faults.count(), 2);
}

#[test]
fn a_truncated_message_is_answered_and_counted() {
    let mut guest = Guest::new(false);
    let whole = body().u32(TOP).text("n").u32(0o755).u32(0).0;
    for len in 0..whole.len() {
        assert_eq!(guest.call(kind::MKDIR, body().bytes(&whole[..len])), Err(libc::EPROTO), "{len}");
    }
    assert_eq!(guest.server.faults.count(), whole.len() as u64);
    // A size larger than what was sent.
    let reply = guest.send(&body().u32(100).u8(kind::CLUNK).u16(1).u32(TOP).0, 100).unwrap();
    assert_eq!(reply, body().u32(11).u8(kind::RLERROR).u16(1).u32(libc::EPROTO as u32).0);
    assert_eq!(guest.send(&[1, 2, 3], 100), None);
    assert_eq!(guest.send(&body().u32(11).u8(kind::CLUNK).u16(1).u32(TOP).0, 10), None);
    assert!(!guest.path("n").exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_never_panic(
        messages in prop::collection::vec((0u8..=255, prop::collection::vec(any::<u8>(), 0..64), 0u32..4), 1..20),
    ) {
        let mut guest = Guest::new(true);
        for (what, bytes, fid) in messages {
            // Half of the messages start with an existing fid.
            let bytes = if fid < 2 { body().u32(fid).bytes(&bytes).0 } else { bytes };
            let what = if what % 2 == 0 { what } else { what / 2 };
            let size = (HEADER + bytes.len()) as u32;
            let message = body().u32(size).u8(what).u16(9).bytes(&bytes).0;
            prop_assert!(guest.send(&message, 8192).is_some());
            guest.send(&bytes, 64);
        }
    }
}

#[test]
fn a_device_node_is_refused_as_over_virtio_fs() {
    let mut guest = Guest::new(false);
    let mut make = |name: &str, mode: u32, major, minor| {
        guest.call(kind::MKNOD, body().u32(TOP).text(name).u32(mode | 0o600).u32(major).u32(minor).u32(0))
    };
    assert_eq!(make("null", libc::S_IFCHR, 1, 3), Err(libc::EPERM));
    assert_eq!(make("disk", libc::S_IFBLK, 8, 0), Err(libc::EPERM));
    make("fifo", libc::S_IFIFO, 0, 0).unwrap();
}

#[test]
fn locks_of_a_volume_are_refused_and_those_of_a_container_s_root_are_the_guest_s() {
    for (owned, refused) in [(true, 0), (false, 2)] {
        let (tree, dir) = scratch(Terms { owned, ..Terms::default() });
        let mut guest = Guest { server: P9Server::new(&tree), tree, dir };
        guest.call(kind::VERSION, body().u32(512_000).text("9P2000.L")).unwrap();
        guest.attach(ROOT, 0).unwrap();
        guest.walk(ROOT, TOP, &["c1", "rootfs"]).unwrap();
        guest.create(2, "file").unwrap();
        // Lock types: 0 for reading, 1 for writing, 2 to unlock.
        for (kind, status) in [(0, refused), (1, refused), (2, 0)] {
            let lock = body().u32(2).u8(kind).u32(0).u64(0).u64(0).u32(7).text("client");
            assert_eq!(guest.call(kind::LOCK, lock), Ok(vec![status]), "{owned} {kind}");
        }
    }
}
