//! The kernel's random number generator (random(4)).
// UNSAFETY: ioctls; each function is a safe wrapper.
#![allow(unsafe_code)]

use agent_proto::revival::ENTROPY_LEN;
use rustix::fd::BorrowedFd;
use rustix::io::Result;
use rustix::ioctl::{NoArg, Opcode, Setter, ioctl};

/// `struct rand_pool_info` with its data.
#[repr(C)]
struct Entropy {
    bits: i32,
    len: i32,
    data: [u8; ENTROPY_LEN],
}

/// Adds entropy to the generator behind `device`, which is /dev/random or /dev/urandom.
pub fn add_entropy(device: BorrowedFd<'_>, data: &[u8; ENTROPY_LEN]) -> Result<()> {
    const RNDADDENTROPY: Opcode = 0x4008_5203;
    let len = ENTROPY_LEN as i32;
    let entropy = Entropy { bits: 8 * len, len, data: *data };
    // SAFETY: RNDADDENTROPY reads a rand_pool_info and as many bytes after it as it says.
    let setter = unsafe { Setter::<RNDADDENTROPY, Entropy>::new(entropy) };
    // SAFETY: as above.
    unsafe { ioctl(device, setter) }
}

/// Makes the generator use a new key at once, everywhere.
pub fn reseed(device: BorrowedFd<'_>) -> Result<()> {
    const RNDRESEEDCRNG: Opcode = 0x5207;
    // SAFETY: RNDRESEEDCRNG has no argument.
    unsafe { ioctl(device, NoArg::<RNDRESEEDCRNG>::new()) }
}
