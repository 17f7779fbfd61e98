//! The error of an operation on the host.

use std::borrow::Cow;
use std::fmt::{self, Display, Formatter};
use std::io;
use std::path::{Path, PathBuf};

/// A failed operation, such as `remove cgroup /sys/fs/cgroup/a`.
#[derive(Debug, thiserror::Error)]
pub struct HostError {
    step: Cow<'static, str>,
    path: Option<PathBuf>,
    #[source]
    pub source: io::Error,
}

impl HostError {
    /// Returns a function for `map_err` that names the failed step. A parser's error counts as one of input.
    pub fn step<E: Into<io::Error>>(step: impl Into<Cow<'static, str>>) -> impl FnOnce(E) -> HostError {
        move |source| HostError { step: step.into(), path: None, source: source.into() }
    }

    /// Returns a function for `map_err` that names the failed step and its file.
    pub fn at<E: Into<io::Error>>(
        step: impl Into<Cow<'static, str>>,
        path: &Path,
    ) -> impl FnOnce(E) -> HostError {
        move |source| HostError { step: step.into(), path: Some(path.to_owned()), source: source.into() }
    }
}

impl Display for HostError {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.step)?;
        self.path.iter().try_for_each(|path| write!(f, " {}", path.display()))
    }
}
