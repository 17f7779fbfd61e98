//! What our guest's kernel leaves out: opens, replies to RELEASE, lookups in directories that it has created.

use super::watch::owner;
use super::*;
use crate::share::unopened::MAX_UNOPENED;
use crate::share::watch::LASTING;

impl Guest {
    /// Sends a request without space for a reply.
    fn post(&mut self, opcode: u32, nodeid: u64, body: &[u8]) {
        let mut bytes = Vec::new();
        let len = (InHeader::SIZE + body.len()) as u32;
        InHeader { len, opcode, nodeid, ..Default::default() }.put(&mut bytes);
        bytes.extend_from_slice(body);
        assert_eq!(self.send(&bytes, 0), Some(vec![]));
    }

    fn mkdir(&mut self, dir: u64, name: &str) -> Attr {
        let body = body(|b| {
            MkdirIn { mode: 0o755, umask: 0 }.put(b);
            b.extend_from_slice(&string(name));
        });
        entry(&self.call(op::MKDIR, dir, &body).unwrap()).1
    }
}

#[test]
fn a_release_without_space_for_a_reply_closes_the_file() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, fh) = guest.make(rootfs, "a");
    let release = body(|b| ReleaseIn { fh, ..Default::default() }.put(b));
    assert_eq!(guest.tree.counts().1, 1);
    guest.post(op::RELEASE, node, &release);
    assert_eq!(guest.tree.counts().1, 0);
    // Of an unknown file nobody hears.
    guest.post(op::RELEASEDIR, node, &release);
    guest.post(op::RELEASE, 999, &[]);
    // FORGET may come first: its queue is another one.
    let (node, fh) = guest.make(rootfs, "b");
    guest.forget(node, 1);
    guest.post(op::RELEASE, node, &body(|b| ReleaseIn { fh, ..Default::default() }.put(b)));
    assert_eq!(guest.tree.counts().1, 0);
}

#[test]
fn a_file_that_is_not_open_can_be_read_and_not_changed() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let nodes: Vec<_> = (0..MAX_UNOPENED + 6)
        .map(|n| {
            fs::write(guest.path(&format!("f{n}")), format!("contents {n}")).unwrap();
            guest.lookup(rootfs, &format!("f{n}")).unwrap().0.nodeid
        })
        .collect();
    for (n, node) in nodes.iter().enumerate() {
        assert_eq!(guest.read(*node, 0, 9, 10).unwrap(), n.to_string().as_bytes());
        assert_eq!(guest.read(*node, 0, 0, 8).unwrap(), b"contents");
    }
    assert_eq!(guest.tree.counts().1, MAX_UNOPENED);
    assert_eq!(guest.write(nodes[0], WriteIn::default(), b"x"), Err(libc::EBADF));
    assert_eq!(guest.read(rootfs, 0, 0, 8), Err(libc::EISDIR));
    let sync = body(|b| FsyncIn::default().put(b));
    guest.call(op::FSYNC, nodes[1], &sync).unwrap();
    guest.call(op::FSYNCDIR, rootfs, &sync).unwrap();
    for node in nodes {
        guest.forget(node, 1);
    }
    assert_eq!((guest.tree.counts().0, guest.tree.descriptors()), (1, 2));
    guest.init();
    assert_eq!(guest.tree.counts(), (0, 0));
}

#[test]
fn a_write_from_the_page_cache_is_answered_with_the_files_attributes() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, fh) = guest.make(rootfs, "a");
    let mut write = |node, write_flags, data: &[u8]| {
        let body = body(|b| {
            WriteIn { fh, size: data.len() as u32, write_flags, ..Default::default() }.put(b);
            b.extend_from_slice(data);
        });
        guest.call(op::WRITE, node, &body).unwrap()
    };
    let reply = write(node, WRITE_CACHE, b"contents");
    assert_eq!(WriteOut::parse(&reply).unwrap().size, 8);
    let rest = &reply[WriteOut::SIZE..];
    let attr = Attr::parse(&rest[AttrOut::SIZE..]).unwrap();
    assert_eq!((rest.len(), attr.size, attr.mode), (AttrOut::SIZE + Attr::SIZE, 8, 0o100644));
    // Nothing was written, so that the server has not looked.
    let reply = write(node, WRITE_CACHE, b"");
    let attr = Attr::parse(&reply[WriteOut::SIZE + AttrOut::SIZE..]).unwrap();
    assert_eq!((WriteOut::parse(&reply).unwrap().size, attr.mode), (0, 0));
    // The process that writes waits for the number of bytes alone.
    assert_eq!(write(node, 0, b"more").len(), WriteOut::SIZE);
    assert_eq!(guest.attr(node).size, 8);
}

#[test]
fn what_is_not_a_file_is_not_opened_to_be_read() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let made = body(|b| {
        MknodIn { mode: libc::S_IFIFO | 0o600, ..Default::default() }.put(b);
        b.extend_from_slice(&string("fifo"));
    });
    let fifo = entry(&guest.call(op::MKNOD, rootfs, &made).unwrap()).0.nodeid;
    assert_eq!(guest.read(fifo, 0, 0, 8), Err(libc::ENXIO));
    assert_eq!(guest.read(ROOT_ID, 0, 0, 8), Err(libc::EBADF));
    assert_eq!(guest.read(999, 0, 0, 8), Err(libc::ESTALE));
}

