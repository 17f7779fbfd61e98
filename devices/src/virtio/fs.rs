//! virtio-fs (VIRTIO 1.2, 5.11): directories and files of the host in the guest, served in this process.
//!
//! Device 26. Queue 0 is hiprio (FORGET), queue 1 takes requests; the notification queue is not offered
//! (VIRTIO_FS_F_NOTIFICATION), nor is a DAX window. Configuration: a tag of 36 bytes and the number of request queues.
//! One thread, `fs0`, owns both queues and the server: file calls block, and must hold up neither a vCPU nor the
//! console.
//!
//! The server is our own and not fuse-backend-rs's passthrough with its Vfs, for what those cannot do as they are:
//! serve single files; refuse changes to a read-only share; take an open descriptor instead of a path; take a share
//! away again, with every descriptor of it; give each share a device number of its own (FUSE_SUBMOUNTS), so that
//! `tar` and `find -xdev` work; run without privileges, where a per-request change of user fails; SYNCFS,
//! COPY_FILE_RANGE and TMPFILE; set-group-ID directories and default ACLs with the caller's umask; page caches that
//! outlive an open (KEEP_CACHE for unchanged files, which every `execve` of a shared library asks for). They also
//! clear the whole process's umask.
//!
//! Read on in this order: [`share`], `server`, `entry`, `file`, `dir`, `attr`, `xattr`, `table`,
//! `inode`, `credentials`.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::queue::{QueueError, Served, VirtQueue};
use super::{Activation, DeviceInfo, VirtioDevice};

mod attr;
mod credentials;
mod dir;
mod entry;
mod errno;
mod file;
mod inode;
mod magic_link;
pub mod message;
mod server;
pub mod share;
mod sys;
mod table;
mod wire;
mod xattr;

pub use message::Pieces;
pub use share::{ShareError, ShareTree};

/// VIRTIO 1.2, section 5: the device type of a file system.
const DEVICE_ID: u32 = 26;
/// Bytes of the tag in the configuration space, padded with NUL (VIRTIO 1.2, 5.11.4).
pub const TAG_LEN: usize = 36;
/// FORGETs wait for nothing: few are under way.
const HIPRIO_QUEUE_SIZE: u16 = 64;
/// Linux uses at most the ring's size less 4 pages for one request: 512 leaves room for 256 pages and others' requests.
const REQUEST_QUEUE_SIZE: u16 = 512;
/// The stop event in the poller; queues are there under their index.
const STOP: u64 = u64::MAX;

/// Answers FUSE requests.
pub trait FileServer: Send {
    /// Reads one request and writes its reply; returns the bytes written, 0 for a request that has no reply. An error
    /// refuses a request that cannot be answered: the queue completes it with nothing written and counts it.
    ///
    /// Called by one thread only, once the first request has come.
    fn handle(&mut self, request: Pieces, reply: Pieces) -> io::Result<usize>;
}

/// A virtio-fs device.
pub struct Fs {
    tag: [u8; TAG_LEN],
    server: Option<Box<dyn FileServer>>,
    worker: Option<Worker>,
}

/// The thread that serves, and the event that ends it.
struct Worker {
    stop: Arc<EventFd>,
    thread: JoinHandle<Box<dyn FileServer>>,
}

impl Fs {
    /// Returns a device with the name `tag`, by which the guest mounts it; of a longer one, the first 36 bytes count.
    pub fn new(tag: &str, server: Box<dyn FileServer>) -> Fs {
        let mut padded = [0; TAG_LEN];
        let len = tag.len().min(TAG_LEN);
        padded[..len].copy_from_slice(&tag.as_bytes()[..len]);
        Fs { tag: padded, server: Some(server), worker: None }
    }

    /// Ends the thread, if there is one, and takes the server back.
    fn stop(&mut self) {
        let Some(worker) = self.worker.take() else { return };
        // A counter that is full has woken the thread already.
        let _ = worker.stop.write(1);
        match worker.thread.join() {
            Ok(server) => self.server = Some(server),
            Err(_) => log::error!("fs0: the thread panicked"),
        }
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        self.stop();
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
        // A driver that starts anew after a reset finds the thread of the last time still there.
        self.stop();
        let server = self.server.take().ok_or_else(|| io::Error::other("the file server is gone"))?;
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let poller = poller(&stop, &activation.queues)?;
        let queues = activation.queues;
        let thread = Builder::new().name("fs0".to_owned()).spawn(move || run(&poller, queues, server))?;
        self.worker = Some(Worker { stop, thread });
        Ok(())
    }
}

/// Registers every kick, and the stop event. Edge-triggered: a kick need not be read back, which saves a system call
/// for each; one that comes while its queue is served makes the next wait return at once.
fn poller(stop: &EventFd, queues: &[VirtQueue]) -> io::Result<Epoll> {
    let poller = Epoll::new()?;
    poller.ctl(ControlOperation::Add, stop.as_raw_fd(), EpollEvent::new(EventSet::IN, STOP))?;
    for queue in queues {
        let interest = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, u64::from(queue.index()));
        poller.ctl(ControlOperation::Add, queue.kick().as_raw_fd(), interest)?;
    }
    Ok(poller)
}

/// The thread: serves each queue that is kicked, until it is told to stop. Gives the server back.
fn run(poller: &Epoll, mut queues: Vec<VirtQueue>, mut server: Box<dyn FileServer>) -> Box<dyn FileServer> {
    let mut events = [EpollEvent::default(); 4];
    loop {
        let count = match poller.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                log::error!("fs0: wait for requests: {error}");
                return server;
            }
        };
        for event in &events[..count] {
            if event.data() == STOP {
                return server;
            }
            let Some(at) = queues.iter().position(|queue| u64::from(queue.index()) == event.data()) else {
                continue;
            };
            if let Err(error) = serve(&mut queues[at], server.as_mut()) {
                // The driver took its memory back, or its rings make no sense. The queue's kick goes with it.
                log::debug!("fs0: give queue {at} up: {error}");
                queues.remove(at);
            }
        }
    }
}

/// Answers every request that is in the queue.
fn serve(queue: &mut VirtQueue, server: &mut dyn FileServer) -> Result<(), QueueError> {
    queue.serve_chains(|memory, chain| {
        let (request, reply) = message::split(memory, chain)?;
        // The guest waits for most requests, one at a time: it hears of each as soon as it is done.
        server.handle(request, reply).map(|written| Served::DoneNow(written as u32))
    })
}

#[cfg(test)]
mod tests;
