//! virtio-net (VIRTIO 1.2, 5.1; device ID 1): a network interface over a tap of the host.
//!
//! | queue | use | entries |
//! |---|---|---|
//! | 0 | receive: packets for the guest | 256 |
//! | 1 | transmit | 256 |
//!
//! The device offers F_MAC and F_MTU; F_CSUM and F_GUEST_CSUM, F_HOST_TSO4/6 with F_HOST_ECN and F_GUEST_TSO4/6 with
//! F_GUEST_ECN, all of which the tap implements; and F_MRG_RXBUF, so that a long packet can occupy many small buffers.
//! It does not offer UFO (kernels have dropped it), USO (new on taps), F_CTRL_VQ (the guest gets every packet that
//! reaches the tap), F_MQ (one thread serves all queues) and F_STATUS (the link is always up).
//!
//! Packets go between guest memory and the tap without an intermediate buffer. The 12-byte header before each packet is
//! the tap's (IFF_VNET_HDR); the host's kernel checks it. If the host has vhost-net ([`Vhost`]), its kernel serves both
//! queues for the first driver, until it meets a request that it does not understand. In all other cases the devices'
//! event loop serves them. There, a full tap stops transmission until the tap is writable again, and a guest without
//! receive buffers stops reception until its next kick.
//!
//! A device may be restricted to its interface's addresses ([`SourceFilter`]): packets from other sources are refused
//! and counted. The event loop then serves the queues, and copies the beginning of each packet to check it.
//!
//! A [`Slot`] is a place for a NIC that can be plugged in and removed while the machine runs.

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::*;

pub use self::filter::{SourceFilter, Sources};
use self::handler::{Handler, Outlet};
pub use self::packet::HEADER_LEN;
use self::packet::{ETHERNET_LEN, LONGEST, MRG_RXBUF, QUEUE_SIZE, RECEIVE};
pub use self::slot::Slot;
pub use self::tap::Tap;
pub use self::vhost::Vhost;
use super::queue::Demand;
use super::{Activation, DeviceInfo, VirtioDevice, copy_config};
use crate::{LoopHandle, Seat, StateError};

mod filter;
mod handler;
mod packet;
mod slot;
mod tap;
mod vhost;

const GUEST_TSO: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO6;
const FEATURES: u64 = GUEST_TSO
    | MRG_RXBUF
    | 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_MTU
    | 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN;

/// A network device. It keeps its tap, so the driver can start it any number of times.
pub struct Net {
    seat: Seat,
    /// The tap, shared with the handler of each start.
    tap: Arc<Tap>,
    mac: [u8; 6],
    mtu: u16,
    /// vhost-net, until the first start uses it.
    vhost: Option<Vhost>,
    filter: Option<SourceFilter>,
}

impl Net {
    /// Returns a device with hardware address `mac` and largest packet `mtu` (without the Ethernet header) over `tap`.
    /// With `vhost` the kernel serves it first; otherwise the loop of `events` does.
    pub fn new(events: LoopHandle, tap: Tap, mac: [u8; 6], mtu: u16, vhost: Option<Vhost>) -> Net {
        Net { seat: events.seat(), tap: Arc::new(tap), mac, mtu, vhost, filter: None }
    }

    /// Restricts transmission to packets that pass `filter`. Disables vhost-net, because the kernel would not apply it.
    pub fn held_to(self, filter: SourceFilter) -> Net {
        Net { filter: Some(filter), vhost: None, ..self }
    }

    /// `struct virtio_net_config`: mac, status u16, max_virtqueue_pairs u16, mtu u16.
    fn config(&self) -> [u8; 12] {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        config[10..].copy_from_slice(&self.mtu.to_le_bytes());
        config
    }
}

impl VirtioDevice for Net {
    fn info(&self) -> DeviceInfo {
        description()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> io::Result<()> {
        // Linux's driver fills the receive queue at once. Kicks for these buffers would be wasted, as there is nothing
        // to receive yet.
        activation.queues[RECEIVE].quiet();
        self.tap.set_offloads(activation.features)?;
        let demand = demand(activation.features, self.mtu);
        let tap = Outlet { tap: self.tap.clone(), filter: self.filter.clone() };
        let handler = Handler::new(tap, demand, self.vhost.take(), activation);
        self.seat.put(Box::new(handler))
    }

    fn reset(&mut self) {
        // Dropping the handler also ends a loan of the queues to the kernel.
        self.seat.clear();
    }

    fn save(&self, _served: &[bool]) -> Result<Vec<u8>, StateError> {
        Err(StateError::Busy("the guest uses a network interface"))
    }
}

/// Type, features and queues of every network device, and of a slot.
fn description() -> DeviceInfo {
    DeviceInfo { device_id: VIRTIO_ID_NET, features: FEATURES, queue_sizes: vec![QUEUE_SIZE; 2] }
}

/// Requirements on the receive buffers of a driver that negotiated `features`.
fn demand(features: u64, mtu: u16) -> Demand {
    let message =
        if features & GUEST_TSO != 0 { LONGEST } else { HEADER_LEN + ETHERNET_LEN + usize::from(mtu) };
    Demand { buffer: if features & MRG_RXBUF != 0 { HEADER_LEN } else { message }, message }
}

#[cfg(test)]
mod tests;
