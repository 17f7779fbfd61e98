//! The virtual machine monitor: creates a KVM machine, boots a kernel in it, runs it and reports how it ended.
//!
//! The command `vmm` is in `runtime/` (its `main.rs`). This crate knows KVM, guest memory and boot protocols; it does
//! not know containers, the agent's protocol or command-line arguments. Read in this order: [`VmConfig`], [`Vm`],
//! [`layout`], then what [`Vm::start`] uses: memory, loader, boot_params, kvm, vcpu; then [`RunningVm`]; last [`snapshot`].
//!
//! A kernel whose console is a serial port, run until it resets (`examples/boot.rs` has devices besides):
//!
//! ```no_run
//! use std::fs::File;
//! use std::io::{self, Read};
//!
//! use vmm::{Entries, Image, Vm, VmConfig, VmEnd};
//!
//! let file = File::open("vmlinux")?;
//! let len = file.metadata()?.len();
//! let vm = Vm::new(VmConfig {
//!     memory_mib: 128,
//!     vcpus: 1,
//!     kernel: Image { file, offset: 0, len, name: "vmlinux".into() },
//!     initramfs: None,
//!     cmdline: "console=ttyS0 reboot=k panic=-1".to_owned(),
//!     serial: Some(Box::new(io::stdout())),
//!     timeline: None,
//!     entries: Entries::default(),
//! })?;
//! let running = vm.start()?;
//! // Readable once the machine has ended.
//! let mut ended = File::from(running.end_fd().try_clone_to_owned()?);
//! ended.read_exact(&mut [0])?;
//! assert_eq!(running.stop(), VmEnd::Reset);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod boot_params;
pub mod check;
mod config;
mod cpuid;
mod deferral;
pub mod elf;
mod end;
mod error;
mod image;
mod kvm;
pub mod layout;
mod loader;
mod memory;
mod module;
mod mptable;
mod msrs;
mod paging;
mod pause;
mod pause_order;
mod pvh;
mod running;
mod segments;
mod signal;
pub mod snapshot;
mod timeline;
mod vcpu;
mod vm;

pub use devices;

pub use boot_params::CmdlineError;
pub use config::{Entries, SavedConfig, VmConfig};
pub use end::VmEnd;
pub use error::{Error, Result};
pub use image::Image;
pub use kvm::{KvmError, PendingVm};
pub use loader::KernelError;
pub use memory::{MemoryError, discard};
pub use pause::PausedVm;
pub use running::RunningVm;
pub use snapshot::{Snapshot, SnapshotError};
pub use timeline::{Mark, Timeline};
pub use vm::Vm;
