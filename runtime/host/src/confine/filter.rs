//! Compiles a list of system calls to a seccomp filter in classic BPF (Linux, Documentation/networking/filter.rst). The
//! program's input is struct seccomp_data.
//!
//! The program finds a call's number by binary search. This is not for the calls themselves, whose verdict the kernel
//! remembers, but for the filter's installation: to fill that memory, the kernel runs the program for each of some 900
//! call numbers. A chain of comparisons, as seccompiler builds it, takes ten times as long there.

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter,
};

/// Offsets in seccomp_data: call number, architecture, and the lower half of the first argument.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;
/// AUDIT_ARCH_X86_64 (linux/audit.h).
const X86_64: u32 = 0xc000_003e;
/// First call number of x32.
pub const X32: u32 = 0x4000_0000;

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

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The call is permitted.
    Always,
    /// The call is permitted if all conditions hold.
    If(Vec<Condition>),
    /// The call fails with this error number.
    Fail(u32),
}

/// Calls from `first` up to the first call of the next span, with one verdict.
struct Span<'a> {
    first: u32,
    verdict: Verdict<'a>,
}

#[derive(PartialEq, Eq)]
enum Verdict<'a> {
    Always(u32),
    If(&'a [Condition]),
}

/// Returns the program that permits `calls`, which are sorted by number.
///
/// Any other call raises SIGSYS. A call of another architecture, or with a number of x32, kills the process, which is
/// also how the signal's handler ends it.
pub fn program(calls: &[Call]) -> Vec<sock_filter> {
    let mut spans: Vec<Span<'_>> = vec![Span { first: 0, verdict: Verdict::Always(libc::SECCOMP_RET_TRAP) }];
    for call in calls {
        let verdict = match &call.rule {
            Rule::Always => Verdict::Always(libc::SECCOMP_RET_ALLOW),
            Rule::If(conditions) => Verdict::If(conditions),
            Rule::Fail(error) => Verdict::Always(libc::SECCOMP_RET_ERRNO | error),
        };
        // The gap before the call begins with the call before it.
        if spans.last().is_some_and(|last| last.first == call.number) {
            spans.pop();
        }
        spans.push(Span { first: call.number, verdict });
        spans.push(Span { first: call.number + 1, verdict: Verdict::Always(libc::SECCOMP_RET_TRAP) });
    }
    spans.push(Span { first: X32, verdict: Verdict::Always(libc::SECCOMP_RET_KILL_PROCESS) });
    spans.dedup_by(|next, before| next.verdict == before.verdict);
    let mut code = vec![
        load(ARCHITECTURE),
        jump(BPF_JEQ, X86_64, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
    ];
    code.extend(search(&spans));
    code
}

fn search(spans: &[Span<'_>]) -> Vec<sock_filter> {
    if let [only] = spans {
        return match only.verdict {
            Verdict::Always(verdict) => vec![answer(verdict)],
            Verdict::If(conditions) => {
                conditions.iter().flat_map(condition).chain([answer(libc::SECCOMP_RET_ALLOW)]).collect()
            }
        };
    }
    let (low, high) = spans.split_at(spans.len() / 2);
    let (border, low, high) = (high[0].first, search(low), search(high));
    let mut code = match u8::try_from(low.len()) {
        Ok(over) => vec![jump(BPF_JGE, border, over, 0)],
        // The block is longer than the maximum distance of a conditional jump.
        Err(_) => vec![jump(BPF_JGE, border, 0, 1), instruction(BPF_JMP | BPF_JA, low.len() as u32, 0, 0)],
    };
    code.extend(low);
    code.extend(high);
    code
}

/// Returns the code of one condition, which falls through at its end if the condition holds.
fn condition(condition: &Condition) -> Vec<sock_filter> {
    let mut code = vec![load(ARGUMENTS + 8 * condition.argument)];
    if condition.mask != u32::MAX {
        code.push(instruction(BPF_ALU | BPF_AND | BPF_K, condition.mask, 0, 0));
    }
    let count = condition.values.len();
    // The jump skips the comparisons that are left, and the answer after them.
    code.extend(
        condition.values.iter().enumerate().map(|(at, value)| jump(BPF_JEQ, *value, (count - at) as u8, 0)),
    );
    code.push(answer(libc::SECCOMP_RET_TRAP));
    code
}

fn load(at: u32) -> sock_filter {
    instruction(BPF_LD | BPF_W | BPF_ABS, at, 0, 0)
}

/// Returns a conditional jump: `then` instructions forward if the comparison with `value` holds, otherwise `or`.
fn jump(comparison: u32, value: u32, then: u8, or: u8) -> sock_filter {
    instruction(BPF_JMP | comparison | BPF_K, value, then, or)
}

fn answer(verdict: u32) -> sock_filter {
    instruction(BPF_RET | BPF_K, verdict, 0, 0)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Runs a program for one call. Returns the verdict and the number of instructions.
    pub fn run(program: &[sock_filter], number: u32, arguments: [u32; 6]) -> (u32, usize) {
        let (mut at, mut word) = (0, 0);
        for steps in 1.. {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let code = u32::from(code);
            let go = |holds: bool| usize::from(if holds { jt } else { jf });
            match code {
                _ if code == BPF_LD | BPF_W | BPF_ABS => {
                    word = match k {
                        NUMBER => number,
                        ARCHITECTURE => X86_64,
                        other => arguments[((other - ARGUMENTS) / 8) as usize],
                    }
                }
                _ if code == BPF_ALU | BPF_AND | BPF_K => word &= k,
                _ if code == BPF_JMP | BPF_JEQ | BPF_K => at += go(word == k),
                _ if code == BPF_JMP | BPF_JGE | BPF_K => at += go(word >= k),
                _ if code == BPF_JMP | BPF_JA => at += k as usize,
                _ if code == BPF_RET | BPF_K => return (k, steps),
                other => panic!("instruction {other:#x}"),
            }
        }
        unreachable!()
    }

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
        let verdict = |number, arguments| run(&program, number, arguments).0;
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

    #[test]
    fn a_long_filter_finds_every_call_in_few_steps() {
        let calls: Vec<Call> = (0..400).filter(|number| number % 2 == 0).map(plain).collect();
        let program = program(&calls);
        for number in 0..500 {
            let (verdict, steps) = run(&program, number, [0; 6]);
            let permitted = number < 400 && number % 2 == 0;
            assert_eq!(verdict == libc::SECCOMP_RET_ALLOW, permitted, "{number}");
            assert!(steps <= 24, "{number}: {steps}");
        }
    }
}
