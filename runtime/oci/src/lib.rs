//! OCI bundles (OCI runtime specification 1.2): types of config.json, and the fields that are refused.
//!
//! [`spec`] has the types of config.json, [`json`] parses it as runc does, and [`bundle`] reads and checks a bundle.
//! [`refusals`] names the fields that cannot be honoured, [`warnings`] those without effect, and [`program`] looks for
//! the container's program. [`pod`] says which part a container has in a Kubernetes pod. [`mount_options`] and [`cgroups_path`] translate words of the specification. The crate only
//! reads files: crate `plan` decides how a bundle is run.

// A part of the command, not a library: only items whose names and types do not explain them have a comment.
#![allow(missing_docs)]

pub mod bundle;
pub mod cgroups_path;
pub mod error;
pub mod exec;
pub mod json;
pub mod mount_options;
pub mod mounts_below;
pub mod pod;
pub mod program;
pub mod refusals;
pub mod spec;
pub mod warnings;

pub use bundle::Bundle;
pub use error::BundleError;
pub use spec::Spec;

/// Version of the OCI runtime specification that this crate implements.
pub const OCI_VERSION: &str = "1.2.0";

/// The config.json that `vmm spec` writes as a starting point.
pub const DEFAULT_CONFIG: &str = include_str!("default.json");
