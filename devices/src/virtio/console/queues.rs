//! The queues of a console, and the feature on which they depend (5.3).

/// VIRTIO_CONSOLE_F_MULTIPORT, as a mask.
pub const MULTIPORT: u64 = 1 << 1;
/// The control receive queue. The control transmit queue is the next one.
pub const CONTROL_QUEUE: usize = 2;

/// Number of a port's receive queue. The port's transmit queue is the next one (5.3.2).
pub fn receive_queue(port: usize) -> usize {
    if port == 0 { 0 } else { 2 * port + 2 }
}

/// The use of a queue. Ports are numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    ControlReceive,
    ControlTransmit,
    Receive(usize),
    Transmit(usize),
}

/// Returns the use of queue number `queue`: the inverse of [`receive_queue`], for all queues.
pub fn role(queue: usize) -> Role {
    let port = match queue / 2 {
        0 => 0,
        1 if queue.is_multiple_of(2) => return Role::ControlReceive,
        1 => return Role::ControlTransmit,
        pair => pair - 1,
    };
    if queue.is_multiple_of(2) { Role::Receive(port) } else { Role::Transmit(port) }
}
