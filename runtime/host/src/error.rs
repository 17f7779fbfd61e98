//! The error of an operation on the host.

use std::fmt::{self, Display, Formatter};
use std::io;
use std::path::{Path, PathBuf};

/// A failed operation, such as `remove cgroup /sys/fs/cgroup/a`.
#[derive(Debug, thiserror::Error)]
pub struct HostError {
    step: &'static str,
    path: Option<PathBuf>,
    /// Error of the operation.
    #[source]
    pub source: io::Error,
}

impl HostError {
    /// Returns a function for `map_err` that names the failed step.
    pub fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> HostError {
        move |source| HostError { step, path: None, source: source.into() }
    }

    /// Returns a function for `map_err` that names the failed step and its file.
    pub fn at<E: Into<io::Error>>(step: &'static str, path: &Path) -> impl FnOnce(E) -> HostError {
        let path = Some(path.to_owned());
        move |source| HostError { step, path, source: source.into() }
    }
}

impl Display for HostError {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.step)?;
        self.path.iter().try_for_each(|path| write!(f, " {}", path.display()))
    }
}
