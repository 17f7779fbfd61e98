//! The file server's operations for another protocol than FUSE: the same code, asked with FUSE's structures, so that
//! what touches the host exists once.

use std::ffi::CString;
use std::os::fd::AsFd;

use super::errno::{Errno, Result};
use super::message::Pieces;
use super::server::{Node, Request, ShareServer};
use super::share::Child;
use super::wire::{OutHeader, WriteOut};
use super::{sys, xattr};

/// A file among all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A virtual directory, by its number.
    Virtual(u64),
    /// A file of the host, by device and number.
    Host((u64, u64)),
}

impl ShareServer {
    /// Does what a request without data asks; returns the reply's body.
    pub fn perform(&mut self, opcode: u32, request: &Request) -> Result<&[u8]> {
        self.begin_reply();
        self.dispatch(opcode, request)?;
        Ok(&self.reply[OutHeader::SIZE..])
    }

    /// READ into guest memory; returns the bytes read.
    pub fn read_data(&mut self, request: &Request, data: Pieces) -> Result<usize> {
        self.read(request, data)
    }

    /// WRITE from guest memory; returns the bytes written.
    pub fn write_data(&mut self, request: &Request, data: &mut Pieces) -> Result<u32> {
        self.begin_reply();
        self.write(request, data)?;
        WriteOut::parse(&self.reply[OutHeader::SIZE..]).map(|out| out.size).ok_or(Errno(libc::EIO))
    }

    /// Counts one more lookup of a node that is known.
    pub fn hold(&self, node: u64) -> Result<()> {
        match self.node(node)? {
            Node::Virtual(id) => self.shared.tree.lock().unwrap().names(id).map(drop),
            Node::Host(_) => self.shared.table.lock().unwrap().hold(node),
        }
    }

    /// Takes one lookup of a node back.
    pub fn let_go(&self, node: u64) {
        self.shared.table.lock().unwrap().forget(node, 1);
    }

    /// Which file a node is, and of what kind (`S_IFMT`).
    pub fn identify(&self, node: u64) -> Result<(Key, u32)> {
        Ok(match self.node(node)? {
            Node::Virtual(id) => (Key::Virtual(Child::Dir(id).ino()), libc::S_IFDIR),
            Node::Host(inode) => (Key::Host(inode.key), inode.kind),
        })
    }

    /// The directory and the name at which the guest last found a node, if it is still there. Of a file with several names
    /// it is one of them.
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

    /// Empties the reply but for its header's place.
    pub(super) fn begin_reply(&mut self) {
        self.reply.clear();
        self.reply.resize(OutHeader::SIZE, 0);
    }
}
