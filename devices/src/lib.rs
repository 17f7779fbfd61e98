//! The devices of a machine, and the bus that connects them to the vCPUs.
//!
//! This crate accesses guest memory directly and represents interrupts as file descriptors. It does not know KVM,
//! containers or the agent's protocol. Read in this order: [`bus`], [`event_loop`], [`interrupt`], [`virtio`],
//! [`state`], [`share`], then any device.
//!
//! A device with registers is a [`BusDevice`]. A write returns what the machine must do, as an [`Action`]:
//!
//! ```
//! use devices::{Action, Bus, BusDevice};
//!
//! /// One register that keeps a byte; writing 0xff switches the machine off.
//! struct Scratch(u8);
//!
//! impl BusDevice for Scratch {
//!     fn read(&mut self, _offset: u64, data: &mut [u8]) {
//!         data.fill(self.0);
//!     }
//!
//!     fn write(&mut self, _offset: u64, data: &[u8]) -> Action {
//!         match data {
//!             [0xff] => return Action::Shutdown,
//!             [byte] => self.0 = *byte,
//!             _ => {}
//!         }
//!         Action::None
//!     }
//! }
//!
//! let mut bus = Bus::new();
//! bus.insert(0x500, 1, Box::new(Scratch(0)))?;
//! assert_eq!(bus.write(0x500, &[42]), Action::None);
//! let mut byte = [0];
//! bus.read(0x500, &mut byte);
//! assert_eq!(byte, [42]);
//! assert_eq!(bus.write(0x500, &[0xff]), Action::Shutdown);
//! # Ok::<(), devices::bus::BusError>(())
//! ```
//!
//! A virtio-fs device serves directories of the host, which a [`ShareTree`](share::ShareTree) names:
//!
//! ```
//! use std::fs::File;
//!
//! use devices::share::{ShareTree, Terms};
//! use devices::virtio::VirtioDevice;
//! use devices::virtio::fs::{self, Fs};
//!
//! let tree = ShareTree::new()?;
//! let device = Fs::new("share", fs::server(&tree), || {})?;
//! assert_eq!(device.info().device_id, 26);
//!
//! // The tree may change while the device works: the guest sees `/data` come and go.
//! tree.bind("/data", File::open(std::env::temp_dir())?.into(), Terms::read_only())?;
//! tree.unbind("/data")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod bus;
pub mod event_loop;
pub mod faults;
pub mod interrupt;
pub mod mark;
pub mod pieces;
pub mod reset;
pub mod serial;
pub mod share;
pub mod state;
mod vectored;
pub mod virtio;

pub use bus::{Action, Bus, BusDevice};
pub use event_loop::{EventLoop, LoopHandle, Seat, Subscriber};
pub use interrupt::Interrupt;
pub use pieces::Pieces;
pub use state::{Decoder, Encoder, StateError};

/// What a thread calls before anything of the guest's reaches it: gives up the rights that the thread does not need.
pub type Enter = fn();
