//! virtio-fs (VIRTIO 1.2, 5.11; device ID 26): the guest mounts directories and files of the host; this process serves
//! them.
//!
//! Queue 0 is hiprio (FORGET). If the driver accepts VIRTIO_FS_F_NOTIFICATION, queue 1 is the notification queue, in
//! which the guest is told what the host changes. The next queue is the request queue. There is no DAX window. The
//! configuration space contains a tag of 36 bytes, the number of request queues, and the length of a notification. One
//! thread ([`worker`]) owns all queues and the server. The protocol is FUSE (`server`); the
//! operations of [`crate::share`] access the host.
//!
//! The server does not use fuse-backend-rs's passthrough and Vfs, because they cannot: serve single files; refuse
//! changes to a read-only share; start from an open file descriptor instead of a path; remove a share with all its file
//! descriptors; give each share its own device number (FUSE_SUBMOUNTS), which `tar` and `find -xdev` need; run without
//! privileges, where a change of user per request fails; SYNCFS, COPY_FILE_RANGE and TMPFILE; set-group-ID directories
//! and default ACLs with the caller's umask; keep the guest's page cache from one open to the next (KEEP_CACHE for
//! unchanged files, such as shared libraries at every `execve`). They also clear the umask of the whole process.
//!
//! Read in this order: [`crate::share`], `server`, `entry`, `file`, `dir`, `attr`, `xattr`.

use std::io;

use super::{Activation, DeviceInfo, VirtioDevice};
use crate::{Enter, StateError};

mod attr;
mod dir;
mod entry;
mod file;
mod locks;
mod server;
mod sockets;
mod wire;
pub mod worker;
mod xattr;

pub use server::server;
pub use worker::FileServer;
use worker::{Roles, Worker};

/// VIRTIO 1.2, section 5: the device type of a file system.
const DEVICE_ID: u32 = 26;
/// Length of the tag in the configuration space, padded with NUL (VIRTIO 1.2, 5.11.4).
pub const TAG_LEN: usize = 36;
/// FORGETs complete quickly, so few are outstanding.
const HIPRIO_QUEUE_SIZE: u16 = 64;
/// For one request Linux uses at most the ring's size minus 4 pages: 512 is enough for 256 pages and other requests.
const REQUEST_QUEUE_SIZE: u16 = 512;

/// VIRTIO_FS_F_NOTIFICATION as a mask (VIRTIO 1.2, 5.11.3).
const NOTIFICATION: u64 = 1 << 0;
/// Index of the queue of FORGET, and with FUSE_QUIET_RELEASE of RELEASE.
const HIPRIO_QUEUE: u16 = 0;
/// Index of the notification queue, or of the request queue without it.
const NOTIFICATION_QUEUE: u16 = 1;
/// Size of that queue. A driver without notifications may send requests of 124 pages in it.
const NOTIFICATION_QUEUE_SIZE: u16 = 128;
/// Length of a notification with a name of any length, in bytes.
const NOTIFICATION_LEN: u32 = 512;

/// A virtio-fs device.
pub struct Fs {
    tag: [u8; TAG_LEN],
    worker: Worker,
}

impl Fs {
    /// Returns a device with the tag `tag`, by which the guest mounts it, and starts its thread, which first calls
    /// `enter`. A tag is truncated to 36 bytes.
    pub fn new(tag: &str, server: Box<dyn FileServer>, enter: Enter) -> io::Result<Fs> {
        let mut padded = [0; TAG_LEN];
        let len = tag.len().min(TAG_LEN);
        padded[..len].copy_from_slice(&tag.as_bytes()[..len]);
        Ok(Fs { tag: padded, worker: Worker::new("fs0", server, enter)? })
    }
}

impl VirtioDevice for Fs {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            device_id: DEVICE_ID,
            features: NOTIFICATION,
            queue_sizes: vec![HIPRIO_QUEUE_SIZE, NOTIFICATION_QUEUE_SIZE, REQUEST_QUEUE_SIZE],
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; TAG_LEN + 8];
        config[..TAG_LEN].copy_from_slice(&self.tag);
        config[TAG_LEN..TAG_LEN + 4].copy_from_slice(&1u32.to_le_bytes());
        config[TAG_LEN + 4..].copy_from_slice(&NOTIFICATION_LEN.to_le_bytes());
        for (index, byte) in data.iter_mut().enumerate() {
            let at = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(index));
            *byte = at.and_then(|at| config.get(at).copied()).unwrap_or(0);
        }
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let notices = (activation.features & NOTIFICATION != 0).then_some(NOTIFICATION_QUEUE);
        self.worker.serve(activation.queues, Roles { notices, quiet: Some(HIPRIO_QUEUE) })
    }

    fn save(&self, served: &[bool]) -> Result<Vec<u8>, StateError> {
        if worker::unused(served).is_ok() { Ok(Vec::new()) } else { self.worker.save() }
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        if state.is_empty() { Ok(()) } else { self.worker.restore(state) }
    }

    fn go_on(&mut self) {
        self.worker.go_on();
    }
}

#[cfg(test)]
mod tests;
