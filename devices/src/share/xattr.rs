//! Extended attributes that the guest may see and set.
//!
//! These are `user.*`, `security.capability`, and the two POSIX ACLs; with [`Terms::admin_xattrs`](super::Terms) also
//! `trusted.*` and `security.*`, as for a process with CAP_SYS_ADMIN, which the guest's kernel has checked. An overlayfs in
//! the guest needs them for its upper layer. Attributes by which security modules of the host label and measure files
//! ([`OF_MODULES`]) stay the host's.

use std::os::fd::{AsFd, AsRawFd};

use super::attributes::Change;
use super::bind::Bind;
use super::credentials::Credentials;
use super::errno::{Errno, Result};
use super::inode::{Inode, Pin};
use super::magic_link::MagicLink;
use super::names::XattrName;
use super::operations::Operations;
use super::owners::Owners;
use super::sys::{self, Stat};

/// Limit of the length of a value and of a list of names (XATTR_SIZE_MAX and XATTR_LIST_MAX of Linux).
pub const MAX_VALUE: usize = 64 << 10;

/// Attributes of SELinux, Smack, AppArmor, IMA and EVM. The guest's kernel has none of these modules.
const OF_MODULES: [&[u8]; 5] =
    [b"security.selinux", b"security.SMACK64", b"security.apparmor", b"security.ima", b"security.evm"];

/// Whether the guest may use the attribute `name` of the files of a bind.
fn is_open(bind: &Bind, name: &[u8]) -> bool {
    let of_admin = || {
        let reserved = name.starts_with(b"trusted.") || name.starts_with(b"security.");
        reserved && !OF_MODULES.iter().any(|module| name.starts_with(module))
    };
    name.starts_with(b"user.")
        || name == b"security.capability"
        || is_acl(name)
        || bind.admin_xattrs && of_admin()
}

fn is_acl(name: &[u8]) -> bool {
    matches!(name, b"system.posix_acl_access" | b"system.posix_acl_default")
}

fn xattr_path(credentials: &Credentials, pin: &Pin) -> MagicLink {
    let short = credentials.in_proc_self_fd();
    MagicLink::new(if short { "" } else { "/proc/self/fd/" }, pin.as_fd().as_raw_fd())
}

impl Operations {
    /// Returns a path to the file of `pin`, for system calls that accept only paths.
    fn xattr_path(&mut self, pin: &Pin) -> MagicLink {
        xattr_path(self.credentials(), pin)
    }

    /// Refuses an extended attribute that the guest may not set on this node.
    pub fn check_xattr(&self, node: u64, name: &[u8]) -> Result<()> {
        let inode = self.host_node(node, libc::EROFS)?;
        inode.writable()?;
        if is_open(&inode.bind, name) { Ok(()) } else { Err(Errno(libc::EOPNOTSUPP)) }
    }

    /// Appends the value of an extended attribute, of at most `size` bytes, to `value`. Returns its length. With a size
    /// of 0 it only returns the length. After an error, `value` may be longer than before.
    pub fn getxattr(
        &mut self,
        node: u64,
        name: XattrName,
        size: usize,
        value: &mut Vec<u8>,
    ) -> Result<usize> {
        let name = name.as_c_str();
        let inode = self.host_node(node, libc::ENODATA)?;
        if !is_open(&inode.bind, name.to_bytes()) {
            return Err(Errno(libc::ENODATA));
        }
        let pin = inode.fd()?;
        let path = self.xattr_path(&pin);
        let start = value.len();
        value.resize(start + size.min(MAX_VALUE), 0);
        let len = match sys::getxattr(&path, name, &mut value[start..]) {
            // The guest's kernel refuses access to a file whose ACL it cannot read, and asks file systems without ACLs.
            Err(Errno(libc::EOPNOTSUPP)) if is_acl(name.to_bytes()) => return Err(Errno(libc::ENODATA)),
            result => result?,
        };
        if size == 0 {
            return Ok(len);
        }
        value.truncate(start + len);
        Ok(len)
    }

