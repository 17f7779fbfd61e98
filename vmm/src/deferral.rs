//! Destroys a machine after its process has ended, not while it ends.
//!
//! The last close of a machine's descriptors waits for two grace periods of the host's kernel: one stops KVM's thread
//! for huge pages, the other frees the page tables. On the instruction clock they are 22 of the 27 million
//! instructions from a container's exit to the monitor's. Nobody needs their result. So an io_uring holds references to
//! the descriptors: the kernel releases an io_uring, with its files, in a thread of its own.

// UNSAFETY: io_uring's system calls have no wrapper in libc.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Size of `struct io_uring_params`, in 64-bit words (Linux, include/uapi/linux/io_uring.h).
const PARAMS_WORDS: usize = 15;
/// IORING_REGISTER_FILES.
const REGISTER_FILES: libc::c_uint = 2;

/// References to a machine's files that the kernel drops in the background once this is dropped or the process ends.
pub struct Deferral {
    _ring: OwnedFd,
}

impl Deferral {
    /// Takes references to `files`. Fails if the host does not permit io_uring (`kernel.io_uring_disabled`, a seccomp
    /// filter, a kernel before 5.1).
    pub fn new(files: &[RawFd]) -> io::Result<Deferral> {
        let mut params = MaybeUninit::<[u64; PARAMS_WORDS]>::zeroed();
        // SAFETY: the kernel reads and writes a structure of this size; zeros ask for no feature.
        let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
        let ring = i32::try_from(ring).ok().filter(|ring| *ring >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the kernel has just opened this descriptor for the caller.
        let ring = unsafe { OwnedFd::from_raw_fd(ring) };
        // SAFETY: the kernel reads `files.len()` descriptors.
        let registered = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                ring.as_raw_fd(),
                REGISTER_FILES,
                files.as_ptr(),
                files.len(),
            )
        };
        if registered == 0 { Ok(Deferral { _ring: ring }) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};

    use super::*;

    #[test]
    fn a_file_is_closed_after_the_deferral_is_dropped() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        let deferral = match Deferral::new(&[writer.as_raw_fd()]) {
            Err(error) if [ErrorKind::PermissionDenied, ErrorKind::Unsupported].contains(&error.kind()) => {
                return;
            }
            deferral => deferral.unwrap(),
        };
        writer.write_all(b"x").unwrap();
        drop(writer);
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        drop(deferral);
        // Blocks until the kernel has closed the last writer.
        assert_eq!(reader.read(&mut byte).unwrap(), 0);
    }
}
