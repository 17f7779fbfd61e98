//! Queues of a network device, and the layout of the packets in them (5.1).

use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

pub const RECEIVE: usize = 0;
pub const TRANSMIT: usize = 1;
pub const QUEUE_SIZE: u16 = 256;

/// Length of `struct virtio_net_hdr` with num_buffers (5.1.6). The tap must be configured with it (TUNSETVNETHDRSZ).
pub const HEADER_LEN: usize = 12;
/// Offset of num_buffers.
pub const NUM_BUFFERS: usize = 10;
/// Length of an Ethernet header.
pub const ETHERNET_LEN: usize = 14;
/// Length of the longest packet with its header: one that is to be segmented (5.1.6.3.1).
pub const LONGEST: usize = 65562;

/// Feature of packets that use several buffers.
pub const MRG_RXBUF: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
