//! The devices of a vmm machine, and the bus they sit on.
//!
//! Knows guest memory and interrupts as file descriptors; does not know KVM, containers or the agent's protocol.
//! Read in this order: [`bus`], [`event_loop`], [`interrupt`], [`virtio`], then any device.

pub mod bus;
pub mod event_loop;
pub mod faults;
pub mod interrupt;
pub mod mark;
pub mod reset;
pub mod serial;
pub mod virtio;

pub use bus::{Action, Bus, BusDevice};
pub use event_loop::{EventLoop, LoopHandle, Seat, Subscriber};
pub use interrupt::Interrupt;
