//! OCI bundles (OCI runtime specification 1.2): what config.json says, and what this runtime refuses of it.
//!
//! [`spec`] has config.json's types, [`bundle`] reads a bundle and checks it, [`refusals`] names what cannot be honoured,
//! and [`program`] looks for the container's program. [`mount_options`] and [`cgroups_path`] translate words of the
//! specification. The crate reads files and nothing else: what a bundle comes to is decided in crate `plan`.

pub mod bundle;
pub mod cgroups_path;
pub mod exec;
pub mod mount_options;
pub mod program;
pub mod refusals;
pub mod spec;

pub use bundle::{Bundle, BundleError};
pub use spec::Spec;

/// The version of the OCI runtime specification whose config.json is read.
pub const OCI_VERSION: &str = "1.2.0";

/// A config.json to start from: what `vmm spec` writes.
pub const DEFAULT_CONFIG: &str = include_str!("default.json");
