//! The error of a step on the host: the step with its operand, and the I/O error that made it fail.

use std::fmt::Display;
use std::io;
use std::path::Path;

/// A step on the host that failed. Every module's error type has it as a variant of its own.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub struct HostError {
    step: String,
    source: io::Error,
}

impl HostError {
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

/// Returns a function that adds `step` to an I/O error, for `map_err`. A parser's error counts as one of input.
pub fn failed<E: Into<io::Error>>(step: impl Display) -> impl FnOnce(E) -> HostError {
    move |source| HostError { step: step.to_string(), source: source.into() }
}

/// Like [`failed`], for a step whose operand is `path`.
pub fn failed_at<E: Into<io::Error>>(step: impl Display, path: &Path) -> impl FnOnce(E) -> HostError {
    move |source| HostError { step: format!("{step} {}", path.display()), source: source.into() }
}
