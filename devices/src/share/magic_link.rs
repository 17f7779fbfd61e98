//! The magic links in /proc/self/fd, one per file descriptor of this process.

use std::ffi::CStr;
use std::io::Write;
use std::ops::Deref;
use std::os::fd::RawFd;

/// Path of a magic link, kept without an allocation.
pub struct MagicLink([u8; 28], usize);

impl MagicLink {
    /// Returns the path of the link to `fd`: `prefix` (at most 16 bytes), then the number.
    pub fn new(prefix: &str, fd: RawFd) -> MagicLink {
        let mut bytes = [0; 28];
        let mut rest = &mut bytes[..27];
        // 16 bytes of prefix and 10 digits fit.
        let _ = write!(rest, "{prefix}{fd}");
        let len = 27 - rest.len();
        MagicLink(bytes, len)
    }
}

impl Deref for MagicLink {
    type Target = CStr;

    fn deref(&self) -> &CStr {
        CStr::from_bytes_with_nul(&self.0[..=self.1]).unwrap_or(c"")
    }
}
