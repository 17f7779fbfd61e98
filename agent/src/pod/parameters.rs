//! Kernel parameters that the guest has from its host.

use alloc::collections::BTreeMap;
use alloc::string::String;

use rustix::fs::{CWD, Mode, OFlags};

/// Directories of kernel parameters.
const DIRECTORIES: [&str; 2] = ["/proc/sys/", "/sys/"];

/// Writes parameters, given as paths of files and the text to write. Programs expect the host's values but do not depend on
/// them, so that a kernel without a parameter, or with another range of its values, keeps its own.
pub fn set(parameters: &BTreeMap<String, String>) {
    let known = |path: &str| DIRECTORIES.iter().any(|directory| path.starts_with(directory));
    for (path, text) in parameters.iter().filter(|(path, _)| known(path)) {
        let file = rustix::fs::openat(CWD, path.as_str(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        let _ = file.and_then(|file| rustix::io::write(&file, text.as_bytes()));
    }
}
