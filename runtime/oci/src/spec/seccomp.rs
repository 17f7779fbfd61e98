//! `linux.seccomp`: what a container's processes may ask of their kernel (config-linux.md, "Seccomp").

use serde::Deserialize;

use super::Given;

/// A profile.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Seccomp {
    /// What happens on a call that no rule is about.
    pub default_action: String,
    /// The error that the default action returns.
    pub default_errno_ret: Option<u32>,
    /// Architectures whose calls the rules are about, beside the machine's own.
    pub architectures: Vec<String>,
    /// seccomp(2)'s flags by name; a profile without the list differs from one with an empty one.
    pub flags: Option<Vec<String>>,
    /// Not honoured.
    pub listener_path: Given,
    /// Not honoured.
    pub listener_metadata: Given,
    /// The rules.
    pub syscalls: Vec<Syscall>,
}

/// What happens on some calls.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Syscall {
    /// The calls.
    pub names: Vec<String>,
    /// What happens.
    pub action: String,
    /// The error that the action returns.
    pub errno_ret: Option<u32>,
    /// What the arguments have to be.
    pub args: Vec<Argument>,
}

/// What an argument has to be.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Argument {
    /// The argument, from 0.
    pub index: u32,
    /// What it is compared with; a mask for `SCMP_CMP_MASKED_EQ`.
    pub value: u64,
    /// What the masked argument is compared with.
    pub value_two: u64,
    /// How it is compared.
    pub op: String,
}
