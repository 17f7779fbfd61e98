//! Compiles a seccomp profile to the BPF program with which the guest's kernel filters system calls.
//!
//! The rules have the semantics of libseccomp, as runc uses it:
//! - a rule with the default action is ignored, and so is a name that x86_64 does not have;
//! - a rule without conditions overrides rules with conditions for the same call, regardless of their order. Of several
//!   rules without conditions the first counts. Rules with conditions are tried in the order of the profile;
//! - all conditions of a rule must hold, except several conditions on the same argument, of which one must hold;
//! - a call that is newer than all calls of the profile fails with ENOSYS unless the default lets calls pass, so that
//!   programs fall back to the older call.
//!
//! The guest's kernel runs neither 32-bit nor x32 programs. Calls of another architecture kill the thread, as in
//! libseccomp for architectures that a filter does not know; naming architectures in the profile has no effect.

use agent_proto::payload::Filter;
use oci::error::{Result, invalid, unsupported};
use oci::spec::seccomp::Seccomp;

mod program;
mod rules;

use rules::Rules;

/// Architectures of the specification.
pub const ARCHITECTURES: [&str; 22] = [
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_SH",
];

/// Flags of seccomp(2) by name. SECCOMP_FILTER_FLAG_TSYNC has no effect: the filter is installed before the process has
/// a second thread.
const FLAGS: [(&str, u32); 3] = [
    ("SECCOMP_FILTER_FLAG_TSYNC", 0),
    ("SECCOMP_FILTER_FLAG_LOG", 2),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", SPEC_ALLOW),
];

/// SECCOMP_FILTER_FLAG_SPEC_ALLOW: does not disable speculation. runc's default for a profile without a list of flags.
const SPEC_ALLOW: u32 = 4;

/// Whether `profile` asks for a filter: runc reads a profile without default action and rules as none.
pub fn is_filter(profile: &Seccomp) -> bool {
    !(profile.default_action.is_empty() && profile.syscalls.is_empty())
}

/// Compiles `profile` to a BPF program and seccomp(2) flags. A listener without a rule that notifies it has no effect,
/// as with runc; such a rule is refused.
pub fn compile(profile: &Seccomp) -> Result<Filter> {
    let names = profile.architectures.iter().enumerate();
    if let Some((index, name)) = names.into_iter().find(|(_, name)| !ARCHITECTURES.contains(&name.as_str())) {
        return Err(invalid(&format!("linux.seccomp.architectures[{index}]"), format!("{name:?}")));
    }
    let program = program::of(&Rules::of(profile)?)?;
    Ok(Filter { program, flags: flags(profile.flags.as_deref())? })
}

pub fn actions() -> impl Iterator<Item = &'static str> {
    rules::ACTIONS.iter().map(|(name, _)| *name)
}

pub fn operators() -> impl Iterator<Item = &'static str> {
    rules::OPERATORS.iter().map(|(name, _)| *name)
}

pub fn flag_names() -> impl Iterator<Item = &'static str> {
    FLAGS.iter().map(|(name, _)| *name)
}

fn flags(names: Option<&[String]>) -> Result<u32> {
    let Some(names) = names else { return Ok(SPEC_ALLOW) };
    names.iter().enumerate().try_fold(0, |flags, (index, name)| {
        match FLAGS.iter().find(|(known, _)| known == name) {
            Some((_, flag)) => Ok(flags | flag),
            None => Err(unsupported(format!("linux.seccomp.flags[{index}]"), format!("flag {name:?}"))),
        }
    })
}

#[cfg(test)]
mod tests;
