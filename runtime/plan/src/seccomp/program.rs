//! Compiles rules to classic BPF instructions (Linux, Documentation/networking/filter.rst). The program's input is
//! struct seccomp_data of a call.
//!
//! The call numbers are divided into spans with one verdict each, and the program finds a call's span by binary search.
//! Jumps are relative and only go forward, so that a block of code may be placed anywhere.

use agent_proto::payload::{FILTER_MAX, Program, instruction};
use oci::error::{Result, unsupported};

use super::rules::{Condition, Operator, Rule, Rules, Verdict, answer};

/// Opcodes: class, size or operator, and source.
pub(super) mod code {
    /// Load the word at offset `k`.
    pub(in super::super) const LOAD: u16 = 0x20;
    /// AND with `k`.
    pub(in super::super) const AND: u16 = 0x54;
    /// Jump forward by `k`.
    pub(in super::super) const JUMP: u16 = 0x05;
    pub(in super::super) const IF_EQUAL: u16 = 0x15;
    pub(in super::super) const IF_GREATER: u16 = 0x25;
    pub(in super::super) const IF_NOT_LESS: u16 = 0x35;
    /// Return `k`.
    pub(in super::super) const RETURN: u16 = 0x06;
}

/// Offsets in seccomp_data: call number, architecture, and the lower half of the first argument.
pub(super) const NUMBER: u32 = 0;
pub(super) const ARCHITECTURE: u32 = 4;
pub(super) const ARGUMENTS: u32 = 16;
/// AUDIT_ARCH_X86_64 (linux/audit.h).
pub(super) const X86_64: u32 = 0xc000_003e;
/// First call number of x32.
const X32: u32 = 0x4000_0000;
/// The call number that a tracer sets to skip a call. No call has it.
const NO_CALL: u32 = u32::MAX;

type Code = Vec<u64>;

/// Calls from `first` up to the first call of the next span, with one verdict.
struct Span {
    first: u32,
    verdict: Verdict,
}

pub(super) fn of(rules: &Rules) -> Result<Program> {
    let spans = spans(rules);
    let mut code = vec![
        load(ARCHITECTURE),
        when(code::IF_EQUAL, X86_64, 1, 0),
        reply(answer::KILL_THREAD),
        load(NUMBER),
    ];
    code.extend(search(&spans, rules.default));
    if code.len() > FILTER_MAX {
        let why = format!("{} instructions exceed the kernel's limit of {FILTER_MAX}", code.len());
        return Err(unsupported("linux.seccomp", why));
    }
    Ok(Program(code))
}

fn spans(rules: &Rules) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let mut push = |first, verdict| match spans.last_mut() {
        Some(last) if last.first == first => last.verdict = verdict,
        _ => spans.push(Span { first, verdict }),
    };
    push(0, Verdict::Always(rules.default));
    for (number, verdict) in &rules.calls {
        push(*number, verdict.clone());
        push(number + 1, Verdict::Always(rules.default));
    }
    if let Some(newest) = rules.newest {
        push(newest + 1, Verdict::Always(rules.newer));
    }
    push(X32, Verdict::Always(answer::KILL_THREAD));
    push(NO_CALL, Verdict::Always(rules.default));
    spans.dedup_by(|next, before| next.verdict == before.verdict);
    spans
}

fn search(spans: &[Span], default: u32) -> Code {
    if let [only] = spans {
        return match &only.verdict {
            Verdict::Always(answer) => vec![reply(*answer)],
            Verdict::First(rules) => rules.iter().flat_map(self::rule).chain([reply(default)]).collect(),
        };
    }
    let (low, high) = spans.split_at(spans.len() / 2);
    let border = high[0].first;
    let (low, high) = (search(low, default), search(high, default));
    let mut code = match u8::try_from(low.len()) {
        Ok(over) => vec![when(code::IF_NOT_LESS, border, over, 0)],
        // The block is longer than the maximum distance of a conditional jump.
        Err(_) => {
            vec![when(code::IF_NOT_LESS, border, 0, 1), instruction(code::JUMP, 0, 0, low.len() as u32)]
        }
    };
    code.extend(low);
    code.extend(high);
    code
}

/// Returns the code of one rule. It falls through at its end if a condition does not hold.
fn rule(rule: &Rule) -> Code {
    let mut code = vec![reply(rule.answer)];
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
fn condition(condition: &Condition, out: u8) -> Code {
    let at = ARGUMENTS + 8 * condition.argument;
    let (high, low) = ((condition.value >> 32) as u32, condition.value as u32);
    if condition.mask != u64::MAX {
        return vec![
            load(at + 4),
            instruction(code::AND, 0, 0, (condition.mask >> 32) as u32),
            when(code::IF_EQUAL, high, 0, 3 + out),
            load(at),
            instruction(code::AND, 0, 0, condition.mask as u32),
            when(code::IF_EQUAL, low, 0, out),
        ];
    }
    let more = |then, equal, last: u64| {
        vec![
            load(at + 4),
            when(code::IF_GREATER, high, then, 0),
            when(code::IF_EQUAL, high, 0, equal),
            load(at),
            last,
        ]
    };
    match condition.operator {
        Operator::Equal => {
            vec![
                load(at + 4),
                when(code::IF_EQUAL, high, 0, 2 + out),
                load(at),
                when(code::IF_EQUAL, low, 0, out),
            ]
        }
        Operator::NotEqual => {
            vec![load(at + 4), when(code::IF_EQUAL, high, 0, 2), load(at), when(code::IF_EQUAL, low, out, 0)]
        }
        Operator::Greater => more(3, 2 + out, when(code::IF_GREATER, low, 0, out)),
        Operator::GreaterOrEqual => more(3, 2 + out, when(code::IF_NOT_LESS, low, 0, out)),
        Operator::LessOrEqual => more(3 + out, 2, when(code::IF_GREATER, low, out, 0)),
        Operator::Less => more(3 + out, 2, when(code::IF_NOT_LESS, low, out, 0)),
    }
}

const fn load(at: u32) -> u64 {
    instruction(code::LOAD, 0, 0, at)
}

/// Returns a conditional jump: `then` instructions forward if the comparison with `value` holds, otherwise `or`.
const fn when(code: u16, value: u32, then: u8, or: u8) -> u64 {
    instruction(code, then, or, value)
}

const fn reply(answer: u32) -> u64 {
    instruction(code::RETURN, 0, 0, answer)
}