#[test]
fn a_file_that_may_stay_unopened_keeps_its_descriptor() {
    let mut guest = owner();
    guest.tree.set_limit(50);
    let rootfs = guest.rootfs();
    let nodes: Vec<_> = (0..100)
        .map(|n| {
            fs::write(guest.path(&format!("f{n}")), n.to_string()).unwrap();
            let (found, _) = guest.lookup(rootfs, &format!("f{n}")).unwrap();
            (n, found.nodeid, found.attr_valid == LASTING)
        })
        .collect();
    // Only as long as there are enough descriptors.
    let kept = nodes.iter().filter(|(_, _, kept)| *kept).count();
    assert!((20..=26).contains(&kept), "{kept}");
    for (n, node, kept) in nodes {
        fs::remove_file(guest.path(&format!("f{n}"))).unwrap();
        let read = guest.read(node, 0, 0, 8);
        assert!(!kept || read == Ok(n.to_string().into_bytes()), "{n}: {read:?}");
    }
}

#[test]
fn a_new_directory_of_the_root_is_known_to_be_empty() {
    let mut guest = owner();
    let rootfs = guest.rootfs();
    guest.lookup(rootfs, "missing").unwrap_err();
    let made = guest.mkdir(rootfs, "a");
    assert_eq!(made.flags & ATTR_EMPTY, ATTR_EMPTY);
    let (a, found) = guest.lookup(rootfs, "a").unwrap();
    assert_eq!(found.flags & ATTR_EMPTY, 0);
    guest.told();
    // The guest is told of names that it does not know.
    fs::write(guest.path("a/b"), "").unwrap();
    let (changed, name) = guest.told().remove(0);
    assert_eq!((changed.dir, changed.what, name.as_str()), (a.nodeid, CHANGED_NAME, "b"));
    // Others can change a volume before the server watches it.
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    assert_eq!(guest.mkdir(rootfs, "a").flags & ATTR_EMPTY, 0);
}

#[test]
fn a_directory_is_opened_by_the_first_request_that_reads_it() {
    let mut guest = owner();
    let rootfs = guest.rootfs();
    let names: Vec<_> = (0..30).map(|n| format!("a name that is not short {n:02}")).collect();
    names.iter().for_each(|name| fs::write(guest.path(name), "").unwrap());
    let read = |guest: &mut Guest, fh: u64, offset: u64, size: u32| {
        let input = ReadIn { fh, offset, size, ..Default::default() };
        let reply = guest.call(op::READDIR, rootfs, &body(|b| input.put(b))).unwrap();
        let (entries, end) = reply.split_at(reply.len() - Dirent::SIZE);
        let found = names.iter().filter(|name| entries.windows(name.len()).any(|at| at == name.as_bytes()));
        (found.cloned().collect::<Vec<_>>(), Dirent::parse(end).unwrap())
    };
    // All at once: nothing stays open.
    let (found, end) = read(&mut guest, 0, 0, 4096);
    assert_eq!((found.len(), end.ino, end.namelen, end.kind), (30, 0, 0, READDIR_ENDS | READDIR_LASTS));
    assert_eq!(guest.tree.counts().1, 0);
    // In parts: the first one says under which number it is open.
    let (mut found, first) = read(&mut guest, 0, 0, 800);
    assert_eq!((first.kind, guest.tree.counts().1), (READDIR_LASTS, 1));
    let mut end = first;
    while end.kind & READDIR_ENDS == 0 {
        let (more, next) = read(&mut guest, first.ino, end.off, 800);
        assert_eq!(next.ino, first.ino);
        found.extend(more);
        end = next;
    }
    found.sort();
    assert_eq!(found, names);
    guest.post(op::RELEASEDIR, rootfs, &body(|b| ReleaseIn { fh: first.ino, ..Default::default() }.put(b)));
    assert_eq!(guest.tree.counts().1, 0);
    // A directory of a volume belongs to nobody.
    let (dirs, files) = (guest.mkdir(rootfs, "dir").flags, guest.make(rootfs, "file").0);
    assert_eq!(dirs & ATTR_OWNED, ATTR_OWNED);
    let not_a_directory = body(|b| ReadIn { size: 4096, ..Default::default() }.put(b));
    assert_eq!(guest.call(op::READDIR, files, &not_a_directory), Err(libc::ENOTDIR));
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    assert_eq!(guest.mkdir(rootfs, "dir").flags & ATTR_OWNED, 0);
}

#[test]
fn a_file_is_new_if_the_request_has_created_it() {
    let mut guest = owner();
    let rootfs = guest.rootfs();
    let flags = |guest: &mut Guest| {
        let input = CreateIn { flags: libc::O_RDWR as u32, mode: 0o100644, ..Default::default() };
        let body = body(|b| {
            input.put(b);
            b.extend_from_slice(&string("a"));
        });
        entry(&guest.call(op::CREATE, rootfs, &body).unwrap()).1.flags & ATTR_EMPTY
    };
    assert_eq!([flags(&mut guest), flags(&mut guest)], [ATTR_EMPTY, 0]);
}
