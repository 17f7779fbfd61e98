//! Fixtures for tests of the share and its two protocols.

use std::fs::{OpenOptions, Permissions, set_permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use tempfile::TempDir;
use vm_memory::VolatileSlice;

use super::{ShareTree, Terms};
use crate::pieces::Pieces;

/// Opens a file as an O_PATH descriptor.
pub fn open_path(path: &Path) -> OwnedFd {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).unwrap().into()
}

/// Returns a share in which /c1/rootfs is bound to a new directory.
pub fn scratch(terms: Terms) -> (ShareTree, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    // The umask may be that of a guest that this thread served before.
    set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
    let tree = ShareTree::new().unwrap();
    tree.bind("/c1/rootfs", open_path(dir.path()), terms).unwrap();
    (tree, dir)
}

/// Passes a request to `handle` in two pieces, with space for `room` bytes of reply, also in two pieces. `cuts` are the
/// lengths of the first pieces. Returns the reply, or `None` if the queue must refuse the request.
pub fn exchange(
    bytes: &[u8],
    room: usize,
    cuts: [usize; 2],
    handle: impl FnOnce(Pieces<'_>, Pieces<'_>) -> io::Result<usize>,
) -> Option<Vec<u8>> {
    let mut request = bytes.to_vec();
    let (head, tail) = request.split_at_mut(bytes.len().min(cuts[0]));
    let mut reply = vec![0xaa; room];
    let (first, second) = reply.split_at_mut(room.min(cuts[1]));
    let request = Pieces::new(vec![VolatileSlice::from(head), VolatileSlice::from(tail)]);
    let output = Pieces::new(vec![VolatileSlice::from(first), VolatileSlice::from(second)]);
    let len = handle(request, output).ok()?;
    assert!(len <= room);
    reply.truncate(len);
    Some(reply)
}
