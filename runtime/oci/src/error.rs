//! Errors of reading and checking a bundle.

use std::io;
use std::path::PathBuf;

/// An error of reading or checking a bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// config.json cannot be read.
    #[error("read bundle {}", path.display())]
    Read {
        /// Path of config.json.
        path: PathBuf,
        /// Error of the read.
        #[source]
        source: io::Error,
    },
    /// config.json does not parse. The source names line and column.
    #[error("parse {}", path.display())]
    Parse {
        /// Path of config.json.
        path: PathBuf,
        /// Error of the parser, with line and column.
        #[source]
        source: serde_json::Error,
    },
    /// A value that the specification does not allow, or a missing field.
    #[error("config.json {path}: {why}")]
    Invalid {
        /// JSON path below config.json, such as `process.env[1]`.
        path: String,
        /// Reason, which quotes the value.
        why: String,
    },
    /// A field that cannot be honoured.
    #[error("config.json {path}: not supported: {why}")]
    Unsupported {
        /// JSON path below config.json.
        path: String,
        /// Reason, or the part of the value that cannot be honoured.
        why: String,
    },
    /// The program of the init process does not exist or cannot be executed. Engines parse this text, which is runc's.
    #[error("exec: {program:?}: {why}")]
    Program {
        /// First element of `process.args`.
        program: String,
        /// Reason, in runc's words.
        why: String,
    },
    /// The root file system or the source of a bind cannot be used.
    #[error("open {what} {}", path.display())]
    Source {
        /// JSON path of the field that names it.
        what: String,
        /// Path on the host.
        path: PathBuf,
        /// Error of stat(2).
        #[source]
        source: io::Error,
    },
}

/// Result with [`BundleError`] as the default error.
pub type Result<T, E = BundleError> = std::result::Result<T, E>;

/// Returns the error for a value that the specification does not allow.
pub fn invalid(path: &str, why: impl Into<String>) -> BundleError {
    BundleError::Invalid { path: path.to_owned(), why: why.into() }
}

/// Returns the error for a field that cannot be honoured.
pub fn unsupported(path: impl Into<String>, why: impl Into<String>) -> BundleError {
    BundleError::Unsupported { path: path.into(), why: why.into() }
}
