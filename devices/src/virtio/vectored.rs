//! Guest memory as the host's vectored calls want it.

use vm_memory::VolatileSlice;

/// Returns the pieces for readv(2) and its kind. The vector is valid as long as the mapping, that is, as `slices`.
pub fn vector(slices: &[VolatileSlice]) -> Vec<libc::iovec> {
    let piece =
        |s: &VolatileSlice| libc::iovec { iov_base: s.ptr_guard_mut().as_ptr().cast(), iov_len: s.len() };
    slices.iter().map(piece).collect()
}
