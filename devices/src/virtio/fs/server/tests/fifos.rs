//! FIFOs that processes of other kernels use as well.

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;

use super::*;

const READ_END: i32 = libc::O_RDONLY;
const WRITE_END: i32 = libc::O_WRONLY;
const EVENTS: i16 = libc::POLLIN | libc::POLLOUT;

impl Guest {
    fn fifo(&mut self) -> (u64, Attr) {
        let rootfs = self.rootfs();
        let made = body(|b| {
            MknodIn { mode: libc::S_IFIFO | 0o600, ..Default::default() }.put(b);
            b.extend_from_slice(&string("fifo"));
        });
        let (entry, attr) = entry(&self.call(op::MKNOD, rootfs, &made).unwrap());
        (entry.nodeid, attr)
    }

    fn poll(&mut self, node: u64, fh: u64) -> std::result::Result<i16, i32> {
        let body = body(|b| PollIn { fh, events: EVENTS as u32, ..Default::default() }.put(b));
        self.call(op::POLL, node, &body).map(|reply| PollOut::parse(&reply).unwrap().revents as i16)
    }
}

/// Opens the FIFO as a process of the host does that must not wait.
fn on_host(guest: &Guest, flags: i32) -> fs::File {
    let (read, write) = (flags != WRITE_END, flags == WRITE_END);
    let mut options = fs::OpenOptions::new();
    options.read(read).write(write).custom_flags(libc::O_NONBLOCK).open(guest.path("fifo")).unwrap()
}

#[test]
fn data_goes_both_ways_and_the_server_never_waits() {
    let mut guest = Guest::new();
    let (fifo, attr) = guest.fifo();
    assert_eq!(attr.flags & ATTR_FIFO, ATTR_FIFO);
    assert_eq!(guest.open(fifo, WRITE_END), Err(libc::ENXIO), "a writer without a reader");
    let size = SetattrIn { valid: set::SIZE, ..Default::default() };
    assert_eq!(guest.setattr(fifo, size), Err(libc::ENXIO));
    let reader = guest.open(fifo, READ_END).unwrap().fh;
    assert_eq!(guest.poll(fifo, reader), Ok(0), "a reader without a writer");
    assert_eq!(guest.read(fifo, reader, 0, 8).unwrap(), b"");
    let mut host = on_host(&guest, WRITE_END);
    assert_eq!(guest.poll(fifo, reader), Ok(libc::POLLRDBAND), "a silent writer");
    assert_eq!(guest.read(fifo, reader, 0, 8), Err(libc::EAGAIN));
    host.write_all(b"from the host").unwrap();
    assert_eq!(guest.poll(fifo, reader), Ok(libc::POLLIN));
    // The offset means nothing.
    assert_eq!(guest.read(fifo, reader, 99, 4).unwrap(), b"from");
    assert_eq!(guest.read(fifo, reader, 4, 99).unwrap(), b" the host");
    drop(host);
    assert_eq!(guest.poll(fifo, reader), Ok(libc::POLLHUP));
    let writer = guest.open(fifo, WRITE_END).unwrap().fh;
    let mut host = on_host(&guest, READ_END);
    guest.release(fifo, reader).unwrap();
    assert_eq!(guest.poll(fifo, writer), Ok(libc::POLLOUT));
    let written = WriteIn { fh: writer, offset: 7, flags: libc::O_APPEND as u32, ..Default::default() };
    assert_eq!(guest.write(fifo, written, b"from the guest"), Ok(14));
    let mut seen = [0; 14];
    host.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"from the guest");
    drop(host);
    assert_eq!(guest.poll(fifo, writer).unwrap() & libc::POLLERR, libc::POLLERR);
    assert_eq!(guest.write(fifo, written, b"x"), Err(libc::EPIPE));
    guest.release(fifo, writer).unwrap();
    assert_eq!(guest.tree.counts().1, 0);
}

#[test]
fn a_full_pipe_refuses_a_small_write_whole() {
    let mut guest = Guest::new();
    let (fifo, _) = guest.fifo();
    let both = guest.open(fifo, libc::O_RDWR).unwrap().fh;
    let input = WriteIn { fh: both, ..Default::default() };
    let mut total = 0;
    while let Ok(count) = guest.write(fifo, input, &[1; 65536]) {
        total += count;
    }
    assert_eq!(guest.write(fifo, input, &[1; 4096]), Err(libc::EAGAIN));
    assert_eq!(guest.read(fifo, both, 0, 1 << 19).unwrap().len(), total as usize);
}

#[test]
fn fifos_of_a_container_s_root_are_its_kernel_s_and_a_read_only_bind_has_them_too() {
    let (tree, dir) = scratch(Terms { owned: true, ..Terms::default() });
    let mut guest = Guest { server: server(&tree), tree, caller: (0, 0), dir };
    guest.init();
    assert_eq!(guest.fifo().1.flags & ATTR_FIFO, 0);
    guest.tree.bind("/c1/ro", open_path(guest.dir.path()), Terms::read_only()).unwrap();
    guest.tree.bind("/c1/one", open_path(&guest.path("fifo")), Terms::default()).unwrap();
    let parent = guest.walk("c1/ro");
    let (entry, attr) = guest.lookup(parent, "fifo").unwrap();
    assert_eq!(attr.flags & ATTR_FIFO, ATTR_FIFO);
    let reader = guest.open(entry.nodeid, READ_END).unwrap().fh;
    let one = guest.walk("c1/one");
    let writer = guest.open(one, WRITE_END).unwrap().fh;
    assert_eq!(guest.write(one, WriteIn { fh: writer, ..Default::default() }, b"x"), Ok(1));
    assert_eq!(guest.read(entry.nodeid, reader, 0, 8).unwrap(), b"x");
}

#[test]
fn other_files_are_not_polled() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, fh) = guest.make(rootfs, "file");
    assert_eq!(guest.poll(node, fh), Err(libc::ENOSYS));
    assert_eq!(guest.poll(node, fh + 1), Err(libc::EBADF));
    let (fifo, _) = guest.fifo();
    assert_eq!(guest.poll(fifo, 0), Err(libc::ENXIO));
}
