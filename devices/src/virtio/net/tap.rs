// UNSAFETY: vectored I/O on guest memory and an ioctl exist only as raw system calls; each is wrapped here in a
// function that is safe to call.
#![allow(unsafe_code)]
//! A tap's file descriptor: transfers packets with their headers to and from guest memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use libc::c_uint;
use virtio_bindings::virtio_net::*;
use vm_memory::VolatileSlice;

use crate::vectored::vector;

/// TUNSETOFFLOAD and its flags (linux/if_tun.h).
const TUNSETOFFLOAD: u32 = 0x4004_54d0;
const TUN_F_CSUM: c_uint = 0x01;
const TUN_F_TSO4: c_uint = 0x02;
const TUN_F_TSO6: c_uint = 0x04;
const TUN_F_TSO_ECN: c_uint = 0x08;

/// An open tap.
#[derive(Debug)]
pub struct Tap {
    file: File,
    /// False for a socket that replaces the tap in a test. It has no offloads to set.
    is_tap: bool,
}

impl Tap {
    /// Returns a tap over `fd`, which must be non-blocking and transfer packets with a header of
    /// [`HEADER_LEN`](super::HEADER_LEN) bytes and nothing else (IFF_NO_PI, IFF_VNET_HDR).
    pub fn new(fd: OwnedFd) -> Tap {
        Tap { file: fd.into(), is_tap: true }
    }

    /// Returns a tap over a socket that replaces it in a test.
    #[cfg(any(test, feature = "driver"))]
    pub fn of_socket(fd: OwnedFd) -> Tap {
        Tap { file: fd.into(), is_tap: false }
    }

    /// The file descriptor, for vhost-net.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Sets the offloads that the guest's driver can handle, according to the negotiated `features`.
    pub(super) fn set_offloads(&self, features: u64) -> io::Result<()> {
        if !self.is_tap {
            return Ok(());
        }
        let flags = offloads(features);
        // SAFETY: TUNSETOFFLOAD takes its flags by value.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETOFFLOAD as _, flags as libc::c_ulong) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Reads one packet. Returns its length, which is larger than `pieces` if the packet did not fit.
    pub(super) fn read(&self, pieces: &[VolatileSlice]) -> io::Result<usize> {
        let mut rest = 0u8;
        let mut vector = vector(pieces);
        vector.push(libc::iovec { iov_base: (&raw mut rest).cast(), iov_len: 1 });
        // SAFETY: each piece is in a guest mapping that `pieces` keeps borrowed. The guest may write there at the same
        // time, which VolatileSlice allows, and no Rust reference to those bytes exists. The last piece is the local
        // `rest`.
        let len = unsafe { libc::readv(self.file.as_raw_fd(), vector.as_ptr(), vector.len() as libc::c_int) };
        usize::try_from(len).map_err(|_| io::Error::last_os_error())
    }

    /// Writes one packet.
    pub(super) fn write(&self, pieces: &[VolatileSlice]) -> io::Result<()> {
        let vector = vector(pieces);
        // SAFETY: as in read(); the kernel only reads.
        let len =
            unsafe { libc::writev(self.file.as_raw_fd(), vector.as_ptr(), vector.len() as libc::c_int) };
        if len < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Converts features to flags of TUNSETOFFLOAD. Segmentation offloads require checksum offload (5.1.3.1).
fn offloads(features: u64) -> c_uint {
    let flag = |feature: u32, flag: c_uint| if features & 1 << feature != 0 { flag } else { 0 };
    let segments = flag(VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4) | flag(VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6);
    let ecn = if segments != 0 { flag(VIRTIO_NET_F_GUEST_ECN, TUN_F_TSO_ECN) } else { 0 };
    match flag(VIRTIO_NET_F_GUEST_CSUM, TUN_F_CSUM) {
        0 => 0,
        checksum => checksum | segments | ecn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tap_does_only_the_offloads_that_the_guest_accepts() {
        let bits = |bits: &[u32]| bits.iter().map(|bit| 1 << bit).sum();
        for (features, flags) in [
            (0, 0),
            (u64::MAX, 0xf),
            (bits(&[VIRTIO_NET_F_GUEST_CSUM]), 0x1),
            (bits(&[VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_ECN]), 0),
            (bits(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN]), 0x1),
            (bits(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO6]), 0x5),
        ] {
            assert_eq!(offloads(features), flags, "{features:#x}");
        }
    }
}
