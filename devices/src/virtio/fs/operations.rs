//! The file server's operations for protocols other than FUSE. They take FUSE structures and run the same code, so that
//! all code that accesses the host exists once.

use std::ffi::CString;
use std::os::fd::AsFd;

use super::server::{Node, Request, ShareServer};
use super::wire::{OutHeader, WriteOut};
use super::xattr;
use crate::pieces::Pieces;
use crate::share::errno::{Errno, Result};
use crate::share::sys;
use crate::share::tree::Child;

/// Unique key of a file in the share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A virtual directory: its inode number.
    Virtual(u64),
    /// A file of the host: device and inode number.
    Host((u64, u64)),
}

impl ShareServer {
    /// Executes a request without data. Returns the body of the reply.
    pub fn perform(&mut self, opcode: u32, request: &Request) -> Result<&[u8]> {
        self.begin_reply();
        self.dispatch(opcode, request)?;
        Ok(&self.reply[OutHeader::SIZE..])
    }

    /// Executes READ into guest memory. Returns the number of bytes read.
    pub fn read_data(&mut self, request: &Request, data: Pieces) -> Result<usize> {
        self.read(request, data)
    }

    /// Executes WRITE from guest memory. Returns the number of bytes written.
    pub fn write_data(&mut self, request: &Request, data: &mut Pieces) -> Result<u32> {
        self.begin_reply();
        self.write(request, data)?;
        WriteOut::parse(&self.reply[OutHeader::SIZE..]).map(|out| out.size).ok_or(Errno(libc::EIO))
    }

    /// Counts one more lookup of a known node.
    pub fn hold(&self, node: u64) -> Result<()> {
        match self.node(node)? {
            Node::Virtual(id) => self.shared.tree.lock().unwrap().names(id).map(drop),
            Node::Host(_) => self.shared.table.lock().unwrap().hold(node),
        }
    }

    /// Takes back one lookup of a node.
    pub fn let_go(&self, node: u64) {
        self.shared.table.lock().unwrap().forget(node, 1);
    }

    /// Returns the key and the type (`S_IFMT` bits) of a node.
    pub fn identify(&self, node: u64) -> Result<(Key, u32)> {
        Ok(match self.node(node)? {
            Node::Virtual(id) => (Key::Virtual(Child::Dir(id).ino()), libc::S_IFDIR),
            Node::Host(inode) => (Key::Host(inode.key), inode.kind),
        })
    }

    /// Returns the directory and the name at which the guest last found a node, if the node is still there. If a file has
    /// several names, this is one of them.
    pub fn place(&self, node: u64) -> Result<(u64, CString)> {
        let inode = self.host_node(node, libc::EROFS)?;
        let (dir, name) = inode.place().ok_or(Errno(libc::EBUSY))?;
        let (key, kind, _) = sys::identity(dir.fd()?.as_fd(), &name)?;
        if (key, kind) == (inode.key, inode.kind) { Ok((dir.id, name)) } else { Err(Errno(libc::ESTALE)) }
    }

    /// Refuses an extended attribute that the guest may not set on this node.
    pub fn check_xattr(&self, node: u64, name: &[u8]) -> Result<()> {
        self.host_node(node, libc::EROFS)?.writable()?;
        if xattr::is_open(name) { Ok(()) } else { Err(Errno(libc::EOPNOTSUPP)) }
    }

    /// Empties the reply and reserves space for its header.
    pub(super) fn begin_reply(&mut self) {
        self.reply.clear();
        self.reply.resize(OutHeader::SIZE, 0);
    }
}
