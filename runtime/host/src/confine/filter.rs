//! Compiles a list of system calls to a seccomp filter.

use bpf::{ARGUMENTS, Instruction, Spans, X32, and, answer, jump, load};
use libc::BPF_JEQ;

/// A condition on an argument of a call: of its lower half, because the kernel ignores the upper half of all arguments
/// that have conditions here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Index of the argument.
    pub argument: u32,
    /// The bits that are compared.
    pub mask: u32,
    /// Permitted values.
    pub values: Vec<u32>,
}

/// A system call in a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub number: u32,
    pub rule: Rule,
}

/// What happens to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The call is permitted.
    Always,
    /// The call is permitted if all conditions hold.
    If(Vec<Condition>),
    /// The call fails with this error number.
    Fail(u32),
}

/// The answer to a call.
#[derive(PartialEq, Eq)]
enum Verdict<'a> {
    Always(u32),
    If(&'a [Condition]),
}

/// Returns the program that permits `calls`, which are sorted by number.
///
/// Any other call raises SIGSYS. A call of another architecture, or with a number of x32, kills the process, which is
/// also how the signal's handler ends it.
pub fn program(calls: &[Call]) -> Vec<Instruction> {
    let mut spans = Spans::new(Verdict::Always(libc::SECCOMP_RET_TRAP));
    for Call { number, rule } in calls {
        let verdict = match rule {
            Rule::Always => Verdict::Always(libc::SECCOMP_RET_ALLOW),
            Rule::If(conditions) => Verdict::If(conditions),
            Rule::Fail(error) => Verdict::Always(libc::SECCOMP_RET_ERRNO | error),
        };
        spans.push(*number, verdict);
        spans.push(number + 1, Verdict::Always(libc::SECCOMP_RET_TRAP));
    }
    spans.push(X32, Verdict::Always(libc::SECCOMP_RET_KILL_PROCESS));
    spans.program(libc::SECCOMP_RET_KILL_PROCESS, |verdict| match verdict {
        Verdict::Always(value) => vec![answer(*value)],
        Verdict::If(conditions) => {
            conditions.iter().flat_map(condition).chain([answer(libc::SECCOMP_RET_ALLOW)]).collect()
        }
    })
}

/// Returns the code of one condition, which falls through at its end if the condition holds.
fn condition(condition: &Condition) -> Vec<Instruction> {
    let mut code = vec![load(ARGUMENTS + 8 * condition.argument)];
    if condition.mask != u32::MAX {
        code.push(and(condition.mask));
    }
    let count = condition.values.len();
    // The jump skips the comparisons that are left, and the answer after them.
    code.extend(
        condition.values.iter().enumerate().map(|(at, value)| jump(BPF_JEQ, *value, (count - at) as u8, 0)),
    );
    code.push(answer(libc::SECCOMP_RET_TRAP));
    code
}

#[cfg(test)]
mod tests {
    use bpf::testing::{self, run};

    use super::*;

    fn plain(number: u32) -> Call {
        Call { number, rule: Rule::Always }
    }

    #[test]
    fn a_listed_call_is_permitted_if_all_its_conditions_hold() {
        let even = Condition { argument: 2, mask: 1, values: vec![0] };
        let some = Condition { argument: 0, mask: u32::MAX, values: vec![5, 7, 9] };
        let last = Condition { argument: 5, mask: u32::MAX, values: vec![4] };
        let calls = [
            plain(1),
            plain(2),
            Call { number: 3, rule: Rule::If(vec![some, even]) },
            plain(60),
            Call { number: 61, rule: Rule::If(vec![last]) },
            Call { number: 70, rule: Rule::Fail(38) },
        ];
        let program = program(&calls);
        let verdict = |number, args| run(&program, &testing::Call { number, args, ..Default::default() }).0;
        for number in [1, 2, 60] {
            assert_eq!(verdict(number, [9; 6]), libc::SECCOMP_RET_ALLOW, "{number}");
        }
        for number in [0, 4, 59, 62, 400, X32 - 1] {
            assert_eq!(verdict(number, [9; 6]), libc::SECCOMP_RET_TRAP, "{number}");
        }
        for number in [X32, u32::MAX] {
            assert_eq!(verdict(number, [9; 6]), libc::SECCOMP_RET_KILL_PROCESS, "{number:#x}");
        }
        for (first, third, permitted) in
            [(5, 2, true), (7, 0, true), (9, 4, true), (5, 1, false), (6, 2, false), (9, 3, false)]
        {
            let wanted = if permitted { libc::SECCOMP_RET_ALLOW } else { libc::SECCOMP_RET_TRAP };
            assert_eq!(verdict(3, [first, 0, third, 0, 0, 0]), wanted, "{first} {third}");
        }
        assert_eq!(verdict(61, [0, 0, 0, 0, 0, 4]), libc::SECCOMP_RET_ALLOW);
        assert_eq!(verdict(61, [4, 4, 4, 4, 4, 0]), libc::SECCOMP_RET_TRAP);
        assert_eq!(verdict(70, [0; 6]), libc::SECCOMP_RET_ERRNO | 38);
    }
}
