//! virtio-fs (VIRTIO 1.2, 5.11): directories and files of the host in the guest, served in this process.
//!
//! Device 26. Queue 0 is hiprio (FORGET), queue 1 takes requests; the notification queue is not offered
//! (VIRTIO_FS_F_NOTIFICATION), nor is a DAX window. Configuration: a tag of 36 bytes and the number of request queues.
//! One thread ([`worker`]) owns both queues and the server.
//!
//! The server is our own and not fuse-backend-rs's passthrough with its Vfs, for what those cannot do as they are:
//! serve single files; refuse changes to a read-only share; take an open descriptor instead of a path; take a share
//! away again, with every descriptor of it; give each share a device number of its own (FUSE_SUBMOUNTS), so that
//! `tar` and `find -xdev` work; run without privileges, where a per-request change of user fails; SYNCFS,
//! COPY_FILE_RANGE and TMPFILE; set-group-ID directories and default ACLs with the caller's umask; page caches that
//! outlive an open (KEEP_CACHE for unchanged files, which every `execve` of a shared library asks for). They also
//! clear the whole process's umask.
//!
//! Read on in this order: [`share`], `server`, `entry`, [`nodes`], `file`, `dir`, `attr`, `xattr`, `table`,
//! `inode`, `identity`, `credentials`.

use std::io;

use super::{Activation, DeviceInfo, VirtioDevice};

mod attr;
mod credentials;
mod dir;
mod entry;
pub(super) mod errno;
mod file;
mod identity;
mod inode;
mod magic_link;
pub mod message;
pub mod nodes;
pub(super) mod operations;
pub(super) mod server;
pub mod share;
mod sys;
mod table;
pub(super) mod wire;
pub mod worker;
pub(super) mod xattr;

pub use message::Pieces;
pub use nodes::{NodeKind, NodePolicy, NodeRule};
pub use share::{ShareError, ShareTree, Terms};
pub use worker::FileServer;
use worker::Worker;

/// VIRTIO 1.2, section 5: the device type of a file system.
const DEVICE_ID: u32 = 26;
/// Bytes of the tag in the configuration space, padded with NUL (VIRTIO 1.2, 5.11.4).
pub const TAG_LEN: usize = 36;
/// FORGETs wait for nothing: few are under way.
const HIPRIO_QUEUE_SIZE: u16 = 64;
/// Linux uses at most the ring's size less 4 pages for one request: 512 leaves room for 256 pages and others' requests.
const REQUEST_QUEUE_SIZE: u16 = 512;

/// A virtio-fs device.
pub struct Fs {
    tag: [u8; TAG_LEN],
    worker: Worker,
}

impl Fs {
    /// Returns a device with the name `tag`, by which the guest mounts it; of a longer one, the first 36 bytes count.
    pub fn new(tag: &str, server: Box<dyn FileServer>) -> Fs {
        let mut padded = [0; TAG_LEN];
        let len = tag.len().min(TAG_LEN);
        padded[..len].copy_from_slice(&tag.as_bytes()[..len]);
        Fs { tag: padded, worker: Worker::new("fs0", server) }
    }
}

impl VirtioDevice for Fs {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            device_id: DEVICE_ID,
            features: 0,
            queue_sizes: vec![HIPRIO_QUEUE_SIZE, REQUEST_QUEUE_SIZE],
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; TAG_LEN + 4];
        config[..TAG_LEN].copy_from_slice(&self.tag);
        config[TAG_LEN..].copy_from_slice(&1u32.to_le_bytes());
        for (index, byte) in data.iter_mut().enumerate() {
            let at = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(index));
            *byte = at.and_then(|at| config.get(at).copied()).unwrap_or(0);
        }
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.worker.serve(activation.queues)
    }
}

#[cfg(test)]
mod tests;
