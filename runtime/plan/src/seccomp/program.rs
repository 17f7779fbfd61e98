//! Compiles rules to the instructions of a filter.

use agent_proto::payload::{FILTER_MAX, Program, instruction};
use bpf::{ARGUMENTS, Instruction, Spans, X32, and, answer, jump, load};
use libc::{BPF_JEQ, BPF_JGE, BPF_JGT, SECCOMP_RET_KILL_THREAD};
use oci::error::{Result, unsupported};

use super::rules::{Condition, Operator, Rule, Rules, Verdict};

/// The call number that a tracer sets to skip a call. No call has it.
const NO_CALL: u32 = u32::MAX;

pub(super) fn of(rules: &Rules) -> Result<Program> {
    let code = spans(rules).program(SECCOMP_RET_KILL_THREAD, |verdict| match verdict {
        Verdict::Always(value) => vec![answer(*value)],
        Verdict::First(list) => list.iter().flat_map(rule).chain([answer(rules.default)]).collect(),
    });
    if code.len() > FILTER_MAX {
        let why = format!("{} instructions exceed the kernel's limit of {FILTER_MAX}", code.len());
        return Err(unsupported("linux.seccomp", why));
    }
    Ok(Program(code.iter().map(|it| instruction(it.code, it.jt, it.jf, it.k)).collect()))
}

fn spans(rules: &Rules) -> Spans<Verdict> {
    let mut spans = Spans::new(Verdict::Always(rules.default));
    for (number, verdict) in &rules.calls {
        spans.push(*number, verdict.clone());
        spans.push(number + 1, Verdict::Always(rules.default));
    }
    if let Some(newest) = rules.newest {
        spans.push(newest + 1, Verdict::Always(rules.newer));
    }
    spans.push(X32, Verdict::Always(SECCOMP_RET_KILL_THREAD));
    spans.push(NO_CALL, Verdict::Always(rules.default));
    spans
}

/// Returns the code of one rule. It falls through at its end if a condition does not hold.
fn rule(rule: &Rule) -> Vec<Instruction> {
    let mut code = vec![answer(rule.answer)];
    for condition in rule.conditions.iter().rev() {
        // Six conditions and a return at most: all distances fit a conditional jump.
        let mut before = self::condition(condition, code.len() as u8);
        before.append(&mut code);
        code = before;
    }
    code
}

/// Returns the code of one condition. It falls through at its end if the condition holds, and otherwise jumps `out`
/// instructions past its end. Registers have 32 bits, so that the upper half is compared first.
fn condition(condition: &Condition, out: u8) -> Vec<Instruction> {
    let at = ARGUMENTS + 8 * condition.argument;
    let (high, low) = ((condition.value >> 32) as u32, condition.value as u32);
    if condition.mask != u64::MAX {
        return vec![
            load(at + 4),
            and((condition.mask >> 32) as u32),
            jump(BPF_JEQ, high, 0, 3 + out),
            load(at),
            and(condition.mask as u32),
            jump(BPF_JEQ, low, 0, out),
        ];
    }
    let more = |then, equal, last: Instruction| {
        vec![load(at + 4), jump(BPF_JGT, high, then, 0), jump(BPF_JEQ, high, 0, equal), load(at), last]
    };
    match condition.operator {
        Operator::Equal => {
            vec![load(at + 4), jump(BPF_JEQ, high, 0, 2 + out), load(at), jump(BPF_JEQ, low, 0, out)]
        }
        Operator::NotEqual => {
            vec![load(at + 4), jump(BPF_JEQ, high, 0, 2), load(at), jump(BPF_JEQ, low, out, 0)]
        }
        Operator::Greater => more(3, 2 + out, jump(BPF_JGT, low, 0, out)),
        Operator::GreaterOrEqual => more(3, 2 + out, jump(BPF_JGE, low, 0, out)),
        Operator::LessOrEqual => more(3 + out, 2, jump(BPF_JGT, low, out, 0)),
        Operator::Less => more(3 + out, 2, jump(BPF_JGE, low, out, 0)),
    }
}
