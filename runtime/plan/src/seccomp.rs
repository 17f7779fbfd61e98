//! A seccomp profile to the program that the guest's kernel judges system calls by.
//!
//! The rules are libseccomp's as runc uses it:
//! - a rule that does what the default does is none; a name that x86_64 does not have is passed over;
//! - a rule without conditions wins over those of the same call that have some, whatever their order; of several
//!   without, the first counts. Rules with conditions are tried in the profile's order;
//! - all conditions of a rule have to hold, unless two are about the same argument: then one is enough;
//! - a call that is newer than every one that the profile names fails with ENOSYS unless the default lets calls pass, so
//!   that programs try the older one instead.
//!
//! The guest's kernel runs neither 32-bit programs nor x32's: calls of another architecture kill the thread, as
//! libseccomp has it for architectures that a filter does not know, and naming them changes nothing.

use agent_proto::payload::Filter;
use oci::bundle::{Result, invalid, unsupported};
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

/// seccomp(2)'s flags by their names. A process is filtered before it has a second thread, so that there is nobody to
/// synchronize with.
const FLAGS: [(&str, u32); 3] = [
    ("SECCOMP_FILTER_FLAG_TSYNC", 0),
    ("SECCOMP_FILTER_FLAG_LOG", 2),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", SPEC_ALLOW),
];

/// SECCOMP_FILTER_FLAG_SPEC_ALLOW: speculation stays as it is. runc's choice for a profile that says nothing of flags.
const SPEC_ALLOW: u32 = 4;

/// Compiles `profile`.
pub fn compile(profile: &Seccomp) -> Result<Filter> {
    if profile.listener_path.0 {
        return Err(unsupported("linux.seccomp.listenerPath", LISTENER));
    }
    if profile.listener_metadata.0 {
        return Err(unsupported("linux.seccomp.listenerMetadata", LISTENER));
    }
    let names = profile.architectures.iter().enumerate();
    if let Some((index, name)) = names.into_iter().find(|(_, name)| !ARCHITECTURES.contains(&name.as_str())) {
        return Err(invalid(&format!("linux.seccomp.architectures[{index}]"), format!("{name:?}")));
    }
    let program = program::of(&Rules::of(profile)?)?;
    Ok(Filter { program, flags: flags(profile.flags.as_deref())? })
}

/// The actions that are honoured, by their names.
pub fn actions() -> impl Iterator<Item = &'static str> {
    rules::ACTIONS.iter().map(|(name, _)| *name)
}

/// Likewise the operators.
pub fn operators() -> impl Iterator<Item = &'static str> {
    rules::OPERATORS.iter().map(|(name, _)| *name)
}

/// Likewise the flags.
pub fn flag_names() -> impl Iterator<Item = &'static str> {
    FLAGS.iter().map(|(name, _)| *name)
}

/// Why nobody outside of the machine can decide.
const LISTENER: &str = "a process of the host cannot answer for calls of a guest's kernel";

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
