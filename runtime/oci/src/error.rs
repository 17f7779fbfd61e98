//! Errors of reading and checking a bundle.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("read bundle {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// config.json does not parse. The source names line and column.
    #[error("parse {}", path.display())]
    Parse {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// A value that the specification does not allow, or a missing field.
    #[error("config.json {path}: {why}")]
    Invalid {
        /// JSON path below config.json, such as `process.env[1]`.
        path: String,
        why: String,
    },
    /// A field that cannot be honoured.
    #[error("config.json {path}: not supported: {why}")]
    Unsupported { path: String, why: String },
    /// The program of the init process does not exist or cannot be executed. Engines parse this text, which is runc's.
    #[error("exec: {program:?}: {why}")]
    Program { program: String, why: String },
    /// The root file system or the source of a bind cannot be used.
    #[error("open {what} {}", path.display())]
    Source {
        /// JSON path of the field that names it.
        what: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

pub type Result<T, E = BundleError> = std::result::Result<T, E>;

pub fn invalid(path: &str, why: impl Into<String>) -> BundleError {
    BundleError::Invalid { path: path.to_owned(), why: why.into() }
}

pub fn unsupported(path: impl Into<String>, why: impl Into<String>) -> BundleError {
    BundleError::Unsupported { path: path.into(), why: why.into() }
}
