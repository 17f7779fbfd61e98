//! vhost-net: a worker thread of the host's kernel serves a network device's queues, between guest memory and the tap.
//!
//! It only makes the device faster. When it meets a request that it does not understand, it signals a fault; the device
//! takes the queues back and serves them in its event loop, which counts and answers the guest's faults. A guest
//! therefore sees the same device with and without vhost-net.

use std::io;
use std::sync::Arc;

use vhost::net::VhostNet;
use vhost::vhost_kern::net::Net;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};
use vmm_sys_util::eventfd::EventFd;

use super::packet::{MRG_RXBUF, QUEUE_SIZE, RECEIVE, TRANSMIT};
use super::tap::Tap;
use crate::Interrupt;
use crate::virtio::VirtQueue;
use crate::virtio::queue::Loan;

/// The features that affect how the queues are read, so that the kernel must know them. All other features concern only
/// the driver and the tap.
const QUEUE_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX | MRG_RXBUF;

/// The part of the host's kernel that serves both queues of a device. Tests have their own implementation.
pub(super) trait Kernel: Send {
    /// Starts to serve the queues. If this fails, no request has been served.
    fn start(&mut self, work: &Work) -> io::Result<()>;

    /// Stops. Returns for each queue the index of the first request that was not taken. All requests before it are
    /// completed.
    fn stop(&mut self) -> io::Result<[u16; 2]>;
}

/// The queues to serve, in the device's order, and what they are served with.
pub(super) struct Work<'a> {
    pub tap: &'a Tap,
    /// The negotiated features.
    pub features: u64,
    pub queues: [(&'a VirtQueue, &'a Loan); 2],
    pub interrupt: &'a Interrupt,
    /// Must be signalled when a request is malformed.
    pub fault: &'a EventFd,
}

/// An open /dev/vhost-net.
pub struct Vhost {
    pub(super) kernel: Box<dyn Kernel>,
    /// Signalled when the kernel meets a request that it does not understand.
    pub(super) fault: EventFd,
}

impl Vhost {
    /// Opens /dev/vhost-net for a machine with this memory. The open loads the kernel module if necessary.
    ///
    /// # Errors
    ///
    /// If the host has no vhost-net (`NotFound`, or ENODEV), or this process has no permission to use it.
    pub fn open(memory: GuestMemoryMmap) -> io::Result<Vhost> {
        let net = Net::new(Arc::new(memory)).map_err(host("open /dev/vhost-net"))?;
        Vhost::of(Box::new(net))
    }

    /// Returns a test double of vhost-net that borrows the queues and serves nothing. A signal on the returned eventfd
    /// makes the device take them back.
    #[cfg(any(test, feature = "driver"))]
    pub fn of_idler() -> io::Result<(Vhost, EventFd)> {
        let vhost = Vhost::of(Box::new(Idler([0; 2])))?;
        let fault = vhost.fault.try_clone()?;
        Ok((vhost, fault))
    }

    /// Returns vhost-net with this implementation of the kernel.
    pub(super) fn of(kernel: Box<dyn Kernel>) -> io::Result<Vhost> {
        Ok(Vhost { kernel, fault: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)? })
    }
}

/// Serves nothing. Keeps the queues' indices at its start, which it returns when it stops.
#[cfg(any(test, feature = "driver"))]
struct Idler([u16; 2]);

#[cfg(any(test, feature = "driver"))]
impl Kernel for Idler {
    fn start(&mut self, work: &Work) -> io::Result<()> {
        self.0 = work.queues.map(|(_, loan)| loan.rings.next_avail);
        Ok(())
    }

    fn stop(&mut self) -> io::Result<[u16; 2]> {
        Ok(self.0)
    }
}

