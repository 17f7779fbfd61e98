//! virtio-9p (device ID 9; VIRTIO 1.2 only assigns the ID, see Linux `net/9p/trans_virtio.c`): the share for guests
//! without virtio-fs.
//!
//! The device has one request queue and offers VIRTIO_9P_MOUNT_TAG: the configuration space contains the tag as
//! `len[2]` and its bytes. The protocol is 9P2000.L (`server`). Its server calls the same operations of
//! [`crate::share`] as that of virtio-fs, so that all code that accesses the host exists once: tree, inode table,
//! credentials, rules for names and read-only binds. The device also uses the thread of [`super::fs::worker`].
//!
//! The protocol lacks some features of virtio-fs. A write clears set-user-ID bits even if the writing process is
//! privileged. There is no fallocate, SEEK_HOLE or renameat2 flags. The original RENAME and REMOVE act on the last name
//! found if a file has several. Locks are managed by the guest's kernel alone, as with virtio-fs.
//!
//! Read in this order: `server`, `names`, `files`, `attributes`, `fids`, `numbers`, `wire`.

use std::io;

use super::fs::FileServer;
use super::fs::worker::{self, Roles, Worker};
use super::{Activation, DeviceInfo, VirtioDevice, copy_config};
use crate::{Enter, StateError};

mod attributes;
mod fids;
mod files;
mod names;
mod numbers;
mod server;
mod wire;

pub use server::{MSIZE_MAX, server};

/// VIRTIO 1.2, section 5: the device type of a 9P transport.
const DEVICE_ID: u32 = 9;
/// VIRTIO_9P_MOUNT_TAG: the tag is in the configuration space (`include/uapi/linux/virtio_9p.h`).
const MOUNT_TAG: u64 = 1 << 0;
/// Limit of the tag's length in bytes.
pub const TAG_MAX: usize = 255;
/// Linux uses at most 128 descriptors for one request, even if the queue is larger.
const QUEUE_SIZE: u16 = 128;

/// A virtio-9p device.
pub struct P9 {
    config: Vec<u8>,
    worker: Worker,
}

impl P9 {
    /// Returns a device with the tag `tag`, by which the guest mounts it, and starts its thread, which first calls
    /// `enter`. A tag is truncated to 255 bytes.
    pub fn new(tag: &str, server: Box<dyn FileServer>, enter: Enter) -> io::Result<P9> {
        let tag = &tag.as_bytes()[..tag.len().min(TAG_MAX)];
        let config = [&(tag.len() as u16).to_le_bytes(), tag].concat();
        Ok(P9 { config, worker: Worker::new("fs0", server, enter)? })
    }
}

impl VirtioDevice for P9 {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { device_id: DEVICE_ID, features: MOUNT_TAG, queue_sizes: vec![QUEUE_SIZE] }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.worker.serve(activation.queues, Roles::default())
    }

    fn save(&self, served: &[bool]) -> Result<Vec<u8>, StateError> {
        worker::unused(served)
    }
}

#[cfg(test)]
mod tests;
