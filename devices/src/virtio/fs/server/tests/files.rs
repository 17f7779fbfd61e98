//! Files and their content.

use super::*;

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
    // Writeback of a page keeps its offset.
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
fn pages_stay_cached_while_the_host_leaves_the_file_alone() {
    let mut guest = Guest::new();
    let path = guest.path("lib.so");
    fs::write(&path, "old").unwrap();
    let node = guest.walk("c1/rootfs/lib.so");
    // The file has just changed: another change might not be visible.
    assert_eq!(guest.open(node, 0).unwrap().open_flags, 0);
    assert_eq!(guest.open(node, 0).unwrap().open_flags, 0);
    let inode = guest_inode(&guest, node);
    let stat = sys::fstat(inode.fd().unwrap().as_fd()).unwrap();
    let later = stat.st_ctime + 10;
    assert!(!inode.same_as_seen(&stat, later));
    assert!(inode.same_as_seen(&stat, later));
    // Any change gives the file another ctime.
    let mut changed = stat;
    changed.st_ctime_nsec = (stat.st_ctime_nsec + 1) % 1_000_000_000;
    assert!(!inode.same_as_seen(&changed, later));
    assert!(inode.same_as_seen(&changed, later));
}

fn guest_inode(guest: &Guest, nodeid: u64) -> Arc<Inode> {
    guest.tree.inode(nodeid)
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
fn a_full_disk_is_reported_to_the_guest() {
    // /dev/full is not a regular file, and a file size limit of the process would send SIGXFSZ. What works everywhere
    // is a length that is too large for every file system.
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, fh) = guest.make(rootfs, "a");
    let input = FallocateIn { fh, offset: 0, length: 1 << 52, mode: 0, padding: 0 };
    let result = guest.call(op::FALLOCATE, node, &body(|b| input.put(b)));
    assert!(matches!(result, Err(libc::ENOSPC | libc::EFBIG)), "{result:?}");
}

#[test]
fn a_file_that_the_kernel_generates_is_read_past_the_page_cache() {
    let mut guest = Guest::new();
    guest.tree.bind("/c1/mounts/0", open_path(Path::new("/proc/self")), Terms::read_only()).unwrap();
    let node = guest.walk("c1/mounts/0/status");
    assert_eq!(guest.attr(node).size, 0);
    let opened = guest.open(node, 0).unwrap();
    assert_eq!(opened.open_flags, FOPEN_DIRECT_IO);
    assert!(guest.read(node, opened.fh, 0, 4096).unwrap().starts_with(b"Name:\t"));
    // An empty file that somebody may fill and map is read through it.
    let rootfs = guest.rootfs();
    let (node, _) = guest.make(rootfs, "empty");
    assert_eq!(guest.open(node, 0).unwrap().open_flags & FOPEN_DIRECT_IO, 0);
}
