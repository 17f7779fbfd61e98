//! Parses a profile to rules: the kernel's answer to each call.

use std::collections::BTreeMap;

use libc::{
    SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_KILL_THREAD, SECCOMP_RET_LOG,
    SECCOMP_RET_TRACE, SECCOMP_RET_TRAP,
};
use oci::error::{Result, invalid, unsupported};
use oci::spec::seccomp::{Argument, Seccomp, Syscall};
use syscalls::x86_64::Sysno;

/// Reason for refusing notification listeners.
pub(super) const LISTENER: &str = "a host process cannot handle system calls of the guest";
/// Maximum error number (linux/err.h, MAX_ERRNO).
const MAX_ERRNO: u32 = 4095;
/// Maximum number for a tracer (SECCOMP_RET_DATA).
const MAX_TRACE: u32 = 0xffff;
/// Number of arguments of a call.
const ARGUMENTS: u32 = 6;

/// The parsed rules of a profile.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rules {
    /// Answer to calls that are not in `calls`.
    pub(super) default: u32,
    /// Answer to calls that are newer than all calls of the profile.
    pub(super) newer: u32,
    /// Highest call number of the profile.
    pub(super) newest: Option<u32>,
    /// Verdicts by call number.
    pub(super) calls: BTreeMap<u32, Verdict>,
}

/// The answer to a call, which may depend on its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The same answer for all arguments.
    Always(u32),
    /// Answer of the first rule whose conditions hold, or the default.
    First(Vec<Rule>),
}

/// An answer, and the conditions that must all hold for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) answer: u32,
}

/// A condition on an argument of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) argument: u32,
    pub(super) operator: Operator,
    /// Operand of the comparison.
    pub(super) value: u64,
    /// Bits of the argument that are compared.
    pub(super) mask: u64,
}

/// Unsigned comparison of an argument with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
}

impl Rules {
    pub(super) fn of(profile: &Seccomp) -> Result<Rules> {
        let default = answer("linux.seccomp.defaultAction", &profile.default_action)
            .and_then(|kind| with_number("linux.seccomp.defaultErrnoRet", kind, profile.default_errno_ret))?;
        let passes = matches!(default & 0xffff_0000, SECCOMP_RET_ALLOW | SECCOMP_RET_LOG | SECCOMP_RET_TRACE);
        let newer = if passes { default } else { SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs() };
        let mut rules = Rules { default, newer, newest: None, calls: BTreeMap::new() };
        for (index, syscall) in profile.syscalls.iter().enumerate() {
            rules.add(&format!("linux.seccomp.syscalls[{index}]"), syscall)?;
        }
        Ok(rules)
    }

    fn add(&mut self, path: &str, syscall: &Syscall) -> Result<()> {
        let answer = answer(&format!("{path}.action"), &syscall.action)
            .and_then(|kind| with_number(&format!("{path}.errnoRet"), kind, syscall.errno_ret))?;
        let conditions = syscall.args.iter().enumerate();
        let conditions: Vec<_> = conditions
            .map(|(index, argument)| condition(&format!("{path}.args[{index}]"), argument))
            .collect::<Result<_>>()?;
        for name in &syscall.names {
            // libseccomp ignores names that the architecture does not have.
            let Ok(number) = name.parse::<Sysno>() else { continue };
            let number = number as u32;
            self.newest = self.newest.max(Some(number));
            if answer != self.default {
                self.insert(number, &conditions, answer);
            }
        }
        Ok(())
    }

    fn insert(&mut self, number: u32, conditions: &[Condition], answer: u32) {
        let verdict = self.calls.entry(number).or_insert_with(|| Verdict::First(Vec::new()));
        match verdict {
            Verdict::Always(_) => {}
            Verdict::First(_) if conditions.is_empty() => *verdict = Verdict::Always(answer),
            Verdict::First(rules) if names_one_twice(conditions) => {
                rules.extend(conditions.iter().map(|one| Rule { conditions: vec![*one], answer }));
            }
            Verdict::First(rules) => rules.push(Rule { conditions: conditions.to_vec(), answer }),
        }
    }
}

fn names_one_twice(conditions: &[Condition]) -> bool {
    conditions
        .iter()
        .enumerate()
        .any(|(n, one)| conditions[..n].iter().any(|other| other.argument == one.argument))
}

/// Actions that a filter supports, without error or tracer numbers.
pub(super) const ACTIONS: [(&str, u32); 8] = [
    ("SCMP_ACT_ALLOW", SECCOMP_RET_ALLOW),
    ("SCMP_ACT_ERRNO", SECCOMP_RET_ERRNO),
    ("SCMP_ACT_KILL", SECCOMP_RET_KILL_THREAD),
    ("SCMP_ACT_KILL_PROCESS", SECCOMP_RET_KILL_PROCESS),
    ("SCMP_ACT_KILL_THREAD", SECCOMP_RET_KILL_THREAD),
    ("SCMP_ACT_LOG", SECCOMP_RET_LOG),
    ("SCMP_ACT_TRACE", SECCOMP_RET_TRACE),
    ("SCMP_ACT_TRAP", SECCOMP_RET_TRAP),
];

/// Comparison operators. SCMP_CMP_MASKED_EQ compares the masked argument with the second value.
pub(super) const OPERATORS: [(&str, Operator); 7] = [
    ("SCMP_CMP_EQ", Operator::Equal),
    ("SCMP_CMP_GE", Operator::GreaterOrEqual),
    ("SCMP_CMP_GT", Operator::Greater),
    ("SCMP_CMP_LE", Operator::LessOrEqual),
    ("SCMP_CMP_LT", Operator::Less),
    ("SCMP_CMP_NE", Operator::NotEqual),
    (MASKED, Operator::Equal),
];
const MASKED: &str = "SCMP_CMP_MASKED_EQ";

/// Returns the filter's return value for an action.
fn answer(path: &str, action: &str) -> Result<u32> {
    match ACTIONS.iter().find(|(name, _)| *name == action) {
        Some((_, answer)) => Ok(*answer),
        None if action == "SCMP_ACT_NOTIFY" => Err(unsupported(path, LISTENER)),
        None => Err(invalid(path, format!("{action:?}"))),
    }
}

/// Adds the number for ERRNO and TRACE actions; the default is EPERM.
fn with_number(path: &str, kind: u32, number: Option<u32>) -> Result<u32> {
    let most = match kind {
        SECCOMP_RET_ERRNO => MAX_ERRNO,
        SECCOMP_RET_TRACE => MAX_TRACE,
        // "If the action doesn't support an errno, the runtime MUST generate an error" (config-linux.md).
        _ if number.is_some() => return Err(invalid(path, "the action takes no error number")),
        _ => return Ok(kind),
    };
    match number.unwrap_or(libc::EPERM.unsigned_abs()) {
        number if number <= most => Ok(kind | number),
        number => Err(invalid(path, format!("{number} is more than {most}"))),
    }
}

fn condition(path: &str, from: &Argument) -> Result<Condition> {
    if from.index >= ARGUMENTS {
        return Err(invalid(
            &format!("{path}.index"),
            format!("{} is more than {}", from.index, ARGUMENTS - 1),
        ));
    }
    let Some((name, operator)) = OPERATORS.iter().find(|(name, _)| *name == from.op) else {
        return Err(invalid(&format!("{path}.op"), format!("{:?}", from.op)));
    };
    let (value, mask) = if *name == MASKED { (from.value_two, from.value) } else { (from.value, u64::MAX) };
    Ok(Condition { argument: from.index, operator: *operator, value, mask })
}
