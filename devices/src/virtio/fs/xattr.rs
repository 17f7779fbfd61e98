//! Requests about extended attributes.

use super::server::{FuseServer, Request, take_string};
use super::wire::{GetxattrIn, GetxattrOut, SETXATTR_ACL_KILL_SGID, SetxattrIn, SetxattrInExt};
use crate::share::errno::{Errno, Result};
use crate::share::names::XattrName;
use crate::share::xattr::MAX_VALUE;

impl FuseServer {
    pub(super) fn getxattr(&mut self, request: &Request) -> Result<()> {
        let input = GetxattrIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let name = xattr_name(&mut &request.body[GetxattrIn::SIZE..])?;
        let len = self.share.getxattr(request.nodeid, name, input.size as usize, &mut self.reply)?;
        self.put_len(&input, len);
        Ok(())
    }

    pub(super) fn listxattr(&mut self, request: &Request) -> Result<()> {
        let input = GetxattrIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let len = self.share.listxattr(request.nodeid, input.size as usize, &mut self.reply)?;
        self.put_len(&input, len);
        Ok(())
    }

    /// Replies with a length if the guest asks only for that.
    fn put_len(&mut self, input: &GetxattrIn, len: usize) {
        if input.size == 0 {
            GetxattrOut { size: len as u32, padding: 0 }.put(&mut self.reply);
        }
    }

    pub(super) fn setxattr(&mut self, request: &Request) -> Result<()> {
        let input = SetxattrIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let mut body = &request.body[SetxattrIn::SIZE..];
        let mut ext = SetxattrInExt::default();
        if self.setxattr_ext {
            ext = SetxattrInExt::parse(body).ok_or(Errno(libc::EINVAL))?;
            body = &body[SetxattrInExt::SIZE..];
        }
        let name = xattr_name(&mut body)?;
        let size = input.size as usize;
        if size > MAX_VALUE {
            return Err(Errno(libc::E2BIG));
        }
        let value = body.get(..size).ok_or(Errno(libc::EINVAL))?;
        self.share.setxattr(request.nodeid, name, value, input.flags as i32)?;
        match ext.setxattr_flags & SETXATTR_ACL_KILL_SGID {
            0 => Ok(()),
            _ => self.share.clear_setgid(request.nodeid),
        }
    }

    pub(super) fn removexattr(&mut self, request: &Request) -> Result<()> {
        let name = xattr_name(&mut { request.body })?;
        self.share.removexattr(request.nodeid, name)
    }
}

/// Takes the name of an extended attribute from the front of `body`.
fn xattr_name<'a>(body: &mut &'a [u8]) -> Result<XattrName<'a>> {
    XattrName::new(take_string(body)?)
}
