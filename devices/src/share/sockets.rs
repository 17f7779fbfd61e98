//! Sockets in a volume. A socket's file leads to a server in one kernel, so a process of the guest that connects to one of
//! another kernel gets ECONNREFUSED. The user is told once for each bind.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::ffi::CStr;

use super::inode::Inode;

/// Limit of the guest's own sockets that are remembered, and of binds of which the user was told.
const MAX_REMEMBERED: usize = 1024;

/// Whose sockets are in the share.
#[derive(Default)]
pub struct Sockets {
    /// Device and inode number of the sockets that the guest has made, oldest first.
    own: RefCell<VecDeque<(u64, u64)>>,
    /// Numbers of the binds of which the user was told.
    told: RefCell<BTreeSet<u64>>,
}

impl Sockets {
    /// The guest has made a file.
    pub fn made(&self, inode: &Inode) {
        if inode.kind == libc::S_IFSOCK {
            let mut own = self.own.borrow_mut();
            own.push_back(inode.key);
            if own.len() > MAX_REMEMBERED {
                own.pop_front();
            }
        }
    }

    /// The guest looks a file up. Tells the user if it is a socket of another kernel; returns whether it did.
    pub fn found(&self, inode: &Inode, name: &CStr) -> bool {
        let other =
            inode.kind == libc::S_IFSOCK && !inode.bind.owned && !self.own.borrow().contains(&inode.key);
        let mut told = self.told.borrow_mut();
        if !other || told.len() >= MAX_REMEMBERED || !told.insert(inode.bind.id) {
            return false;
        }
        log::warn!(
            "the container looks at the socket {name:?} in a shared directory: connections to servers of the host or of other \
             machines are refused there (ECONNREFUSED). Bind the socket itself"
        );
        true
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs;
    use std::os::unix::net::UnixListener;

    use super::super::names::Name;
    use super::super::operations::{Caller, NewFile, Operations};
    use super::super::testing::scratch;
    use super::super::{ROOT_ID, Terms};

    #[test]
    fn the_user_is_told_once_of_a_socket_that_the_guest_has_not_made() {
        let (tree, dir) = scratch(Terms::default());
        let mut share = Operations::new(&tree);
        let find = |share: &Operations, at: u64, name: &str| {
            share.lookup(at, Name::new(&CString::new(name).unwrap()).unwrap()).unwrap().node
        };
        let c1 = find(&share, ROOT_ID, "c1");
        let rootfs = find(&share, c1, "rootfs");
        let new = NewFile { caller: Caller::ROOT, mode: libc::S_IFSOCK | 0o600, umask: 0 };
        share.mknod(rootfs, Name::new(c"own").unwrap(), &new, 0).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        for name in ["own", "file"] {
            find(&share, rootfs, name);
            assert!(share.sockets.told.borrow().is_empty(), "{name}");
        }
        let _listener = UnixListener::bind(dir.path().join("other")).unwrap();
        let node = find(&share, rootfs, "other");
        assert_eq!(share.sockets.told.borrow().len(), 1);
        let inode = tree.inode(node);
        assert!(!share.sockets.found(&inode, c"other"));
    }
}