    /// Appends the names of a node's extended attributes, each with a NUL and together at most `size` bytes, to `list`.
    /// Returns their length. With a size of 0 it only returns the length. After an error, `list` may be longer than
    /// before.
    pub fn listxattr(&mut self, node: u64, size: usize, list: &mut Vec<u8>) -> Result<usize> {
        let inode = self.host_node(node, libc::EOPNOTSUPP)?;
        let pin = inode.fd()?;
        let path = self.xattr_path(&pin);
        // All names are read even if the guest asks only for their length, to exclude those that it may not see.
        let len = sys::listxattr(&path, &mut [])?;
        let mut names = vec![0; len.min(MAX_VALUE)];
        let len = if names.is_empty() { 0 } else { sys::listxattr(&path, &mut names)? };
        let start = list.len();
        for name in names[..len].split(|byte| *byte == 0).filter(|name| is_open(&inode.bind, name)) {
            list.extend_from_slice(name);
            list.push(0);
        }
        let len = list.len() - start;
        if size == 0 {
            list.truncate(start);
        } else if len > size {
            return Err(Errno(libc::ERANGE));
        }
        Ok(len)
    }

    /// Sets an extended attribute. `flags` is 0, XATTR_CREATE or XATTR_REPLACE.
    pub fn setxattr(&mut self, node: u64, name: XattrName, value: &[u8], flags: i32) -> Result<()> {
        let name = name.as_c_str();
        let inode = self.host_node(node, libc::EROFS)?;
        inode.writable()?;
        if !is_open(&inode.bind, name.to_bytes()) {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        let pin = inode.fd()?;
        let path = self.xattr_path(&pin);
        // Setting an ACL also changes the mode. If the caller may not keep set-group-ID, `clear_setgid` follows.
        self.credentials().keep_setid(true);
        sys::setxattr(&path, name, value, flags)
    }

    /// Clears set-group-ID of a node, after a process has set its ACL that is not in its group.
    pub fn clear_setgid(&mut self, node: u64) -> Result<()> {
        let inode = self.host_node(node, libc::EROFS)?;
        let mode = sys::fstat(inode.fd()?.as_fd())?.st_mode & 0o7777;
        if mode & libc::S_ISGID != 0 {
            self.setattr(node, &Change { mode: Some(mode & !libc::S_ISGID), ..Change::default() })?;
        }
        Ok(())
    }

    /// Whether a file certainly has no access ACL. Linux asks for the ACL of a file only if its group has any rights, and
    /// the process is not the owner.
    pub(super) fn lacks_acl(&self, inode: &Inode, stat: &Stat) -> bool {
        let asked = matches!(inode.kind, libc::S_IFREG | libc::S_IFDIR) && stat.st_mode & libc::S_IRWXG != 0;
        if !asked || !self.tells_acls {
            return false;
        }
        let Some(credentials) = &self.credentials else { return false };
        let Ok(pin) = inode.fd() else { return false };
        let path = xattr_path(credentials, &pin);
        let found = sys::getxattr(&path, c"system.posix_acl_access", &mut []);
        matches!(found, Err(Errno(libc::ENODATA | libc::EOPNOTSUPP)))
    }

    /// Whether the guest may check POSIX ACLs: their users are those of the host.
    pub fn has_acls(&self) -> bool {
        self.owners == Owners::Host
    }

    /// Removes an extended attribute.
    pub fn removexattr(&mut self, node: u64, name: XattrName) -> Result<()> {
        let name = name.as_c_str();
        let inode = self.host_node(node, libc::EROFS)?;
        inode.writable()?;
        if !is_open(&inode.bind, name.to_bytes()) {
            return Err(Errno(libc::ENODATA));
        }
        let pin = inode.fd()?;
        let path = self.xattr_path(&pin);
        sys::removexattr(&path, name)
    }
}
