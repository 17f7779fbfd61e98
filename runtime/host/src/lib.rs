//! What the runtime does on the host: system calls, cgroups, network namespaces, hooks, terminals and signals.
//!
//! Nothing here knows a virtual machine or the guest's agent. Of an OCI bundle it knows the types that say what is wanted
//! of the host: resources, hooks and namespaces. [`sys`] is the one file with unsafe code.

pub mod cgroup;
pub mod environment;
pub mod hooks;
pub mod network;
pub mod signals;
pub mod sys;
pub mod terminal;
pub mod text;
