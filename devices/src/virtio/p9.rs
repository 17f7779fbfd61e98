//! virtio-9p (VIRTIO 1.2 names the device type alone; Linux `net/9p/trans_virtio.c`): the share for guests without virtio-fs.
//!
//! Device 9, one queue for requests. Feature VIRTIO_9P_MOUNT_TAG: the configuration is the tag, `len[2]` and its bytes.
//! The protocol is 9P2000.L (`server`), translated into the operations of the file server behind virtio-fs, so that all that
//! touches the host exists once: the same tree, inode table, credentials, rules for names and read-only shares. The
//! thread is [`super::fs::worker`]'s, too.
//!
//! Weaker than virtio-fs by the protocol: locks are the guest's alone, as there, but whoever writes loses set-user-ID bits,
//! privileged or not; no fallocate, SEEK_HOLE or renameat2 flags; the original RENAME and REMOVE, of a file with several
//! names, act on the one last found.
//!
//! Read on in this order: `server`, `names`, `files`, `attributes`, `fids`, `numbers`, `wire`.

use std::io;

use super::fs::FileServer;
use super::fs::worker::Worker;
use super::{Activation, DeviceInfo, VirtioDevice, copy_config};

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
/// The tag is in the configuration space (`include/uapi/linux/virtio_9p.h`).
const MOUNT_TAG: u64 = 1 << 0;
/// The longest tag that the device takes.
pub const TAG_MAX: usize = 255;
/// Linux uses 128 descriptors for one request at most, whatever there are.
const QUEUE_SIZE: u16 = 128;

/// A virtio-9p device.
pub struct P9 {
    config: Vec<u8>,
    worker: Worker,
}

impl P9 {
    /// Returns a device with the name `tag`, by which the guest mounts it; of a longer one, the first 255 bytes count.
    pub fn new(tag: &str, server: Box<dyn FileServer>) -> P9 {
        let tag = &tag.as_bytes()[..tag.len().min(TAG_MAX)];
        let config = [&(tag.len() as u16).to_le_bytes(), tag].concat();
        P9 { config, worker: Worker::new("fs0", server) }
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
        self.worker.serve(activation.queues)
    }
}

#[cfg(test)]
mod tests;
