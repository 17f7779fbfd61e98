//! virtio-net (VIRTIO 1.2, 5.1; device ID 1): a network interface over a tap of the host.
//!
//! | queue | use | entries |
//! |---|---|---|
//! | 0 | receive: packets for the guest | 256 |
//! | 1 | transmit | 256 |
//!
//! Offers F_MAC and F_MTU; F_CSUM and F_GUEST_CSUM, F_HOST_TSO4/6 with F_HOST_ECN and F_GUEST_TSO4/6 with F_GUEST_ECN, all
//! of which the tap does; F_MRG_RXBUF, so that a long packet lies in many small buffers. Refuses UFO (kernels have
//! dropped it), USO (young on taps), F_CTRL_VQ (every packet that reaches the tap is the guest's), F_MQ (one thread
//! serves all) and F_STATUS (the link is always up).
//!
//! Packets go between guest memory and the tap without a buffer in between: the header of 12 bytes that stands before
//! each is the tap's own (IFF_VNET_HDR), and the host's kernel judges it and what it says. The host's kernel serves both
//! queues where it offers to ([`Vhost`]), for the first driver and as long as it understands what it reads; else, and
//! after that, they are served in the devices' event loop. There, a tap that is full and a guest without buffers stop
//! one direction until an edge of the tap, or a kick, says that it goes on.
//!
//! A device may be held to its interface's addresses ([`SourceFilter`]): what leaves with others is refused and counted. Then
//! its queues stay here, and the beginning of each packet is copied.
//!
//! A [`Slot`] is a place for one: what is in it may come and go while the machine runs.

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::*;

pub use self::filter::{SourceFilter, Sources};
use self::handler::{Handler, Outlet};
pub use self::slot::Slot;
pub use self::tap::Tap;
pub use self::vhost::Vhost;
use super::queue::Demand;
use super::{Activation, DeviceInfo, VirtioDevice, copy_config};
use crate::{LoopHandle, Seat};

mod filter;
mod handler;
mod slot;
mod tap;
mod vhost;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUE_SIZE: u16 = 256;

/// Bytes of struct virtio_net_hdr with num_buffers (5.1.6), which a tap has to be told (TUNSETVNETHDRSZ).
pub const HEADER_LEN: usize = 12;
/// Where num_buffers is.
const NUM_BUFFERS: usize = 10;
/// Bytes of an Ethernet header.
const ETHERNET_LEN: usize = 14;
/// Bytes of the longest packet with its header, which is one that is still to be cut: 5.1.6.3.1.
const LONGEST: usize = 65562;

const GUEST_TSO: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO6;
const MRG_RXBUF: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
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

/// A network device. The tap stays its own, so that the driver may start it as often as it likes.
pub struct Net {
    seat: Seat,
    /// One descriptor for every driver that comes.
    tap: Arc<Tap>,
    mac: [u8; 6],
    mtu: u16,
    /// For the first driver.
    vhost: Option<Vhost>,
    filter: Option<SourceFilter>,
}

impl Net {
    /// Returns a device with this hardware address and largest packet (without its Ethernet header), over a tap that
    /// is served by the kernel, or by the loop behind `events`.
    pub fn new(events: LoopHandle, tap: Tap, mac: [u8; 6], mtu: u16, vhost: Option<Vhost>) -> Net {
        Net { seat: events.seat(), tap: Arc::new(tap), mac, mtu, vhost, filter: None }
    }

    /// Lets packets out only from the sources that `filter` has. The kernel does not get the queues: it would not ask.
    pub fn held_to(self, filter: SourceFilter) -> Net {
        Net { filter: Some(filter), vhost: None, ..self }
    }

    /// struct virtio_net_config: mac, status u16, max_virtqueue_pairs u16, mtu u16.
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
        // Linux's driver fills the receive queue first: no kick is needed before there is something to receive.
        activation.queues[RECEIVE].quiet();
        self.tap.set_offloads(activation.features)?;
        let demand = demand(activation.features, self.mtu);
        let tap = Outlet { tap: self.tap.clone(), filter: self.filter.clone() };
        let handler = Handler::new(tap, demand, self.vhost.take(), activation);
        self.seat.put(Box::new(handler))
    }

    fn reset(&mut self) {
        // With the handler goes what the kernel has of the queues.
        self.seat.clear();
    }
}

/// What every one is.
fn description() -> DeviceInfo {
    DeviceInfo { device_id: VIRTIO_ID_NET, features: FEATURES, queue_sizes: vec![QUEUE_SIZE; 2] }
}

/// What a driver's buffers have to hold that agreed on `features`.
fn demand(features: u64, mtu: u16) -> Demand {
    let message =
        if features & GUEST_TSO != 0 { LONGEST } else { HEADER_LEN + ETHERNET_LEN + usize::from(mtu) };
    Demand { buffer: if features & MRG_RXBUF != 0 { HEADER_LEN } else { message }, message }
}

#[cfg(test)]
mod tests;
