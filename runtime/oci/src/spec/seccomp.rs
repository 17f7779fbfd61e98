//! `linux.seccomp`: filter for system calls of a container's processes (config-linux.md, "Seccomp").

use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Seccomp {
    /// Action for system calls that match no rule.
    pub default_action: String,
    pub default_errno_ret: Option<u32>,
    /// Architectures that the rules apply to, in addition to the machine's.
    pub architectures: Vec<String>,
    /// Flags of seccomp(2) by name. A profile without the list has other defaults than one with an empty list.
    pub flags: Option<Vec<String>>,
    pub syscalls: Vec<Syscall>,
}

/// A rule for one or more system calls.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Syscall {
    pub names: Vec<String>,
    /// Action if all conditions hold.
    pub action: String,
    pub errno_ret: Option<u32>,
    pub args: Vec<Argument>,
}

/// A condition on an argument of a system call.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Argument {
    /// Index of the argument, from 0.
    pub index: u32,
    /// Operand of the comparison; the mask for `SCMP_CMP_MASKED_EQ`.
    pub value: u64,
    /// Second operand: compared with the masked argument for `SCMP_CMP_MASKED_EQ`.
    pub value_two: u64,
    /// Comparison operator, such as `SCMP_CMP_EQ`.
    pub op: String,
}
