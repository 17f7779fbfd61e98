//! Extended attributes that the guest may see and set.
//!
//! These are `user.*`, `security.capability`, and the two POSIX ACLs. All others belong to the host: `trusted.overlay.*`
//! or a security label would affect the host's kernel, not the guest's.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd};

use super::server::{Request, ShareServer, take_string};
use super::wire::{GetxattrIn, GetxattrOut, SetxattrIn};
use crate::share::errno::{Errno, Result};
use crate::share::inode::Pin;
use crate::share::magic_link::MagicLink;
use crate::share::sys;

/// Limit of the length of a value and of a list of names (XATTR_SIZE_MAX and XATTR_LIST_MAX of Linux).
pub const MAX_VALUE: usize = 64 << 10;
const MAX_NAME: usize = 255;

/// Whether the guest may use the attribute `name`.
pub(super) fn is_open(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || matches!(name, b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default")
}

impl ShareServer {
    /// Returns a path to the file of `pin`, for system calls that accept only paths.
    fn xattr_path(&mut self, pin: &Pin) -> MagicLink {
        let short = self.credentials().in_proc_self_fd();
        MagicLink::new(if short { "" } else { "/proc/self/fd/" }, pin.as_fd().as_raw_fd())
    }

    pub(super) fn getxattr(&mut self, request: &Request) -> Result<()> {
        let input = GetxattrIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let name = xattr_name(&mut &request.body[GetxattrIn::SIZE..])?;
        let inode = self.host_node(request.nodeid, libc::ENODATA)?;
        if !is_open(name.to_bytes()) {
            return Err(Errno(libc::ENODATA));
        }
        let pin = inode.fd()?;
        let path = self.xattr_path(&pin);
        if input.size == 0 {
            let size = sys::getxattr(&path, name, &mut [])? as u32;
            GetxattrOut { size, padding: 0 }.put(&mut self.reply);
            return Ok(());
        }
        let start = self.reply.len();
        self.reply.resize(start + (input.size as usize).min(MAX_VALUE), 0);
        let len = sys::getxattr(&path, name, &mut self.reply[start..])?;
        self.reply.truncate(start + len);
        Ok(())
    }

    pub(super) fn listxattr(&mut self, request: &Request) -> Result<()> {
        let input = GetxattrIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let inode = self.host_node(request.nodeid, libc::EOPNOTSUPP)?;
        let pin = inode.fd()?;
        let path = self.xattr_path(&pin);
        // All names are read even if the guest asks only for their length, to exclude those that it may not see.
        let len = sys::listxattr(&path, &mut [])?;
        let mut names = vec![0; len.min(MAX_VALUE)];
        let len = if names.is_empty() { 0 } else { sys::listxattr(&path, &mut names)? };
        let start = self.reply.len();
        for name in names[..len].split(|byte| *byte == 0).filter(|name| is_open(name)) {
            self.reply.extend_from_slice(name);
            self.reply.push(0);
        }
        let len = self.reply.len() - start;
        if input.size == 0 {
            self.reply.truncate(start);
            GetxattrOut { size: len as u32, padding: 0 }.put(&mut self.reply);
        } else if len > input.size as usize {
            return Err(Errno(libc::ERANGE));
        }
        Ok(())
    }

    pub(super) fn setxattr(&mut self, request: &Request) -> Result<()> {
        let input = SetxattrIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let mut body = &request.body[SetxattrIn::SIZE..];
        let name = xattr_name(&mut body)?;
        let size = input.size as usize;
        if size > MAX_VALUE {
            return Err(Errno(libc::E2BIG));
        }
        let value = body.get(..size).ok_or(Errno(libc::EINVAL))?;
        let inode = self.host_node(request.nodeid, libc::EROFS)?;
        inode.writable()?;
        if !is_open(name.to_bytes()) {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        let pin = inode.fd()?;
        let path = self.xattr_path(&pin);
        // Setting an ACL also changes the mode. The guest's kernel has already cleared set-group-ID if necessary.
        self.credentials().keep_setid(true);
        sys::setxattr(&path, name, value, input.flags as i32)
    }

    pub(super) fn removexattr(&mut self, request: &Request) -> Result<()> {
        let name = xattr_name(&mut { request.body })?;
        let inode = self.host_node(request.nodeid, libc::EROFS)?;
        inode.writable()?;
        if !is_open(name.to_bytes()) {
            return Err(Errno(libc::ENODATA));
        }
        let pin = inode.fd()?;
        let path = self.xattr_path(&pin);
        sys::removexattr(&path, name)
    }
}

fn xattr_name<'a>(body: &mut &'a [u8]) -> Result<&'a CStr> {
    let name = take_string(body)?;
    if name.is_empty() || name.count_bytes() > MAX_NAME { Err(Errno(libc::ERANGE)) } else { Ok(name) }
}
