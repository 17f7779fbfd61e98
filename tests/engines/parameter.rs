//! Kernel parameters of the host.

use std::fs;
use std::path::PathBuf;

/// A kernel parameter of the host with another value, until it is dropped.
pub struct HostParameter {
    path: PathBuf,
    before: String,
}

impl HostParameter {
    /// Sets a parameter, such as `vm/swappiness`.
    pub fn set(name: &str, value: &str) -> HostParameter {
        let path = PathBuf::from("/proc/sys").join(name);
        let before = fs::read_to_string(&path).expect("read a kernel parameter");
        fs::write(&path, value).expect("set a kernel parameter");
        HostParameter { path, before }
    }
}

impl Drop for HostParameter {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.path, &self.before) {
            eprintln!("{}: {error}", self.path.display());
        }
    }
}