impl Kernel for Net<Arc<GuestMemoryMmap>> {
    fn start(&mut self, work: &Work) -> io::Result<()> {
        let features = work.features & QUEUE_FEATURES;
        let known = self.get_features().map_err(host("VHOST_GET_FEATURES"))?;
        if features & !known != 0 {
            let missing = format!("the kernel does not know features {:#x}", features & !known);
            return Err(io::Error::new(io::ErrorKind::Unsupported, missing));
        }
        // This starts the worker thread, which belongs to this process's memory and cgroup.
        self.set_owner().map_err(host("VHOST_SET_OWNER"))?;
        self.set_features(features).map_err(host("VHOST_SET_FEATURES"))?;
        self.set_mem_table(&regions(work.queues[RECEIVE].0.memory())).map_err(host("VHOST_SET_MEM_TABLE"))?;
        for (index, (queue, loan)) in work.queues.iter().enumerate() {
            set_up(self, index, queue, loan, work)?;
        }
        for (index, (queue, _)) in work.queues.iter().enumerate() {
            if let Err(error) = self.set_backend(index, Some(work.tap.file())) {
                log::warn!("vhost-net: {}", host("VHOST_NET_SET_BACKEND")(error));
                // The other queue may already have been served. Signal a fault, after which both queues are taken back.
                let _ = work.fault.write(1);
                break;
            }
            // For a kick that came before the kernel waited for it. If the counter is full, a kick is already pending.
            let _ = queue.kick().write(1);
        }
        Ok(())
    }

    fn stop(&mut self) -> io::Result<[u16; 2]> {
        let mut next = [0; 2];
        for index in [RECEIVE, TRANSMIT] {
            // This returns when the worker has completed all requests that it had taken.
            self.set_backend(index, None).map_err(host("VHOST_NET_SET_BACKEND"))?;
        }
        for index in [RECEIVE, TRANSMIT] {
            // The index of a split queue has 16 bits.
            next[index] = self.get_vring_base(index).map_err(host("VHOST_GET_VRING_BASE"))? as u16;
        }
        Ok(next)
    }
}

/// Passes the rings and eventfds of one queue to the kernel.
fn set_up(
    net: &impl VhostBackend,
    index: usize,
    queue: &VirtQueue,
    loan: &Loan,
    work: &Work,
) -> io::Result<()> {
    let rings = loan.rings;
    let config = VringConfigData {
        queue_max_size: QUEUE_SIZE,
        queue_size: rings.size,
        flags: 0,
        desc_table_addr: rings.descriptors,
        used_ring_addr: rings.used,
        avail_ring_addr: rings.avail,
        log_addr: None,
    };
    net.set_vring_num(index, rings.size).map_err(host("VHOST_SET_VRING_NUM"))?;
    net.set_vring_base(index, rings.next_avail).map_err(host("VHOST_SET_VRING_BASE"))?;
    net.set_vring_addr(index, &config).map_err(host("VHOST_SET_VRING_ADDR"))?;
    net.set_vring_err(index, work.fault).map_err(host("VHOST_SET_VRING_ERR"))?;
    net.set_vring_call(index, work.interrupt.line()).map_err(host("VHOST_SET_VRING_CALL"))?;
    net.set_vring_kick(index, queue.kick()).map_err(host("VHOST_SET_VRING_KICK"))
}

/// Returns the regions of guest memory and their addresses in this process.
fn regions(memory: &GuestMemoryMmap) -> Vec<VhostUserMemoryRegionInfo> {
    let region = |region: &GuestRegionMmap| VhostUserMemoryRegionInfo {
        guest_phys_addr: region.start_addr().0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
        ..Default::default()
    };
    memory.iter().map(region).collect()
}

/// Returns a function that adds the failed step to an error of the host.
fn host(step: &'static str) -> impl FnOnce(vhost::Error) -> io::Error {
    move |error| match error {
        vhost::Error::VhostOpen(source) | vhost::Error::IoctlError(source) => {
            io::Error::new(source.kind(), format!("{step}: {source}"))
        }
        other => io::Error::other(format!("{step}: {other}")),
    }
}

#[cfg(test)]
mod tests;
