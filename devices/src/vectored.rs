//! Conversion of guest memory to the vectors of the host's vectored system calls.

use vm_memory::VolatileSlice;

/// Returns `slices` as a vector for readv(2), writev(2) and the like. It is valid while `slices` is.
pub fn vector(slices: &[VolatileSlice]) -> Vec<libc::iovec> {
    let piece =
        |s: &VolatileSlice| libc::iovec { iov_base: s.ptr_guard_mut().as_ptr().cast(), iov_len: s.len() };
    slices.iter().map(piece).collect()
}
